"""A window and a scan in one layer: against the same written out token by token, against softmax where that
is such an average, and what losses and recipes ask of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import hybrid, llama, make, moved, relative, texts
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert, load_student, save_student
from transmamba.core.batch import Batch
from transmamba.core.output import Capture, Context
from transmamba.distillation.distiller import Distiller
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.students.hybrid_lm.names import HybridLM
from transmamba.students.hybrid_lm.nearby import Nearby
from transmamba.students.hybrid_lm.swap import Swap
from transmamba.subcloning.subclone import SubcloneConfig

WINDOW, SINKS = 5, 2


def both(model: Any, *kept: int, **also: Any) -> HybridStudent:
    return hybrid(model, *kept, **{"window": WINDOW, "sinks": SINKS, **also})


def logits(student: HybridStudent, text: Tensor, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        made = student.run({"text": text, **inputs}).logits
    assert made is not None
    return made()


def batch_of(text: Tensor) -> Batch:
    counts = {"samples": len(text), "tokens": text.numel()}
    return Batch({"text": text}, {}, torch.arange(len(text)), counts)


def turned(x: Tensor, place: int, base: float) -> Tensor:
    half = len(x) // 2
    angles = torch.tensor([place * base ** (-2 * c / len(x)) for c in range(half)], dtype=x.dtype)
    a, b = x[:half], x[half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])


@torch.no_grad()
def written_out(student: HybridStudent, k: int, u: Tensor, window: int, sinks: int) -> Tensor:
    """What layer k's mixer makes of u (L, D): softmax over what a head reads exactly, of what lies between an
    average whose weights are products of features, of steps and of decays; no state anywhere."""
    config, part = student.config, dict(student.layer(k).self_attn.named_parameters())
    heads, size = config.num_attention_heads, config.head_dim
    shared, base = heads // config.num_key_value_heads, config.rope_parameters["rope_theta"]
    q, key, v = (u @ part[f"{name}_proj.weight"].mT for name in "qkv")
    steps = torch.nn.functional.softplus(u @ part["far.steps.weight"].mT + part["far.steps.bias"])
    gates = u @ part["far.gate.weight"].mT + part["far.gate.bias"]
    mixed = torch.zeros(len(u), heads * size, dtype=u.dtype)
    for h in range(heads):
        g, rate = h // shared, part["far.A_log"][h // shared].exp()
        mine, theirs = slice(h * size, (h + 1) * size), slice(g * size, (g + 1) * size)
        keys = [turned(key[j, theirs], j, base) for j in range(len(u))]
        b = [(x @ part["far.keys"][g]).softmax(0) for x in keys]
        for i in range(len(u)):
            query = turned(q[i, mine], i, base)
            near = [j for j in range(i + 1) if j > i - window or j < sinks]
            exact = (
                torch.stack([query @ keys[j] / math.sqrt(size) for j in near]).softmax(0) @ v[near, theirs]
            )
            far = list(range(sinks, i - window + 1))
            c = (query @ part["far.queries"][h]).softmax(0)
            kept = [
                steps[j, g] * (-rate * sum((steps[s, g] for s in far if s > j), torch.zeros(()))).exp()
                for j in far
            ]
            if far:
                weights = torch.stack([w * (c @ b[j]) for j, w in zip(far, kept, strict=True)])
                share = torch.sigmoid(gates[i, h] + torch.stack(kept).sum().log())
                average = weights @ v[far, theirs] / weights.sum()
                exact = (1 - share) * exact + share * average
            mixed[i, mine] = exact
    return mixed @ part["o_proj.weight"].mT


@pytest.mark.parametrize(("window", "sinks"), [(WINDOW, SINKS), (1, 0), (3, 4), (14, 1)])
def test_a_layer_is_what_is_written_out(window: int, sinks: int) -> None:
    student = moved(both(llama(num_key_value_heads=2), window=window, sinks=sinks)).double()
    u = torch.randn(1, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = student.layer(1)
    with torch.no_grad():
        made = student.mixer(1, u, Context(), Capture())[0][0]
        wanted = written_out(student, 1, layer.input_layernorm(u)[0], window, sinks)
        other = written_out(student, 1, layer.input_layernorm(u)[0], window + 1, sinks)
    assert relative(made, wanted) < 1e-5 and relative(made, other) > 1e-4


def test_where_softmax_is_an_average_the_start_is_the_teacher() -> None:
    """Attention that reads all tokens alike: the fitted shares and the scan's average are then exact, however
    long the text is; the window alone is not."""
    model, text = llama(), texts(4, 44)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    teacher = adapt_teacher(model)
    wanted = logits_of(model, text)
    start = dict(init=SubcloneConfig(), calibration=[batch_of(texts(16, 44, seed=5))])
    options: dict[str, Any] = dict(attention_layers=[], window=WINDOW, sinks=SINKS)
    student, _ = convert(teacher, "hybrid_lm", half_life=1e6, **options, **start)
    rival, _ = convert(teacher, "window_lm", **options)
    assert relative(logits(student, text), wanted) < 0.02 < 0.2 < relative(logits(rival, text), wanted)


def logits_of(model: Any, text: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(text, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", ["Llama 3 (llama3 RoPE)", "Llama, biases, wide heads", "Qwen3 (q/k norms)"])
def test_it_is_the_teacher_as_far_as_nothing_is_far(name: str) -> None:
    model, text = make(name), texts(2, 40)
    student = both(model, 1)
    assert student.kinds == ("window_mamba", "full_attention", "window_mamba")
    short = WINDOW + SINKS
    assert relative(logits(student, text[:, :short]), logits_of(model, text[:, :short])) < 1e-5
    assert relative(logits(both(model, 1, window=40), text), logits_of(model, text)) < 1e-5
    rival, _ = convert(adapt_teacher(model), "window_lm", attention_layers=[1], window=WINDOW, sinks=SINKS)
    errors = [kl(logits(each, text), logits_of(model, text)) for each in (student, rival)]
    assert errors[0] < errors[1], "the fitted start is no worse than the window alone"


def kl(made: Tensor, wanted: Tensor) -> float:
    parts = (x.detach().log_softmax(-1) for x in (made, wanted))
    return float(torch.nn.functional.kl_div(*parts, reduction="batchmean", log_target=True))


def test_without_its_scan_it_is_the_window(tmp_path: Path) -> None:
    """`scan: false` in config.json, of our student and of the class alone."""
    student, text = moved(both(make("SmolLM (tied)"), 1)), texts(2, 40)
    save_student(student, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["scan"] is True
    (tmp_path / "config.json").write_text(json.dumps({**config, "scan": False}))
    off = load_student(tmp_path)
    rival, _ = convert(adapt_teacher(llama()), "window_lm", attention_layers=[1], window=WINDOW, sinks=SINKS)
    names = {name: p for name, p in student.state_dict().items() if ".far." not in name}
    rival.config.tie_word_embeddings = True
    rival.load_state_dict(names)
    assert torch.equal(logits(off, text), logits(rival, text))
    assert relative(off.stock()(text).logits.detach(), logits(rival, text)) < 1e-5
    assert relative(logits(student, text), logits(rival, text)) > 1e-3


def test_packed_and_padded_texts_are_texts_alone() -> None:
    student, lengths = moved(both(make("SmolLM (tied)"), 1)), (13, 2, 17)
    apart = [texts(1, length, seed=length) for length in lengths]
    segments = torch.tensor([[k for k, length in enumerate(lengths) for _ in range(length)]]).int()
    packed = torch.cat(apart, dim=1)
    wanted = torch.cat([logits(student, text) for text in apart], dim=1)
    assert relative(logits(student, packed, text_segment=segments), wanted) < 1e-5
    assert relative(logits(student, packed)[:, 13:], wanted[:, 13:]) > 1e-3
    padded = torch.cat([texts(1, 6, seed=3), apart[2], texts(1, 4, seed=4)], dim=1)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:, 6:23] = True
    assert relative(logits(student, padded, text_mask=mask)[:, 6:23], wanted[:, 15:]) < 1e-5


def test_no_token_of_another_text_or_of_padding_leaves_a_window() -> None:
    """Whether places are counted in documents, or, of a context by itself, in the row."""
    rows, window, sinks = torch.arange(9)[None], 3, 1
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1]]).int()
    mask = torch.tensor([[False] * 2 + [True] * 7])
    packed = Context.of({"text": rows, "text_segment": segments})
    padded = Context.of({"text": rows, "text_mask": mask})
    for context, places, left in (
        (packed, packed.positions, [4]),
        (Context(segments=segments), rows, [4, 8]),
        (padded, padded.positions, [6, 7, 8]),
        (Context(mask=mask), rows, [5, 6, 7, 8]),
        (Context(), rows, [4, 5, 6, 7, 8]),
    ):
        assert places is not None
        found = Nearby.of(context, places, window, sinks).left
        assert found.nonzero()[:, 1].tolist() == left


@pytest.mark.parametrize("loss", ["kl", "mixer"])
def test_every_part_has_a_gradient_from_the_first_step(loss: str) -> None:
    model, text = llama(), texts(2, 30)
    student = both(model, 1).train()
    found = []
    for checkpointing in (False, True):
        student.set_grad_checkpointing(checkpointing)
        student.zero_grad()
        Distiller(student, adapt_teacher(model), [loss]).loss(batch_of(text))[0].backward()
        assert student.groups().keys() == {*HybridLM(window=5).group_names}
        mixers = student.groups()["mixers"]
        trained = {n: p.grad for n, p in student.named_parameters() if loss == "kl" or mixers(n)}
        assert all(g is not None and bool(g.isfinite().all() and g.any()) for g in trained.values())
        assert sum(".far." in name for name in trained) == 2 * 7
        found.append(trained)
    assert all(torch.allclose(found[1][n], g, atol=1e-5) for n, g in found[0].items())  # type: ignore[arg-type]


def test_attention_put_back_leaves_the_window_as_it_was() -> None:
    model, text = llama(), texts(2, 30)
    student = both(model)
    before = logits(student, text)
    with Swap(student, adapt_teacher(model).view).keeping((0, 1, 2)):
        assert relative(logits(student, text), logits_of(model, text)) < 1e-5
    assert torch.equal(logits(student, text), before) and student.kinds == ("window_mamba",) * 3


def test_matrices_are_compared_with_scans_and_whole_softmaxes_alone() -> None:
    model = llama()
    with pytest.raises(UserError, match="this student's lack q, k, dt, dA, D"):
        Distiller(both(model, 1), adapt_teacher(model), ["mixing_matrix"])
    windowed = adapt_teacher(make("Mistral, window of 5"))
    with pytest.raises(
        UserError, match=r"the teacher's sublayer 0 reads the last 5 alone; leave the loss out"
    ):
        Distiller(hybrid(model), windowed, ["mixing_matrix"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(architecture="bamba"), "window: 5, which bamba has no place for; write architecture own"),
        (dict(architecture="granite"), "which granite has no place for"),
        (dict(half_life="fitted"), "half_life: fitted, for scans without a window alone"),
        (dict(mixers="random"), "mixers: random, but behind a window"),
        (dict(conv_tap=1.0), "has no convolution"),
        (dict(window=-1), "window: -1; write a number of tokens"),
        (dict(sinks=-1), "sinks: -1; write a number of tokens"),
        (dict(window_dropout=1.0), "window_dropout: 1.0; write 0 or a number below 1"),
        (dict(window=0), "sinks: given, but window is 0"),
        (dict(window=0, sinks=0, window_dropout=0.1), "window_dropout: given, but window is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        both(llama(), **options)


def test_a_fitted_half_life_without_weights_is_refused() -> None:
    """Of `convert` as of a recipe."""
    with pytest.raises(UserError, match="half_life is fitted, to a teacher's heads"):
        convert(adapt_teacher(llama()), "hybrid_lm", half_life="fitted", init=SubcloneConfig(layers=0))


def test_a_student_without_the_teacher_s_weights_begins_all_but_shut() -> None:
    student, _ = convert(
        adapt_teacher(llama()), "hybrid_lm", window=4, sinks=1, init=SubcloneConfig(layers=0)
    )
    text = texts(2, 40)
    made = logits(student, text)
    for k in range(3):
        student.layer(k).self_attn.scan = False
    assert 0 < relative(made, logits(student, text)) < 1e-2


@pytest.mark.parametrize("name", ["SmolLM (tied)", "Qwen3 (q/k norms)"])
def test_in_half_precision_the_scan_reads_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels are fast at; steps and counts stay in float32, and the numbers are near."""
    from transmamba.students.hybrid_lm import far

    student, text = moved(both(make(name), 1)), texts(2, 40)
    read, scan = [], far.ssd_scan

    def watched(x: Tensor, step: Tensor, *rest: Any, **also: Any) -> Any:
        assert rest[1].dtype == rest[2].dtype == x.dtype, "b and c"
        read.append((x.shape[-1], x.dtype, step.dtype))
        return scan(x, step, *rest, **also)

    wanted = logits(student, text)
    monkeypatch.setattr(far, "ssd_scan", watched)
    with torch.autocast("cpu", torch.bfloat16):
        made = logits(student, text)
    assert 0 < relative(made.float(), wanted) < 0.03
    wide, half = torch.float32, torch.bfloat16
    size = student.config.head_dim
    assert read[:3] == [(1, wide, wide), (size, half, wide), (1, half, wide)] and len(read) == 6


def test_float16_has_not_the_range_of_a_small_mass() -> None:
    """Queries and keys that hardly meet: the mass is far below what float16 divides by."""
    student, text = moved(both(make("SmolLM (tied)"), 1)), texts(1, 120)
    with torch.no_grad():
        for k in (0, 2):
            part = student.layer(k).self_attn
            part.q_proj.weight.mul_(8)
            part.k_proj.weight.mul_(8)
            part.far.gate.bias.fill_(-2.0)
    wanted = logits(student, text)
    with torch.autocast("cpu", torch.float16):
        made = logits(student, text)
    assert made.isfinite().all() and relative(made.float(), wanted) < 0.1
