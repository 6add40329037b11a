"""Matrix orientation: attention's matrix as transformers gives it, the scan's as a recurrence makes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert
from transmamba.core.batch import Batch
from transmamba.core.layout import Sequence
from transmamba.core.output import Capture, Context, Output, Stream
from transmamba.distillation.distiller import Distiller
from transmamba.distillation.signals import Signals, StreamGeometry
from transmamba.losses.mixing_matrix import MixingMatrix
from transmamba.students.hybrid_lm import mixer as scanned

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from hybrids import hybrid, llama, moved, qwen3, texts

LENGTH = 30
TEACHERS: dict[str, Any] = {
    "MHA": lambda: llama(num_key_value_heads=4),
    "GQA": llama,
    "MQA, biases": lambda: llama(num_key_value_heads=1, attention_bias=True),
    "heads beyond the teacher's": lambda: llama(hidden_size=48, head_dim=16),
    "norms of q and k": qwen3,
}
ROWS = ("whole", "padded before", "padded behind", "packed")


def batch_of(kind: str) -> Batch:
    """Two rows, of which kind `padded` has one with 11 real tokens, `packed` three documents in each."""
    inputs, at = {"text": texts(2, LENGTH)}, torch.arange(LENGTH)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    if kind.startswith("padded"):
        real[1] = at >= LENGTH - 11 if kind.endswith("before") else at < 11
        inputs["text_mask"] = real
    if kind == "packed":
        ends = torch.tensor([[4, 17], [9, 25]])
        inputs["text_segment"] = (at >= ends[..., None]).sum(dim=1).int()
    return Batch(inputs, {}, torch.arange(2), {"samples": 2, "tokens": int(real.sum())})


def documents(batch: Batch) -> list[tuple[int, Tensor]]:
    """(row, its tokens) of each document."""
    segments = batch.inputs.get("text_segment", torch.zeros(2, LENGTH, dtype=torch.int32))
    real = batch.inputs.get("text_mask", torch.ones(2, LENGTH, dtype=torch.bool))
    return [
        (row, ((segments[row] == n) & real[row]).nonzero()[:, 0])
        for row in range(2)
        for n in segments[row].unique()
    ]


@torch.no_grad()
def of_attention(model: Any, batch: Batch, layer: int) -> Tensor:
    """(B, H, L, L) in float64: transformers' own, of each document by itself."""
    model.set_attn_implementation("eager")
    heads = model.config.num_attention_heads
    matrix = torch.zeros(2, heads, LENGTH, LENGTH, dtype=torch.float64)
    for row, at in documents(batch):
        made = model(batch.inputs["text"][row, at][None], output_attentions=True).attentions[layer]
        matrix[row][:, at[:, None], at] = made[0].double()
    return matrix


@torch.no_grad()
def of_the_scan(student: Any, layer: int, hidden: Tensor, batch: Batch) -> Tensor:
    """(B, all heads, L, L) in float64, column j what the recurrence makes of a 1 at token j and 0 elsewhere,
    of what the mixer hands its kernel; the kernel makes the same of these."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    real, scanned.ssd_scan = scanned.ssd_scan, lambda *a, **k: seen.append((a, k)) or real(*a, **k)
    try:
        student.mixer(layer, hidden, Context.of(batch.inputs), Capture())
    finally:
        scanned.ssd_scan = real
    ((_, delta, A, B, C), options) = seen[0]
    dt = torch.nn.functional.softplus(delta.double() + options["delta_bias"].double())
    A, B, C, D = A.double(), B.double(), C.double(), options["D"].double()
    x = torch.eye(LENGTH, dtype=torch.float64)[None, :, None].expand(2, -1, len(A), -1)
    state = torch.zeros(2, len(A), LENGTH, B.shape[-1], dtype=torch.float64)
    rows, segments = [], options["seq_idx"]
    for t in range(LENGTH):
        if t and segments is not None:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        state = state * (dt[:, t] * A).exp()[..., None, None]
        state = state + dt[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, :, None]
        rows.append((state * C[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    matrix = torch.stack(rows, dim=2)
    by_kernel = real(x.float(), delta, A.float(), B.float(), C.float(), **options).transpose(1, 2)
    assert torch.allclose(by_kernel.double(), matrix, atol=1e-5)
    return matrix


def teacher_inputs(model: Any, batch: Batch) -> dict[int, Tensor]:
    capture = Capture(mixers={s: frozenset(("input",)) for s in (0, 4)})
    taught = adapt_teacher(model)(batch.inputs, {"decoder": capture}).streams["decoder"].mixers
    return {s // 2: inner["input"] for s, inner in taught.items()}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", TEACHERS)
def test_the_matrices_by_brute_force(name: str, rows: str) -> None:
    """Over heads and the two converted layers, in chunks that do not divide the row, by what is real."""
    model, batch = TEACHERS[name](), batch_of(rows)
    student = moved(hybrid(model, 1))
    value, _ = Distiller(student, adapt_teacher(model), [MixingMatrix(chunk=7)]).loss(batch)
    real = batch.inputs.get("text_mask", torch.ones(2, LENGTH, dtype=torch.bool))
    errors = []
    for layer, hidden in teacher_inputs(model, batch).items():
        wanted = of_attention(model, batch, layer)
        made = of_the_scan(student, layer, hidden, batch)[:, : wanted.shape[1]]
        made = made * real[:, None, :, None] * real[:, None, None, :]
        error = (made - wanted).square().sum((2, 3)) / wanted.square().sum((2, 3))
        errors.append((error.mean(1) * real.sum(1)).sum() / real.sum())
    assert float(value.detach()) == pytest.approx(float(torch.stack(errors).mean()), rel=2e-5)


def test_chunks_change_neither_the_value_nor_a_gradient() -> None:
    model, batch = llama(), batch_of("packed")
    found = []
    for chunk in (4, 64):
        student = moved(hybrid(model, 1))
        value, _ = Distiller(student, adapt_teacher(model), [MixingMatrix(chunk=chunk)]).loss(batch)
        value.backward()
        found.append((value.detach(), {n: p.grad for n, p in student.named_parameters()}))
    (one, mine), (whole, theirs) = found
    torch.testing.assert_close(one, whole)
    for name, grad in theirs.items():
        assert (grad is None) == (mine[name] is None), name
        if grad is not None:
            torch.testing.assert_close(mine[name], grad, rtol=1e-4, atol=1e-7)


def test_matrices_are_float32_under_autocast() -> None:
    model, batch = llama(), batch_of("packed")
    distiller = Distiller(moved(hybrid(model, 1)), adapt_teacher(model), ["mixing_matrix"])
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = distiller.loss(batch)
    value.backward()
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(distiller.loss(batch)[0].detach()), rel=0.02)


def test_what_has_a_gradient() -> None:
    """All that the stage trains, for DDP waits for it; of what follows the scan it is 0."""
    model = llama()
    student = moved(hybrid(model, 1))
    Distiller(student, adapt_teacher(model), ["mixing_matrix"]).loss(batch_of("whole"))[0].backward()
    mixers = student.groups()["mixers"]
    for name, parameter in student.named_parameters():
        if mixers(name):
            moves = not name.endswith(("norm.weight", "out_proj.weight"))
            assert parameter.grad is not None and bool(parameter.grad.any()) == moves, name
        else:
            assert parameter.grad is None or "input_layernorm" in name, name


def test_one_for_a_mixer_that_mixes_nothing_and_it_falls() -> None:
    model, batch = llama(), batch_of("padded before")
    student = hybrid(model, 1)
    distiller = Distiller(student, adapt_teacher(model), ["mixing_matrix"])
    with torch.no_grad():
        for layer in (0, 2):
            student.layer(layer).mamba.rows("C").zero_()
    assert distiller.loss(batch)[1]["mixing_matrix"] == pytest.approx(1.0, abs=1e-6)
    student = moved(hybrid(model, 1, conv_tap=1.0))
    distiller = Distiller(student, adapt_teacher(model), ["mixing_matrix"])
    steps = torch.optim.AdamW([p for n, p in student.named_parameters() if ".mamba." in n], lr=6e-3)
    values = []
    for _ in range(30):
        value, _ = distiller.loss(batch)
        steps.zero_grad()
        value.backward()
        steps.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0] and values[-1] < 0.6


def test_a_long_row_s_decays_stay_exact() -> None:
    """They add up to a hundred thousand, and what is left over a few tokens is the difference of two sums. A
    row without a mask weighs as many tokens as it has."""
    length, heads, draw = 400, 2, torch.Generator().manual_seed(0)
    made, taught = (
        {name: 0.5 * torch.randn(1, heads, length, 4, generator=draw) for name in ("q", "k")}
        for _ in range(2)
    )
    made["dt"], made["dA"] = torch.rand(2, 1, length, heads, generator=draw)
    made["dA"] = -made["dA"]
    made["dA"][:, ::9] = -3000.0
    made["D"], made["output"] = torch.zeros(1, length, heads), torch.zeros(1, length, 8)
    aligner: Any = type("OfText", (), {"num_tokens": None})()
    mine, theirs = (Stream(Sequence(), None, mixers={0: inner}) for inner in (made, taught))
    empty = Batch({"text": torch.zeros(1, length, dtype=torch.int64)}, {}, torch.zeros(1), {})
    geometry = StreamGeometry(
        name="text",
        item="tokens",
        num_layers=1,
        teacher_width=8,
        kinds=("attention",),
        pairs={0: 0},
        sources={0: 0},
        parts=dict.fromkeys(("q", "k", "dt", "dA", "D"), 2),
    )
    signals = Signals(Output({"text": mine}), Output({"text": theirs}), empty, {"text": aligner})
    term = MixingMatrix(chunk=64).build_stream(geometry)(signals)
    expected = 0.0
    for h in range(heads):
        q, k = (made[name][0, h].double() for name in ("q", "k"))
        dt, dA = (made[name][0, :, h].double() for name in ("dt", "dA"))
        own, wanted = torch.zeros(2, length, length, dtype=torch.float64)
        keys, queries = taught["k"][0, h].double(), taught["q"][0, h].double()
        for i in range(length):
            left = torch.tensor(1.0, dtype=torch.float64)
            for j in range(i, max(-1, i - 40), -1):
                own[i, j] = left * (q[i] @ k[j]) * dt[j]
                left = left * dA[j].exp()
            wanted[i, : i + 1] = (keys[: i + 1] @ queries[i] / 2).softmax(0)
        expected += float((own - wanted).square().sum() / wanted.square().sum()) / heads
    assert float(term.sum) == pytest.approx(expected * length, rel=4e-6)


def test_refusals() -> None:
    model = llama(num_attention_heads=8, num_key_value_heads=4)
    teacher, batch = adapt_teacher(model), batch_of("whole")
    with pytest.raises(UserError, match="mixing_matrix: all layers of this student keep"):
        Distiller(hybrid(model, 0, 1, 2), teacher, ["mixing_matrix"])
    rival, _ = convert(teacher, "window_lm", window=4, sinks=1)
    with pytest.raises(UserError, match="this student's lack q, k, dt, dA, D"):
        Distiller(rival, teacher, ["mixing_matrix"])
    fewer = Distiller(hybrid(model, 1, heads=4), teacher, ["mixing_matrix"])
    with pytest.raises(UserError, match="the teacher has 8 and the student 4"):
        fewer.loss(batch)
    with pytest.raises(ValueError, match="chunk is 0; write a number of tokens"):
        MixingMatrix(chunk=0)
