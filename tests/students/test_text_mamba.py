"""A TextMamba is its teacher's text tower but for the mixers, and padding is nothing to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from text_towers import (
    EMBEDDED,
    EOT,
    IMAGE,
    TEACHERS,
    TEXT,
    VOCABULARY,
    WORDS,
    Attends,
    cloned,
    of_open_clip,
    of_siglip,
    parts,
    texts,
    viewed,
)
from torch import Tensor, nn

from transmamba import UserError
from transmamba.core.layout import Sequence
from transmamba.core.output import Capture, Context
from transmamba.core.tower import Tower
from transmamba.students.text_mamba import TextMamba, TextShape, text_shape
from transmamba.views.sublayers import Affine, Attention, Mlp
from transmamba.views.view import View

SHAPE: dict[str, Any] = dict(
    context_length=WORDS, vocab_size=VOCABULARY, width=24, heads=3, layers=3, embed_dim=EMBEDDED, mlp_width=40
)


def made(randomise: Callable[..., None], **change: Any) -> TextMamba:
    student = TextMamba(TextShape(**{**SHAPE, **change}))
    randomise(student, seed=4)
    return student.eval()


# --- from a teacher ---


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("case", TEACHERS)
@torch.no_grad()
def test_with_attention_put_back_it_is_the_teacher(
    case: str, fold: bool, randomise: Callable[..., None]
) -> None:
    model = TEACHERS[case]()
    randomise(model)
    view = viewed(model, fold)
    student, _, dropped = cloned(view)
    tower, _ = parts(view)
    assert not dropped
    for block, s in zip(student.blocks, student.sources(tower.kinds).values(), strict=True):
        block.attn = Attends(tower.sublayers[s])  # type: ignore[arg-type]
    text = texts()
    if hasattr(model, "encode_text"):
        wanted = model.encode_text(text, normalize=True)
    else:
        wanted = F.normalize(model.get_text_features(input_ids=text).pooler_output, dim=-1)
    assert wanted.std(dim=0).mean() > 0.01, "a test of nothing"
    torch.testing.assert_close(F.normalize(student(text), dim=-1), wanted, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_all_but_the_mixers_is_copied_bit_for_bit(randomise: Callable[..., None]) -> None:
    model: Any = of_open_clip(quick_gelu=True)
    randomise(model)
    student, takes, _ = cloned(viewed(model))
    text, mine = model.text, student.state_dict()
    assert torch.equal(mine["token_embedding.weight"], text.token_embedding.weight)
    assert torch.equal(mine["positional_embedding"], text.positional_embedding)
    assert torch.equal(mine["norm.weight"], text.ln_final.weight)
    assert torch.equal(mine["norm.bias"], text.ln_final.bias)
    assert torch.equal(mine["text_projection.weight"], text.text_projection.T)
    for k, block in enumerate(text.transformer.resblocks):
        theirs = {
            "norm1": block.ln_1,
            "norm2": block.ln_2,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
            "attn.proj": block.attn.out_proj,
        }
        for name, module in theirs.items():
            assert torch.equal(mine[f"blocks.{k}.{name}.weight"], module.weight), name
            assert torch.equal(mine[f"blocks.{k}.{name}.bias"], module.bias), name
        assert torch.equal(mine[f"blocks.{k}.attn.qkv.weight"], block.attn.in_proj_weight)
        assert torch.equal(mine[f"blocks.{k}.attn.qkv.bias"], block.attn.in_proj_bias)
    fresh = mine.keys() - {take.target for take in takes}
    new = ("attn.conv1d.weight", "attn.conv1d.bias", "attn.gate.weight", "attn.gate.bias", "attn.A_log")
    new += ("attn.dt_proj.weight", "attn.dt_proj.bias")
    assert fresh == {f"blocks.{k}.{name}" for k in range(3) for name in new}


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_without_its_mixer_a_block_is_the_teacher_s_mlp(gated: bool, randomise: Callable[..., None]) -> None:
    model = of_open_clip()
    randomise(model)
    view = viewed(model)
    if gated:  # no teacher that we know has such a text tower
        view = with_gates(view)
    student, _, _ = cloned(view)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    for k, block in enumerate(student.blocks):
        mixer: Any = block.attn
        mixer.proj.weight.zero_()
        mixer.proj.bias.zero_()
        mlp = parts(view)[0].sublayers[2 * k + 1]
        assert isinstance(mlp, Mlp) and (mlp.gate is not None) == gated
        wanted = x + mlp(x, Context(), lambda name, tensor: None)
        torch.testing.assert_close(block(x, Context())[0], wanted, rtol=1e-6, atol=1e-6)


def with_gates(view: View) -> View:
    tower = view.towers["text"]
    sublayers = tuple(
        dataclasses.replace(sublayer, gate=Affine(sublayer.up.weight.flip(0)))
        if isinstance(sublayer, Mlp)
        else sublayer
        for sublayer in tower.sublayers
    )
    return dataclasses.replace(view, towers={"text": dataclasses.replace(tower, sublayers=sublayers)})


def test_depth_and_prefix() -> None:
    view = viewed(of_open_clip())
    student = TextMamba(TextShape(**{**text_shape(view), "layers": 2, "context_length": 7}))
    takes = list(student.plan(*parts(view), prefix="text."))
    assert {take.target for take in takes} <= {f"text.{name}" for name, _ in student.named_parameters()}  # type: ignore[union-attr]
    assert student.sources(parts(view)[0].kinds) == {0: 0, 1: 4}
    blocks = {(take.layer, take.source.split(".")[1]) for take in takes if take.source.startswith("blocks")}
    assert blocks == {(0, "0"), (1, "2")}
    cut, _, _ = cloned(view, context_length=7)
    positions = parts(view)[0].embedding.positions  # type: ignore[union-attr]
    assert torch.equal(cut.positional_embedding, positions[:7])


def test_query_and_key_norms_are_dropped_by_name() -> None:
    _, _, dropped = cloned(viewed(of_open_clip(qk_norm=True)))
    assert [d.source for d in dropped][:2] == ["blocks.0.attention.q_norm", "blocks.0.attention.k_norm"]
    assert {d.why for d in dropped} == {"an SSD mixer has no query and key norms"} and len(dropped) == 6


@pytest.mark.parametrize(
    ("change", "line"),
    {
        "width": (dict(width=12), "keeps the teacher's width 24, but the student is 12 wide; narrower"),
        "heads": (dict(heads=4), r"3 heads of 8 channels, text_mamba 4 of 6"),
        "vocabulary": (dict(vocab_size=50), "60 tokens, text_mamba 50"),
        "positions": (dict(context_length=12), "12 positions, the teacher 9"),
        "epsilon": (dict(norm_eps=1e-6), "LayerNorms of epsilon 1e-05, text_mamba layernorm of 1e-06"),
        "pool": (dict(pool_type="last"), r"read by 'argmax' \(None\), text_mamba's by 'last'"),
        "mlp": (dict(mlp_width=30), r"\(96, False\), text_mamba of \(30, False\)"),
        "projection": (dict(proj_type="none", embed_dim=24), "proj_type 'none', the teacher a projection"),
    }.values(),
)
def test_what_differs_from_the_teacher_is_one_line(change: Any, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        cloned(viewed(of_open_clip()), **change)
    assert "\n" not in str(error.value)


def test_what_no_text_mamba_can_read_is_one_line() -> None:
    with pytest.raises(UserError, match="read by 'first'; a causal scan is read at the end"):
        text_shape(viewed(of_open_clip(pool_type="first", no_causal_mask=True)))
    view = viewed(of_open_clip())
    with pytest.raises(UserError, match="needs a teacher with a text tower; this one is an image model"):
        text_shape(type(view)({"image": view.towers["image"]}, view.heads))


def test_the_shape_follows_the_teacher_and_travels_as_json() -> None:
    shape = text_shape(viewed(of_siglip()))
    assert shape["act"] == "gelu_tanh" and shape["pool_type"] == "last" and shape["norm_eps"] == 1e-6
    assert (shape["mlp_width"], shape["layers"], shape["proj_bias"]) == (40, 2, True)
    made = TextShape(**shape)
    cfg = json.loads(json.dumps(made.text_cfg()))
    assert TextShape.of_text_cfg(shape["embed_dim"], cfg) == made
    cfg["transmamba"]["experts"] = 2
    with pytest.raises(UserError, match="has experts, which this version of transmamba does not know"):
        TextShape.of_text_cfg(24, cfg)
    with pytest.raises(ValueError, match=r"layers is 0; .*act is ''; write gelu"):
        TextShape(**{**SHAPE, "layers": 0, "act": ""})


# --- on its own ---


@pytest.mark.parametrize("pool", [dict(), dict(pool_type="eos", eos_id=EOT)])
@torch.no_grad()
def test_padding_and_neighbours_are_nothing_to_a_text(pool: Any, randomise: Callable[..., None]) -> None:
    student = made(randomise, **pool)
    text = texts()
    wanted = torch.cat([student(row[: (row == EOT).int().argmax() + 1][None]) for row in text])
    assert (wanted[0] - wanted[1]).norm() > 0.1, "a test of nothing"
    torch.testing.assert_close(student(text), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student(texts(padding=1)), wanted, rtol=1e-5, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(student(text[order]), wanted[order], rtol=1e-5, atol=1e-5)
    inputs = {"text": text, "text_mask": text != 0}
    masked = student.embed(student.run(inputs)[1], inputs)
    torch.testing.assert_close(masked, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_captures_of_a_tower(randomise: Callable[..., None]) -> None:
    student = made(randomise)
    assert isinstance(student, Tower) and student.layout == Sequence()
    inputs = {"text": texts(), "text_mask": texts() != 0}
    tokens = torch.tensor([3, 0])
    capture = Capture(
        hidden=frozenset({0, 2}), branches=frozenset({1}), mixers={1: frozenset({"B"})}, tokens=tokens
    )
    stream, end = student.run(inputs, capture)
    assert stream.mask is not None and torch.equal(stream.mask, inputs["text_mask"])
    assert set(stream.hidden) == {0, 2} and torch.equal(stream.hidden[2], end)
    x, context = student._embedded(inputs)
    x = student.blocks[0](x, context)[0]
    assert torch.equal(stream.hidden[0], x)
    after, mixed = student.blocks[1](x, context)
    (branches,) = stream.branches.values()
    assert branches.half is None and torch.equal(branches.merged, after[:, tokens])
    assert set(stream.mixers[1]) == {"B"} and torch.equal(stream.mixers[1]["B"], mixed.parts["B"])
    added, record = student.mixer(1, x, context, capture)
    block: Any = student.blocks[1]
    assert torch.equal(added, block.attn(block.norm1(x), context).output)
    assert record["B"].shape == (4, WORDS, student.parts["B"])


def test_what_it_cannot_read_is_refused(randomise: Callable[..., None]) -> None:
    student = made(randomise)
    with pytest.raises(UserError, match="texts of 10 tokens; text_mamba reads 9"):
        student(torch.ones(1, 10, dtype=torch.int64))
    with pytest.raises(UserError, match="text_segment: text_mamba makes one vector a row"):
        student.run({"text": texts(), "text_segment": torch.zeros(4, WORDS, dtype=torch.int32)})


def test_checkpointing_changes_no_gradient(randomise: Callable[..., None]) -> None:
    student, text = made(randomise).train(), texts()
    gradients, entered = [], []
    for checkpointed in (False, True):
        student.set_grad_checkpointing(checkpointed)
        student.zero_grad()
        hook = student.blocks[0].register_forward_pre_hook(lambda *_: entered.append(checkpointed))  # noqa: B023
        student(text).square().sum().backward()
        hook.remove()
        gradients.append([parameter.grad for parameter in student.parameters()])
    assert entered == [False, True, True], "a checkpointed block runs again for its gradient"
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]
    assert all(grad is not None and grad.norm() > 0 for grad in gradients[0])


def trained(tower: nn.Module) -> set[tuple[str, bool]]:
    """(its part by our names, whether it is trained) of every parameter."""
    found = set()
    for name, parameter in tower.named_parameters():
        ours = name.replace("transformer.resblocks", "blocks").replace("ln_final", "norm").split(".")
        part = ".".join(ours[: 2 if ours[0] == "blocks" else 1])
        found.add((part, parameter.requires_grad))
    return found


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 5, 9])
def test_it_is_locked_as_open_clip_s_own_tower(layers: int, randomise: Callable[..., None]) -> None:
    student, theirs = made(randomise), open_clip.CustomTextCLIP(EMBEDDED, IMAGE, TEXT).text
    student.lock(layers)
    theirs.lock(layers)
    assert trained(student) == trained(theirs) and len(trained(student)) == 7
    with pytest.raises(ValueError, match="freeze_layer_norm=False"):
        student.lock(1, freeze_layer_norm=False)


def test_a_view_s_attention_is_not_the_mixer(randomise: Callable[..., None]) -> None:
    """So that the first test, which puts it back, tests something."""
    model = of_open_clip()
    randomise(model)
    view = viewed(model)
    student, _, _ = cloned(view)
    with torch.no_grad():
        mine: Tensor = F.normalize(student(texts()), dim=-1)
        theirs = view.run({"text": texts()}).embeddings["text"]
    assert isinstance(parts(view)[0].sublayers[0], Attention)
    assert (mine - theirs).norm(dim=-1).min() > 0.01
