"""The canonical view against each teacher's own code: logits and the residual stream after every block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm_vits import TIMM, images_for
from torch import Tensor, nn

from transmamba import adapt_teacher
from transmamba.config.registry import TEACHERS
from transmamba.core.output import Capture
from transmamba.teachers.teacher import Teacher
from transmamba.views.sublayers import map_tensors
from transmamba.views.view import block_ends

HUGGING_FACE = {
    "vit": ("ViTConfig", "ViTForImageClassification", {}),
    "vit_relu_no_bias": ("ViTConfig", "ViTForImageClassification", dict(hidden_act="relu", qkv_bias=False)),
    "deit": ("DeiTConfig", "DeiTForImageClassification", {}),
    "deit_two_heads": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", {}),
}
# every registered teacher and the test that holds it against its own code
COVERED = {
    "timm_vit": "views/test_view.py::test_timm_view_equals_timm",
    "hf_vit": "views/test_view.py::test_hugging_face_view_equals_transformers",
    "vit_mnist_mit": "views/test_view.py::test_mnist_view_equals_multihead_attention",
    "auto": "views/test_view.py::test_auto_is_the_teacher_it_finds",
    "causal_lm": "teachers/test_decoders.py::test_every_stream_and_the_logits_are_the_model_s",
    "open_clip": "teachers/test_clip_family.py::test_streams_and_embeddings_are_the_library_s",
    "llava": "teachers/test_llava.py::test_every_stream_and_the_logits_are_the_model_s",
    "stored": "teachers/test_stored.py::test_rows_are_the_teacher_s_outputs_of_the_very_batches",
    "sequence": "students/test_sequence_taught.py::test_every_stream_and_the_values_are_the_model_s",
    "hf_clip": "teachers/test_clip_family.py::test_streams_and_embeddings_are_the_library_s",
}


def test_every_registered_teacher_is_held_against_its_own_code() -> None:
    assert set(TEACHERS.names()) == set(COVERED), "add the new teacher and its test to COVERED"
    for file, test in (place.split("::") for place in COVERED.values()):
        assert f"def {test}(" in (Path(__file__).parents[1] / file).read_text(), test


@contextmanager
def after_each(blocks: Any) -> Iterator[list[Tensor]]:
    """What each block returned, by the model's own forward."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def assert_same_stream(teacher: Teacher, images: Tensor, logits: Tensor, streams: list[Tensor]) -> None:
    tower = teacher.view.towers["image"]
    output = teacher(images, {"image": Capture(hidden=frozenset(tower.ends))})
    found = output.stream.hidden
    assert output.logits is not None and len(tower.ends) == len(streams) and list(found) == list(tower.ends)
    torch.testing.assert_close(output.logits(), logits, rtol=1e-5, atol=1e-5)
    for end, stream in zip(tower.ends, streams, strict=True):
        assert stream.shape[1] == tower.layout.length
        torch.testing.assert_close(found[end], stream, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", TIMM)
def test_timm_view_equals_timm(case: str, make_vit: Callable[..., Any]) -> None:
    model = make_vit(**TIMM[case])
    images = images_for(TIMM[case])
    with torch.no_grad(), after_each(model.blocks) as streams:
        logits = model(images)
    assert logits.std() > 0.1, "a test of nothing"
    assert_same_stream(adapt_teacher(model), images, logits, streams)


def write_hugging_face(folder: Path, case: str, randomise: Callable[..., None]) -> nn.Module:
    import transformers

    config_class, model_class, options = HUGGING_FACE[case]
    config = getattr(transformers, config_class)(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=7,
        **options,
    )
    model = getattr(transformers, model_class)(config)
    randomise(model)
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_hugging_face_view_equals_transformers(
    case: str, tmp_path: Path, randomise: Callable[..., None], gray_images: Tensor
) -> None:
    from transformers import AutoModelForImageClassification  # noqa: F401  (the import is what costs time)

    model: Any = write_hugging_face(tmp_path, case, randomise)
    teacher = TEACHERS["hf_vit"](model=str(tmp_path)).build()
    body = model.vit if hasattr(model, "vit") else model.deit
    layers = body.layers if hasattr(body, "layers") else body.encoder.layer
    with torch.no_grad(), after_each(layers) as streams:
        output = model(gray_images, output_hidden_states=True)
    assert_same_stream(teacher, gray_images, output.logits, streams)
    # transformers lists the embeddings first; its last entry may already be normalised
    for mine, theirs in zip(streams[:-1], output.hidden_states[1:-1], strict=True):
        assert torch.equal(mine, theirs)
    layout = teacher.view.towers["image"].layout
    assert (layout.special[-1][0] == "dist") == case.startswith("deit")


def test_auto_is_the_teacher_it_finds(
    tmp_path: Path, randomise: Callable[..., None], gray_images: Tensor
) -> None:
    model: Any = write_hugging_face(tmp_path, "vit", randomise)
    teacher = TEACHERS["auto"](model=str(tmp_path)).build()
    with torch.no_grad():
        torch.testing.assert_close(teacher(gray_images).logits(), model(gray_images).logits)


class MnistVit(nn.Module):
    """The checkpoint's description, written anew on nn.MultiheadAttention: doubled projections, one norm."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state
        width = state["embedding.cls_token"].shape[-1]
        self.attention = nn.ModuleList()
        for k in range(5):
            attention = nn.MultiheadAttention(width, 7, batch_first=True)
            prefix = f"layers.{k}.multihead_attention.multihead_attention."
            attention.load_state_dict(
                {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            )
            self.attention.append(attention)
        self.eval()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        s = self.state
        patches = F.conv2d(
            images, s["embedding.div_img.weight"], s["embedding.div_img.bias"], stride=7
        ).flatten(2)
        cls = s["embedding.cls_token"].expand(len(images), -1, -1)
        x = torch.cat([cls, patches.mT], dim=1) + s["embedding.position_div_imgs"]
        streams = []
        for k, attention in enumerate(self.attention):
            at = f"layers.{k}."
            norm = (s[f"{at}norm.weight"], s[f"{at}norm.bias"])
            n = F.layer_norm(x, x.shape[-1:], *norm)
            q, key, v = (
                self.linear(f"{at}multihead_attention.{name}", n) for name in ("query", "key", "value")
            )
            x = x + attention(q, key, v)[0]
            n = F.layer_norm(x, x.shape[-1:], *norm)
            x = x + self.linear(f"{at}FFL.3", F.gelu(self.linear(f"{at}FFL.0", n)))
            streams.append(x)
        return self.linear("classifer", x[:, 0]), streams


@pytest.mark.shared_data
def test_mnist_view_equals_multihead_attention(shared_data: Path) -> None:
    path = shared_data / "checkpoints" / "vit_mnist_mit" / "vit_mnist_model.pth"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    teacher = TEACHERS["vit_mnist_mit"](checkpoint=str(path)).build()
    state = torch.load(path, weights_only=True)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, streams = MnistVit(state)(images)
    assert_same_stream(teacher, images, logits, streams)
    assert teacher.num_params == sum(tensor.numel() for tensor in state.values())


@pytest.mark.shared_data
def test_mnist_teacher_reaches_its_author_s_accuracy(shared_data: Path) -> None:
    checkpoint = shared_data / "checkpoints" / "vit_mnist_mit" / "vit_mnist_model.pth"
    data = shared_data / "mnist" / "mnist.npz"
    if not (checkpoint.is_file() and data.is_file()):
        pytest.skip(f"{checkpoint} or {data} is absent")
    teacher = TEACHERS["vit_mnist_mit"](checkpoint=str(checkpoint)).build()
    with np.load(data) as arrays:
        images, labels = arrays["test_images"][:2000], arrays["test_labels"][:2000]
    looks = teacher.preprocessing
    pixels = (torch.from_numpy(images)[:, None].float() / 255 - looks.mean[0]) / looks.std[0]
    right = (teacher(pixels).logits().argmax(1).numpy() == labels).mean()
    assert right > 0.96  # 98.09 % of the whole test set; its first half is the harder one


def test_observer_sees_streams_values_and_neurons(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    model = make_vit()
    teacher = adapt_teacher(model)  # before the hooks: it runs the model once
    seen: dict[tuple[str, int, str], Tensor] = {}
    inputs: dict[tuple[str, int, str], Tensor] = {}

    def observe(tower: str, sublayer: int, name: str, tensor: Tensor) -> None:
        seen[tower, sublayer, name] = tensor

    for k, block in enumerate(model.blocks):
        block.attn.proj.register_forward_pre_hook(
            lambda _, args, k=k: inputs.__setitem__(("image", 2 * k, "values"), args[0])
        )
        block.mlp.fc2.register_forward_pre_hook(
            lambda _, args, k=k: inputs.__setitem__(("image", 2 * k + 1, "neurons"), args[0])
        )
        block.register_forward_hook(
            lambda _, __, y, k=k: inputs.__setitem__(("image", 2 * k + 1, "stream"), y)
        )
    with torch.no_grad():
        model(gray_images)
        teacher.view.run({"image": gray_images}, observe=observe)
    assert len(inputs) == 9
    for key, expected in inputs.items():
        torch.testing.assert_close(seen[key], expected, rtol=1e-5, atol=1e-5)
    told = {name for _, s, name in seen if s % 2 == 0}, {name for _, s, name in seen if s % 2}
    assert told[0] == {"input", "q", "k", "values", "output", "stream"}
    assert told[1] == {"input", "neurons", "output", "stream"}


def test_mixers_are_what_attention_and_mlp_saw_and_made(
    make_vit: Callable[..., Any], gray_images: Tensor
) -> None:
    model = make_vit(qk_norm=True, init_values=0.5)
    teacher = adapt_teacher(model)  # before the hooks: it runs the model once
    block, made = model.blocks[1], dict[tuple[int, str], Tensor]()
    block.register_forward_pre_hook(lambda _, args: made.__setitem__((2, "input"), args[0]))
    block.ls1.register_forward_hook(lambda _, __, y: made.__setitem__((2, "output"), y))
    block.norm2.register_forward_pre_hook(lambda _, args: made.__setitem__((3, "input"), args[0]))
    block.ls2.register_forward_hook(lambda _, __, y: made.__setitem__((3, "output"), y))
    block.attn.q_norm.register_forward_hook(lambda _, __, y: made.__setitem__((2, "q"), y))
    block.attn.k_norm.register_forward_hook(lambda _, __, y: made.__setitem__((2, "k"), y))
    with torch.no_grad():
        model(gray_images)
    wanted = {2: frozenset(("input", "output", "q", "k")), 3: frozenset(("input", "output"))}
    mixers = teacher(gray_images, {"image": Capture(mixers=wanted)}).stream.mixers
    assert {(s, name) for s, found in mixers.items() for name in found} == made.keys()
    for (s, name), expected in made.items():
        torch.testing.assert_close(mixers[s][name], expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_kept_that_nobody_asked_for(make_teacher: Callable[..., Any], gray_images: Tensor) -> None:
    teacher = make_teacher()
    for captures in (None, {}, {"text": Capture(hidden=frozenset({0}))}):
        stream = teacher(gray_images, captures).stream
        assert stream.hidden == stream.mixers == stream.branches == {} and stream.mask is None
    one = teacher(gray_images, {"image": Capture(mixers={2: frozenset(("k",))})}).stream
    assert list(one.mixers) == [2] and list(one.mixers[2]) == ["k"]


def test_sublayers_have_numbers_and_names(make_vit: Callable[..., Any]) -> None:
    tower = adapt_teacher(make_vit()).view.towers["image"]
    assert tower.kinds == ("attention", "mlp") * 3 and tower.ends == (1, 3, 5)
    assert tower.names[:3] == ("blocks.0.attention", "blocks.0.mlp", "blocks.1.attention")
    # blocks of attention alone, or with several MLPs
    assert block_ends(("attention", "attention", "mlp", "mlp", "attention")) == (0, 3, 4)


def test_map_tensors_reaches_every_tensor(make_vit: Callable[..., Any]) -> None:
    view = adapt_teacher(make_vit(init_values=0.1, qk_norm=True, reg_tokens=1)).view
    zero = map_tensors(view, torch.zeros_like)
    count: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        count.append(tensor)
        return tensor

    map_tensors(zero, collect)
    # per block: 2 norms, 2 per-head norms and 2 scales (2 + 2, 2 + 2, 1 + 1), 6 linears
    assert len(count) == 4 + 3 * (4 + 4 + 2 + 12) + 2 + 2
    assert not any(tensor.any() for tensor in count)
    before, after = view.towers["image"], zero.towers["image"]
    assert after.layout == before.layout and after.sublayers[0].heads == 4
    assert after.kinds == before.kinds and zero.heads["image"].readouts[0][0] == "cls"
