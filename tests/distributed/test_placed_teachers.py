"""A teacher offloaded or sharded is the teacher, to the last bit; loaded by slices, no process ever holds it
whole."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from transmamba import SubcloneConfig, UserError, adapt_teacher, convert, load_teacher
from transmamba.core.output import Capture
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.sources import read_source
from transmamba.runs.teacher import build_teacher
from transmamba.teachers.auto import Auto
from transmamba.teachers.causal_lm import CausalLanguageModel
from transmamba.teachers.check import random_inputs
from transmamba.teachers.placement import Sharded
from transmamba.teachers.sliced import load_sharded
from transmamba.teachers.teacher import Teacher
from transmamba.training.stage import TrainerConfig
from transmamba.views.placed import skeletons

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
from decoders_made import DECODERS, WORDS, make

CPU = torch.device("cpu")
KINDS = ["Llama 3 (llama3 RoPE)", "SmolLM (tied)", "Qwen2 (QKV biases)", "GPT-2", "Gemma"]


def text() -> Tensor:
    return torch.randint(3, WORDS, (2, 20), generator=torch.Generator().manual_seed(0))


def read(teacher: Teacher) -> list[Tensor]:
    """Logits, every stream and some of what its sublayers make."""
    count = len(skeletons(teacher.view.towers["decoder"].sublayers))
    capture = Capture(hidden=frozenset(range(count)), mixers={0: frozenset({"q", "values"})})
    output = teacher({"text": text()}, {"decoder": capture})
    stream = output.streams["decoder"]
    assert output.logits is not None
    return [output.logits(), *stream.hidden.values(), *stream.mixers[0].values()]


def same(found: list[Tensor], wanted: list[Tensor], exactly: bool = True) -> None:
    """To the last bit, but for GPT-2, whose weights are read turned: gathered, they lie otherwise."""
    assert len(found) == len(wanted) > 5
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b) if exactly else (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_offloaded_it_is_the_same(kind: str, fold: bool) -> None:
    teacher = adapt_teacher(make(kind))
    placed = teacher.placed("offloaded", CPU)
    if fold:  # before and after it is placed
        teacher, placed = teacher.fold(), placed.fold()
    same(read(placed), read(teacher))
    assert placed.view.towers["decoder"].names == teacher.view.towers["decoder"].names


def test_images_too(make_teacher: Any, gray_images: Tensor) -> None:
    teacher = make_teacher()
    placed = teacher.placed("offloaded", CPU)
    assert torch.equal(placed(gray_images).logits(), teacher(gray_images).logits())
    config = SubcloneConfig(importance="uniform")
    for name in ("vim", "ssd_vit"):
        torch.manual_seed(0)
        wanted, _ = convert(teacher, name, init=config)
        torch.manual_seed(0)
        found, _ = convert(placed, name, init=config)
        for (key, a), b in zip(found.named_parameters(), wanted.parameters(), strict=True):
            assert torch.equal(a, b), key


def in_two(folder: Path) -> None:
    """What each of two processes checks."""
    for kind in KINDS:
        teacher, exactly = adapt_teacher(make(kind)), kind != "GPT-2"
        wanted = read(teacher)
        same(read(teacher.placed("sharded", CPU)), wanted, exactly)
        same(read(teacher.placed("sharded", CPU).fold()), read(teacher.fold()), exactly)
        part = CausalLanguageModel(model=str(folder / kind))
        sliced = load_sharded(part, read_source(part.model), CPU)
        same(read(sliced), wanted, exactly)
        same(read(sliced.fold()), read(teacher.fold()), exactly)
        blocks = sliced.view.towers["decoder"].sublayers
        assert isinstance(blocks, Sharded)
        mine = sum(t.numel() for each in blocks.slices for t in each.values())
        whole = [t.numel() for s in teacher.view.towers["decoder"].sublayers for t in tensors_of(s)]
        assert sum(whole) <= 2 * mine <= sum(whole) + 4 * len(whole)
    (folder / f"done{dist.get_rank()}").touch()


def tensors_of(sublayer: Any) -> list[Tensor]:
    from transmamba.views.sublayers import map_tensors

    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(sublayer, collect)
    return found


def ranked(folder: Path) -> None:
    dist.init_process_group("gloo")
    try:
        in_two(folder)
    finally:
        dist.destroy_process_group()


def test_sharded_over_two_it_is_the_same(tmp_path: Path) -> None:
    for kind in KINDS:
        make(kind).save_pretrained(tmp_path / kind, max_shard_size="40KB")
    harness.in_ranks(2, ranked, tmp_path)
    assert len(list(tmp_path.glob("done*"))) == 2


@pytest.fixture
def alone() -> Any:
    """A process group of this process."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_by_slices_what_does_not_fit_is_one_line(tmp_path: Path, alone: Any) -> None:
    from transformers import LlamaConfig

    make("Llama 2").save_pretrained(tmp_path, max_shard_size="40KB")
    wide = LlamaConfig.from_pretrained(tmp_path)
    part = CausalLanguageModel(model=str(tmp_path))
    for change, said in (
        ({"intermediate_size": 64}, "mlp.gate_proj.weight is (56, 32), its config says (64, 32)"),
        ({"num_hidden_layers": 4}, "lacks model.layers.3"),
        ({"num_hidden_layers": 2}, "no place for: model.layers.2"),
    ):
        LlamaConfig(**{**wide.to_dict(), **change}).save_pretrained(tmp_path)
        with pytest.raises(UserError) as error:
            load_sharded(part, read_source(part.model), CPU)
        assert said in str(error.value) and "\n" not in str(error.value)
    wide.save_pretrained(tmp_path)
    load_sharded(part, read_source(part.model), CPU)
    next(tmp_path.glob("model-00003*")).unlink()
    with pytest.raises(UserError, match="lacks its file model-00003"):
        load_sharded(part, read_source(part.model), CPU)
    with pytest.raises(UserError, match=r"\.gguf' cannot be read by slices"):
        (tmp_path / "m.gguf").touch()
        load_sharded(part, read_source(str(tmp_path / "m.gguf")), CPU)


def test_a_folder_placed_by_its_name(tmp_path: Path) -> None:
    make("Qwen3 (q/k norms)").save_pretrained(tmp_path)
    same(read(load_teacher(tmp_path).placed("offloaded", CPU)), read(load_teacher(tmp_path)))


def test_a_recipe_s_teacher_may_be_offloaded(tmp_path: Path) -> None:
    """Losses, evaluation and weights to the last bit."""
    found = []
    for placement in ("resident", "offloaded"):
        changes = dict(output_dir=str(tmp_path / placement), trainer__teacher_placement=placement)
        recipe = harness.tiny_recipe(tmp_path, **changes)
        results = harness.without_timing(harness.run_quietly(recipe))
        found.append((results, load_file(tmp_path / placement / "student" / "model.safetensors")))
    (wanted, before), (made, after) = found
    assert made == wanted and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_recipe_s_teacher_may_be_sharded(tmp_path: Path) -> None:
    """Two processes, whose shares of the test images differ: both ask for the same blocks all the same."""
    for placement in ("resident", "sharded"):
        changes = dict(output_dir=str(tmp_path / placement), trainer__teacher_placement=placement)
        recipe = harness.tiny_recipe(tmp_path, trainer__micro_batch=2, **changes)
        harness.in_ranks(2, harness.run_quietly, recipe)
    before, after = (
        load_file(tmp_path / name / "student" / "model.safetensors") for name in ("resident", "sharded")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("resident", "sharded")]
    assert harness.without_timing(results[0]) == harness.without_timing(results[1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(trainer__teacher_placement="sharded"), "takes several processes"),
        (dict(trainer__teacher_placement="offloaded", trainer__cuda_graphs=True), "cuda_graphs=false"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        harness.run_quietly(harness.tiny_recipe(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_from_a_gpu_it_is_the_same(kind: str) -> None:
    """Copies run ahead on a stream of their own: none may be read before it is done, or given away while it
    is read, however often it is called and whatever is allocated between."""
    cuda = torch.device("cuda")
    teacher = adapt_teacher(make(kind)).to(cuda)
    placed = teacher.placed("offloaded", cuda)
    inputs = {"text": text().to(cuda)}
    wanted = teacher(inputs).logits()
    for _ in range(20):
        made = placed(inputs).logits()
        torch.empty(1 << 20, device=cuda).fill_(torch.nan)
        # GPT-2's weights are read turned: copied, they lie otherwise, and the GPU's product rounds otherwise
        off = 1e-5 * float(wanted.abs().max()) if kind == "GPT-2" else 0.0
        assert float((made - wanted).abs().max()) <= off
    assert all(
        t.device.type == "cpu"
        for each in placed.view.towers["decoder"].sublayers.kept
        for t in tensors_of(each)
    )  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["timm", "vit", "dinov2", "clip"])
def test_any_teacher_may_be_sharded(kind: str, tmp_path: Path, alone: Any, caplog: Any) -> None:
    """By slices where its names are the library's own, else read whole first, which is said."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig
    from transformers import ViTForImageClassification as ViT

    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
    text = dict(small, intermediate_size=24, vocab_size=50, max_position_embeddings=12, eos_token_id=49)
    made = {
        "timm": harness.tiny_vit,
        "vit": lambda: ViT(ViTConfig(**small)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**small)),
        "clip": lambda: CLIPModel(
            CLIPConfig(text_config=text, vision_config=dict(small, intermediate_size=24))
        ),
    }[kind]()
    save_model(made, tmp_path / "m")
    part = Auto(model=str(tmp_path / "m"))
    wanted = part.build()
    accelerator = Namespace(device=CPU, num_processes=2)
    found = build_teacher(part, TrainerConfig(teacher_placement="sharded"), accelerator)
    assert isinstance(found.view.towers["image"].sublayers, Sharded)
    inputs = random_inputs(wanted.view, wanted.preprocessing, torch.float32)
    before, after = wanted(inputs), found(inputs)
    assert after.embeddings.keys() == before.embeddings.keys()
    if before.logits is not None and after.logits is not None:
        assert torch.equal(before.logits(), after.logits())
    for name, embedding in before.embeddings.items():
        assert torch.equal(embedding, after.embeddings[name])
    assert found.preprocessing == wanted.preprocessing


def test_a_revision_is_kept() -> None:
    part = CausalLanguageModel(model="me/llama", revision="v1")
    source = Namespace(folder=None, repo="me/llama", revision="v1")
    asked: list[Any] = []
    loaded: list[Any] = []

    def read(*arguments: Any) -> Any:
        asked.append(arguments)
        return source

    def load(*arguments: Any) -> Any:
        loaded.append(arguments)
        return "sharded"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transmamba.runs.teacher.read_source", read)
        patch.setattr("transmamba.runs.teacher.load_sharded", load)
        trainer = TrainerConfig(teacher_placement="sharded")
        made: Any = build_teacher(part, trainer, Namespace(device=CPU, num_processes=2))
        assert made == "sharded"
    assert loaded == [(part, source, CPU)]
    assert asked == [("me/llama", None, "v1")]


def test_a_placement_that_is_none_is_told(make_teacher: Any) -> None:
    with pytest.raises(UserError, match="resident, offloaded, sharded"):
        make_teacher().placed("gpu", CPU)
    back = make_teacher().placed("offloaded", CPU).placed("resident", CPU)
    assert isinstance(back.view.towers["image"].sublayers, tuple)
