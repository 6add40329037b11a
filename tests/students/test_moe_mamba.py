"""MoE-Mamba: against transformers' Mamba and experts token by token, packed and padded, saved and
generating."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import moved, relative
from test_own_class import ALONE
from torch import Tensor

from transmamba import UserError, adapt_teacher, inspect, load_student, save_student
from transmamba.core.output import Capture
from transmamba.core.tower import StudentSpec
from transmamba.errors import WrongValues
from transmamba.students.moe_mamba import MoeMamba

SMALL: dict[str, Any] = dict(blocks=2, width=32, capacity=None)
KINDS: dict[str, dict[str, Any]] = {
    "experts": dict(experts=4),
    "an MLP": dict(experts=1),
    "pure": dict(experts=0),
    "parallel": dict(experts=3, variant="parallel"),
    "inner": dict(experts=3, variant="inner", within=("conv", "out")),
    "inner, gates": dict(experts=3, variant="inner", within=("gate",)),
}


def student(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    made = MoeMamba(**{**SMALL, **KINDS[kind], **options}).build(StudentSpec())
    return moved(made).eval()


def text(rows: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_pure_mamba_is_transformers_mamba() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    mine = student("pure")
    config = MambaConfig(
        vocab_size=257,
        hidden_size=32,
        num_hidden_layers=4,
        state_size=16,
        expand=2,
        conv_kernel=4,
        layer_norm_epsilon=mine.config.rms_norm_eps,
        tie_word_embeddings=False,
    )
    theirs = MambaForCausalLM(config).eval()
    renamed = {
        name.replace("model.", "backbone.")
        .replace("embed_tokens", "embeddings")
        .replace("backbone.norm.", "backbone.norm_f.")
        .replace("input_layernorm", "norm")
        .replace(".mamba.", ".mixer."): tensor
        for name, tensor in mine.state_dict().items()
    }
    theirs.load_state_dict(renamed, strict=True)
    assert relative(mine(text()), theirs(text()).logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", ["experts", "an MLP", "parallel"])
def test_a_layer_is_mamba_and_its_experts(kind: str) -> None:
    """Mamba's part is that of a pure one; experts, token after token."""
    mine = student(kind)
    layer, x = mine.layer(0), torch.randn(1, 6, 32)
    found, _ = layer(x, mine._reading(_no_context(), x, {"mamba"}))
    own = layer.state_dict()

    def normed(x: Tensor, name: str) -> Tensor:
        return (
            x / (x.square().mean(-1, keepdim=True) + mine.config.rms_norm_eps).sqrt() * own[f"{name}.weight"]
        )

    after = x + layer.mamba(normed(x, "input_layernorm")).output
    u = normed(x if kind == "parallel" else after, "post_attention_layernorm")
    added = torch.zeros_like(x)
    for t in range(6):
        if kind == "an MLP":
            up, down, weight = own["mlp.up_proj.weight"], own["mlp.down_proj.weight"], torch.ones(())
        else:
            likely = (own["mlp.router.weight"] @ u[0, t]).softmax(dim=0)
            weight, e = likely.max(dim=0)
            up, down = own["mlp.experts.up_proj"][e], own["mlp.experts.down_proj"][e]
        added[0, t] = weight * (down @ (up @ u[0, t]).relu())
    assert relative(found, after + added) < 1e-5


def _no_context() -> Any:
    from transmamba.core.output import Context

    return Context()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["experts", "parallel", "inner"])
def test_documents_and_padding_are_kept_apart(kind: str) -> None:
    mine, alone = student(kind), text()[:, 10:]
    segments = (torch.arange(24) >= 10).int().expand(2, -1)
    packed = mine.run({"text": text(), "text_segment": segments}).logits()[:, 10:]
    assert relative(packed, mine(alone)) < 1e-5
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[:, :10] = False
    padded = mine.run({"text": text(), "text_mask": mask}).logits()[:, 10:]
    assert relative(padded, mine(alone)) < 1e-5
    assert relative(mine.stock()(text(), attention_mask=mask).logits[:, 10:], mine(alone)) < 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    found = {}
    for kind in KINDS:
        made, folder = student(kind), tmp_path_factory.mktemp("moe")
        save_student(made, folder)
        found[kind] = made, folder
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["experts", "pure", "inner"])
def test_it_comes_back_and_generates_with_and_without_cache(
    saved: dict[str, tuple[Any, Path]], kind: str
) -> None:
    mine, folder = saved[kind]
    again = load_student(folder)
    assert torch.equal(again(text()), mine(text()))
    assert again.beside.tokenizer("hé\n").input_ids == [*"hé\n".encode()]
    stock = mine.stock()
    given, options = text(2, 7), dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    mask = torch.ones_like(given)
    mask[1, :3] = 0
    written = [stock.generate(given, attention_mask=mask, use_cache=use, **options) for use in (True, False)]
    assert torch.equal(*written)
    slowly = given[:1]
    for _ in range(8):
        slowly = torch.cat([slowly, mine(slowly)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written[0][:1], slowly)


@pytest.mark.slow
def test_a_process_without_us_loads_it(
    saved: dict[str, tuple[Any, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    torch.save(text(), tmp_path / "text.pt")
    chosen = ("experts", "inner")
    folders = [str(saved[kind][1]) for kind in chosen]
    command = [sys.executable, "-c", ALONE, str(tmp_path / "text.pt"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    for kind in chosen:
        mine, folder = saved[kind]
        with torch.no_grad():
            assert relative(torch.load(folder / "logits.pt"), mine(text())) < 1e-5


def test_half_precision_is_as_near_as_ours(saved: dict[str, tuple[Any, Path]]) -> None:
    for kind in ("experts", "inner"):
        mine, folder = saved[kind]
        half = load_student(folder).to(torch.bfloat16)
        with torch.no_grad():
            stock = half.stock()(text()).logits.float()
            assert relative(stock, mine(text())) < 2 * relative(half(text()).float(), mine(text())) < 0.3


def test_rivals_have_as_many_active_parameters() -> None:
    """A layer's worth in the recipe's own width: an MLP's 6 width², and Mamba's in its place."""
    width, counts = 256, {}
    for experts in (0, 1, 8):
        made = MoeMamba(experts=experts, blocks=1, width=width).build(StudentSpec())
        counts[experts] = sum(p.numel() for p in made.model["layers"].parameters())
    bank, router = 8 * 6 * width**2, 8 * width
    assert counts[8] - bank - router + 6 * width**2 == counts[1]
    assert counts[0] / counts[1] == pytest.approx(1.0, abs=0.06)


def test_it_says_what_it_routes_and_trains() -> None:
    made = student("experts")
    assert made.routers == {"decoder": {(0, ""): 4, (1, ""): 4}}
    capture = Capture(mixers={1: frozenset(("router", "chosen", "within", "output"))})
    kept = made.run({"text": text()}, {"decoder": capture}).streams["decoder"].mixers[1]
    assert kept["router"].shape == (2, 24, 4) and kept["chosen"].shape == (2, 24, 1)
    groups, names = made.groups(), [name for name, _ in made.named_parameters()]
    assert groups.keys() == {*MoeMamba.group_names}
    routed = [name for name in names if groups["router"](name)]
    assert routed == [f"model.layers.{k}.mlp.router.weight" for k in range(2)]
    assert sum(groups["mlp"](name) for name in names) == 6 and any(groups["mixers"](name) for name in names)
    made.train().set_grad_checkpointing()
    plain = student("experts").train()
    for model in (made, plain):
        model(text()).square().mean().backward()
    for (name, a), (_, b) in zip(made.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_inspect_tells_of_its_experts(saved: dict[str, tuple[Any, Path]]) -> None:
    tower = inspect(saved["experts"][1]).towers["decoder"]
    (layers,) = tower["sublayers"]
    assert [part["kind"] for part in layers["of"]] == ["mamba", "experts"]
    assert (layers["of"][1]["experts"], layers["of"][1]["each"], tower["kind"]) == (4, 1, "mamba")
    (layers,) = inspect(saved["pure"][1]).towers["decoder"]["sublayers"]
    assert [part["kind"] for part in layers["of"]] == ["mamba"]


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(capacity=0.5), "capacity is 0.5; write a factor of at least 1"),
        (dict(experts=-1), "experts is -1"),
        (dict(tokenizer=""), "tokenizer is empty; write bytes"),
        (dict(experts=1, variant="inner"), "write at least 2"),
        (dict(experts=0, variant="parallel"), "nothing beside Mamba"),
        (dict(within=("conv", "conv")), "each once"),
        (dict(conv=5), "conv is 5; write 2, 3 or 4"),
        (dict(blocks=0), "blocks is 0"),
        (dict(within=()), "within is .*; write some of"),
        (dict(within=("gate",)), "within is .*, of which variant sequential has nothing"),
        (dict(within=("conv", "out"), variant="parallel"), "of which variant parallel has nothing"),
        (dict(neurons=8, variant="inner"), "neurons is 8, but in variant inner"),
        (dict(neurons=8, experts=0), "neurons is 8, but with experts 0 there are none"),
        (dict(capacity=2.0, experts=1), "capacity is 2.0, but with experts 1 nothing is routed"),
        (dict(capacity=1.5, experts=0), "capacity is 1.5, but with experts 0 nothing is routed"),
        (dict(capacity=8.0), "capacity is 8.0, at which no expert is ever full: .* write less than 8,"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(WrongValues, match=why) as said:
        MoeMamba(**options)
    assert "\n" not in str(said.value)


CHANGES: dict[str, tuple[Any, ...]] = dict(
    blocks=(3,), width=(48,), neurons=(40,), expand=(1,), state=(8,), conv=(3,), capacity=(None, 1.5)
)


def built(**options: Any) -> Any:
    torch.manual_seed(0)
    return MoeMamba(**{"blocks": 2, "width": 32, **options}).build(StudentSpec()).train()


@torch.no_grad()
@pytest.mark.parametrize("variant", ["sequential", "parallel", "inner"])
@pytest.mark.parametrize("experts", [0, 1, 4])
def test_what_is_asked_for_changes_the_model_or_is_refused(experts: int, variant: Any) -> None:
    """Every option beside every kind of layer: in what training computes, or by name. Without experts
    nothing is dropped, which is what a capacity of null says."""
    base: dict[str, Any] = dict(experts=experts, variant=variant)
    try:
        plain = built(**base)
    except WrongValues as error:
        assert "experts is" in str(error) and experts < 2
        return
    before = plain(text())
    changes = [(name, value) for name, values in CHANGES.items() for value in values]
    for name, value in [*changes, ("within", ("gate",))]:
        if name == "capacity" and value is None and experts < 2:
            continue
        try:
            changed = built(**base, **{name: value})
        except WrongValues as error:
            assert f"{name} is" in str(error) and "leave it out" in str(error)
            continue
        shapes = [{key: tensor.shape for key, tensor in m.state_dict().items()} for m in (plain, changed)]
        assert shapes[0] != shapes[1] or not torch.equal(changed(text()), before), name


def test_it_takes_words_of_a_teacher_and_no_weights() -> None:
    from hybrids import WORDS, llama

    from transmamba import convert

    teacher = adapt_teacher(llama())
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    assert MoeMamba(**SMALL).build(spec).vocabulary == WORDS
    with pytest.raises(
        UserError, match="tokenizer is 'bytes', but with a teacher the words are the teacher's"
    ):
        MoeMamba(**SMALL, tokenizer="bytes").build(spec)
    with pytest.raises(UserError, match="takes no weights of a teacher; write init: null"):
        convert(teacher, "moe_mamba", blocks=1, width=16)
