"""Where a hybrid's Mamba-2 layers start: the teacher's Q, K, V, O against linear attention written out."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hybrids import hybrid, llama, make, qwen3, relative, texts
from torch import Tensor

from transmamba import adapt_teacher, convert
from transmamba.core.batch import Batch
from transmamba.core.output import Capture, Context
from transmamba.students.hybrid_lm.mixer import OPEN_GATE, HybridMixer
from transmamba.students.hybrid_lm.start import _choose_half_lives
from transmamba.views.sublayers import Attention

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))

# heads of 4 channels, whose root is exact
TEACHERS: dict[str, dict[str, Any]] = {
    "MHA": dict(num_attention_heads=8, num_key_value_heads=8),
    "GQA": dict(num_attention_heads=8, num_key_value_heads=2),
    "MQA": dict(num_attention_heads=8, num_key_value_heads=1),
    "GQA, biases": dict(num_attention_heads=8, num_key_value_heads=2, attention_bias=True),
    "heads beyond the teacher's": dict(hidden_size=48, head_dim=16),
    "norms of q and k": dict(num_attention_heads=8, num_key_value_heads=2, head_dim=4, normed=True),
}
TAP = 2.0**-13


def linear_attention(attention: Attention, u: Tensor) -> Tensor:
    """o of sum over s <= t of v_s (k_s q_t) / sqrt(P), head by head and token by token, in float64; without
    o's bias; q and k normalised where the teacher's are. u (L, D)."""

    def projected(part: Any, heads: int) -> Tensor:
        bias = 0.0 if part.bias is None else part.bias.double()
        return (u @ part.weight.double().mT + bias).unflatten(-1, (heads, -1))

    shared = attention.heads // (attention.kv_heads or attention.heads)
    q = projected(attention.q, attention.heads)
    k, v = (projected(part, attention.heads // shared) for part in (attention.k, attention.v))
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = (
            normed(x, norm.weight, norm.eps) for x, norm in ((q, attention.q_norm), (k, attention.k_norm))
        )
    read = torch.zeros_like(q)
    for h in range(attention.heads):
        state = torch.zeros(q.shape[-1], q.shape[-1], dtype=torch.float64)
        for t in range(len(u)):
            state = state + torch.outer(v[t, h // shared], k[t, h // shared])
            read[t, h] = state @ q[t, h] / math.sqrt(q.shape[-1])
    return read.flatten(1) @ attention.o.weight.double().mT


def normed(x: Tensor, weight: Any, eps: float) -> Tensor:
    """x (..., P) over the root of its mean square, times the weight."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def ideal(mixer: HybridMixer, u: Tensor) -> Tensor:
    """The same by a mixer's own tensors as the stock class lays them out, [z | x | B | C | dt], without
    decay, SiLU, gate and norm; u (L, D)."""
    heads, size = mixer.heads, mixer.head_dim
    inner, tensors = heads * size, {name: p.double() for name, p in mixer.named_parameters()}
    tap = tensors["conv1d.weight"][:, 0, -1]
    made = u @ tensors["in_proj.weight"].mT[:, inner : 4 * inner] + tensors["conv1d.bias"] / tap
    x, B, C = made.unflatten(-1, (3, heads, size)).unbind(-3)
    if "B_norm.weight" in tensors:
        B, C = (normed(y, tensors[f"{n}_norm.weight"], mixer.norm.eps) for n, y in (("B", B), ("C", C)))
    read, state = torch.zeros_like(x), torch.zeros(heads, size, size, dtype=torch.float64)
    for t in range(len(u)):
        state = state + x[t, :, :, None] * B[t, :, None, :]
        read[t] = (state * C[t, :, None, :]).sum(-1)
    return read.flatten(1) @ tensors["out_proj.weight"].mT


def started(**changes: Any) -> tuple[Attention, HybridMixer]:
    """The teacher's second layer, and the student's, in whose convolution a power of 2 is exact."""
    made = dict(changes)
    model = qwen3(**made) if made.pop("normed", False) else llama(**made)
    attention = adapt_teacher(model).view.towers["decoder"].sublayers[2]
    assert isinstance(attention, Attention)
    return attention, hybrid(model, conv_tap=TAP).layer(1).mamba


def tokens(attention: Attention) -> Tensor:
    """(12, D)"""
    seeded = torch.Generator().manual_seed(2)
    return torch.randn(12, attention.q.weight.shape[1], dtype=torch.float64, generator=seeded)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_mapped_tensors_are_linear_attention(name: str) -> None:
    attention, mixer = started(**TEACHERS[name])
    u = tokens(attention)
    with torch.no_grad():
        assert relative(ideal(mixer, u), linear_attention(attention, u)) < 1e-13


@pytest.mark.parametrize("name", TEACHERS)
def test_each_head_has_its_rows_bit_for_bit(name: str) -> None:
    attention, mixer = started(**TEACHERS[name])
    size, count = attention.head_width, attention.heads
    shared = count // (attention.kv_heads or count)
    rows = mixer.in_proj.weight.unflatten(0, (-1, 1))[:, 0]
    for h in range(count):
        for part, affine, source in (
            (1, attention.v, h // shared),
            (2, attention.k, h // shared),
            (3, attention.q, h),
        ):
            at = part * mixer.inner + h * size
            wanted, factor = affine.weight[source * size : (source + 1) * size], 1.0
            factor = 1 / math.sqrt(size) if part == 3 and attention.q_norm is None else 1.0
            assert torch.equal(rows[at : at + size], wanted * factor)
            if affine.bias is not None:
                bias = mixer.conv1d.bias
                assert bias is not None
                own = bias[at - mixer.inner : at - mixer.inner + size]
                assert torch.equal(own, affine.bias[source * size : (source + 1) * size] * factor * TAP)
        columns = mixer.out_proj.weight[:, h * size : (h + 1) * size]
        assert torch.equal(columns, attention.o.weight[:, h * size : (h + 1) * size])
    if attention.q_norm is not None and attention.k_norm is not None:
        assert torch.equal(mixer.C_norm.weight, attention.q_norm.weight / math.sqrt(size))  # type: ignore[operator]
        assert torch.equal(mixer.B_norm.weight, attention.k_norm.weight)  # type: ignore[arg-type]
    assert not mixer.out_proj.weight[:, count * size :].any()
    assert not rows[4 * mixer.inner :].any(), "dt is the same for every token"


@pytest.mark.parametrize("name", TEACHERS)
def test_a_small_tap_makes_the_mixer_linear_attention(name: str) -> None:
    """With the gate open and without decay; SiLU's bend is of the order of the tap times what it reads."""
    attention, mixer = started(**TEACHERS[name])
    mixer, neutral = mixer.double(), copy.deepcopy(mixer)
    neutral.neutral_()
    u = tokens(attention)[None]
    u[..., 0] = 1.0
    with torch.no_grad():
        mixer.norm.weight.copy_(neutral.norm.weight)  # calibration has scaled it
        mixer.rows("z").zero_()[:, 0] = OPEN_GATE
        mixer.A_log.fill_(-math.inf)
        made = mixer(u, Context()).output[0]
        assert relative(made, linear_attention(attention, u[0])) < 5e-3
        mixer.A_log.fill_(0.0)
        assert relative(mixer(u, Context()).output[0], linear_attention(attention, u[0])) > 0.1


def test_a_state_halves_in_the_half_life() -> None:
    for half_life in (8.0, 20.0):
        mixer = hybrid(llama(), half_life=half_life).layer(0).mamba
        with torch.no_grad():
            step, rate = F.softplus(mixer.dt_bias.double()), mixer.A_log.double().exp()
        assert (-rate * step * half_life).exp().tolist() == pytest.approx([0.5] * mixer.heads)
        assert step.tolist() == pytest.approx([1.0] * mixer.heads) and not mixer.D.any()
        taps = mixer.conv1d.weight[:, 0]
        assert torch.equal(taps, torch.tensor([0, 0, 0, 0.1]).expand_as(taps))


def test_what_is_kept_is_the_teacher_s() -> None:
    model = make("Qwen2 (QKV biases)")
    student = hybrid(model, 1)
    mine, theirs = student.state_dict(), model.state_dict()
    for i in range(3):
        mlp = [theirs[f"model.layers.{i}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        assert torch.equal(mine[f"model.layers.{i}.shared_mlp.input_linear.weight"], torch.cat(mlp))
        for name in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{i}.{name}.weight"
            assert torch.equal(mine[name], theirs[name])
    for name in ("q_proj.weight", "k_proj.bias", "v_proj.bias", "o_proj.weight"):
        name = f"model.layers.1.self_attn.{name}"
        assert torch.equal(mine[name], theirs[name])
    assert not mine["model.layers.1.self_attn.o_proj.bias"].any()
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(mine[name], theirs[name])


def test_padding_has_no_say_in_a_start() -> None:
    model, text = llama(), texts(4, 24)
    mask = torch.ones_like(text, dtype=torch.bool)
    mask[:, 20:] = False
    starts = []
    for words in (text, torch.where(mask, text, texts(4, 24, seed=9)), texts(4, 24, seed=9)):
        batch = Batch({"text": words, "text_mask": mask}, {}, torch.arange(4), {"samples": 4})
        starts.append([*hybrid(model, calibration=[batch]).parameters()])
    same = [all(map(torch.equal, starts[0], other)) for other in starts[1:]]
    assert same == [True, False]


def test_what_a_layer_adds_is_nearer_to_attention_than_nothing_is() -> None:
    """Of random numbers too, whose scan may point anywhere; heads beyond the teacher's, whose columns are 0,
    have a factor that a gradient passes."""
    for model in (llama(), llama(head_dim=12), qwen3()):
        text = texts(8, 40)
        batch = Batch({"text": text}, {}, torch.arange(8), {"samples": 8})
        student, teacher = hybrid(model, calibration=[batch]), adapt_teacher(model)
        capture = Capture(mixers=dict.fromkeys((0, 2, 4), frozenset(("input", "output"))))
        taught = teacher({"text": text}, {"decoder": capture}).streams["decoder"].mixers
        for k in range(3):
            wanted = taught[2 * k]["output"]
            with torch.no_grad():
                made = student.mixer(k, taught[2 * k]["input"], Context(), Capture())[0]
            assert (made - wanted).square().sum() < wanted.square().sum()
            assert student.layer(k).mamba.norm.weight.abs().min() > 0


def test_without_texts_the_same_words_are_drawn() -> None:
    first, second = (hybrid(llama(), 1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.layer(0).mamba.rows("z").abs().max() > 0


@torch.no_grad()
def divergence(student: Any, model: Any, text: Tensor) -> float:
    """KL of the student's next words from the teacher's, in nats a token."""
    wanted, made = (F.log_softmax(each.double(), dim=-1) for each in (model(text).logits, student(text)))
    return float((wanted.exp() * (wanted - made)).sum(dim=-1).mean())


def test_a_hybrid_of_stories260k_starts_where_others_saw_it(shared_data: Path) -> None:
    """Three of five layers keep attention. Measured elsewhere, with one scale a layer fitted: 0.75 to 0.98
    nats by tap and norm; and a gate that is constant to 0.09 to 0.12 on texts it has not seen."""
    from test_real_decoders import stories

    model, _ = stories(shared_data / "stories260k")
    torch.manual_seed(0)
    start = torch.ones(12, 1, dtype=torch.long)
    text = model.generate(start, attention_mask=start, max_new_tokens=159, do_sample=True, pad_token_id=0)
    batch = Batch({"text": text[:4]}, {}, torch.arange(4), {"samples": 4})
    teacher, kept = adapt_teacher(model), dict[str, Any](attention_layers=[0, 2, 4])
    student = hybrid(model, 0, 2, 4, calibration=[batch])
    assert 0.6 < divergence(student, model, text[4:]) < 1.0
    # words drawn at random tell nearly as much
    assert divergence(convert(teacher, "hybrid_lm", **kept)[0], model, text[4:]) < 1.1
    capture = Capture(mixers=dict.fromkeys((2, 6), frozenset(("input", "output"))))
    taught = teacher({"text": text}, {"decoder": capture}).streams["decoder"].mixers
    for k in (1, 3):
        inputs, wanted = taught[2 * k]["input"], taught[2 * k]["output"]
        with torch.no_grad():
            layer = student.layer(k)
            gates = layer.input_layernorm(inputs[4:]) @ layer.mamba.rows("z").mT / OPEN_GATE
            made = student.mixer(k, inputs[:4], Context(), Capture())[0]
        assert torch.equal(gates[..., :1].expand_as(gates), gates)
        assert float(gates.mean()) == pytest.approx(1.0, abs=0.05) and float(gates.std()) < 0.2
        nearest = (made * wanted[:4]).sum() / made.square().sum()
        assert float(nearest) == pytest.approx(1.0, abs=0.02)


def decaying_attention(attention: Attention, u: Tensor, half_lives: Tensor, skips: Tensor) -> Tensor:
    """(L, H P): of each head, sum over s <= t of 2^-((t - s) / half-life) v_s (k_s q_t), and skip v_t, in
    float64, from the teacher's own matrices; u (L, D) what the projections read."""
    shared = attention.heads // (attention.kv_heads or attention.heads)
    parts = [(u @ part.weight.double().mT) for part in (attention.q, attention.k, attention.v)]
    q, k, v = (part.unflatten(-1, (-1, len(attention.q.weight) // attention.heads)) for part in parts)
    k, v = (part.repeat_interleave(shared, dim=1) for part in (k, v))
    steps = torch.arange(len(u))[:, None] - torch.arange(len(u))
    decay = torch.where(steps >= 0, 2.0 ** (-steps / half_lives[:, None, None]), 0.0)
    scores = torch.einsum("thp,shp->hts", q, k) * decay
    return (torch.einsum("hts,shp->thp", scores, v) + skips[:, None] * v).flatten(1)


def test_fitted_half_lives_are_those_that_made_the_values() -> None:
    model = llama(num_attention_heads=8, num_key_value_heads=2)
    attention = adapt_teacher(model).view.towers["decoder"].sublayers[2]
    assert isinstance(attention, Attention)
    student = hybrid(model, conv_tap=0.01).double()
    x = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[..., 0], x[..., 1:] = 1.0, F.normalize(x[..., 1:], dim=-1) * 31**0.5  # of mean square 1, as normed
    half_lives = torch.tensor([1.0, 4.0, 32.0, 2.0, 0.5, 64.0, 8.0, 16.0], dtype=torch.float64)
    with torch.no_grad():
        normed = student.layer(1).input_layernorm(x)
        wanted = [
            decaying_attention(attention, row, half_lives, torch.linspace(-1, 1, 8).double())
            for row in normed
        ]
        student.layer(1).mamba.rows("z").zero_()[:, 0] = OPEN_GATE / normed[0, 0, 0]  # open alike for all
        rows = [(row[None], Context()) for row in student.layer(1).input_layernorm(x)]
        _choose_half_lives(student.layer(1).mamba, lambda: rows, [row[None] for row in wanted])
    found = math.log(2) / student.layer(1).mamba.A_log.detach().exp()
    assert found.tolist() == pytest.approx(half_lives.tolist())


def test_a_fitted_start_is_nearer_to_attention() -> None:
    for model in (llama(), llama(head_dim=12)):
        text = texts(8, 40)
        batch = Batch({"text": text}, {}, torch.arange(8), {"samples": 8})
        capture = Capture(mixers=dict.fromkeys((0, 2, 4), frozenset(("input", "output"))))
        taught = adapt_teacher(model)({"text": text}, {"decoder": capture}).streams["decoder"].mixers
        students = [hybrid(model, calibration=[batch], half_life=each) for each in (8.0, "fitted")]
        for k in range(3):
            wanted = taught[2 * k]["output"]
            with torch.no_grad():
                usual, fitted = (
                    (s.mixer(k, taught[2 * k]["input"], Context(), Capture())[0] - wanted).square().sum()
                    for s in students
                )
            assert fitted < 0.97 * usual
            mixer = students[1].layer(k).mamba
            assert mixer.D.abs().max() > 0 and torch.isfinite(mixer.D).all()
            assert len(mixer.A_log.unique()) > 1 and mixer.norm.weight.abs().min() > 0
