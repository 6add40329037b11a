"""Hybrids with fewer channels, heads and neurons than their teacher: which they keep, and what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hybrids import WORDS, hybrid, llama, make, relative, texts
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert, load_student, save_student
from transmamba.core.batch import Batch
from transmamba.core.output import Capture, Context
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.subcloning.selection import Selection
from transmamba.subcloning.subclone import SubcloneConfig

# of a teacher of 8 heads of 8 channels on 4 of k and v
WIDE: dict[str, Any] = dict(hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
SMALLER: dict[str, dict[str, Any]] = {
    "width": dict(width=24),
    "neurons": dict(neurons=16),
    "heads": dict(heads=4),
    "heads of q alone": dict(heads=4, kv_heads=4),
    "all": dict(width=40, heads=6, kv_heads=3, neurons=32, depth=2),
    "a width of no whole heads": dict(width=37, heads=2),
}


def calibration(rows: int = 4) -> list[Batch]:
    return [Batch({"text": texts(rows)}, {}, torch.arange(rows), {"samples": rows})]


def smaller(model: Any, *attention: int, importance: Any = "activation", **options: Any) -> HybridStudent:
    init = SubcloneConfig(importance=importance)
    return hybrid(model, *attention, init=init, calibration=calibration(), **options)


@pytest.mark.parametrize("name", ["Llama, biases, wide heads", "Qwen2 (QKV biases)", "SmolLM (tied)"])
def test_of_the_teacher_s_size_it_is_the_plain_conversion(name: str) -> None:
    teacher = adapt_teacher(make(name))
    told = dict(width=32, heads=4, kv_heads=2, neurons=56, depth=3)
    plain, wanted = convert(teacher, "hybrid_lm", attention_layers=[1], calibration=calibration())
    found, report = convert(teacher, "hybrid_lm", attention_layers=[1], calibration=calibration(), **told)
    assert report.to_dict() == wanted.to_dict()
    pairs = zip(plain.state_dict().items(), found.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)


@torch.no_grad()
def planted(channels: Tensor, neurons: Tensor, groups: Tensor, tied: bool) -> Any:
    """A Llama whose stream is zero but in these channels, whose MLPs are zero but in these neurons, and whose
    heads say nothing but in these groups."""
    model = llama(**WIDE, rms_norm_eps=1e-12, tie_word_embeddings=tied)
    quiet = torch.ones(64, dtype=torch.bool)
    quiet[channels] = False
    model.model.embed_tokens.weight[:, quiet] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[quiet] = 0
        layer.mlp.down_proj.weight[quiet] = 0
        still = torch.ones(56, dtype=torch.bool)
        still[neurons] = False
        layer.mlp.gate_proj.weight[still] = 0
        said = layer.self_attn.v_proj.weight.unflatten(0, (4, 8))
        said[[g for g in range(4) if g not in groups]] = 0
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_importance_keeps_what_was_planted(tied: bool) -> None:
    seeded = torch.Generator().manual_seed(5)
    channels = torch.randperm(64, generator=seeded)[:24].sort().values
    neurons = torch.randperm(56, generator=seeded)[:16].sort().values
    model = planted(channels, neurons, torch.tensor([1, 2]), tied)
    student = smaller(model, 0, 2, width=24, neurons=16, heads=4)
    mine, theirs = student.state_dict(), model.state_dict()
    assert torch.equal(mine["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"][:, channels])
    rows = torch.arange(64).unflatten(0, (8, 8))[2:6].flatten()
    gain = (64 / 24) ** 0.5
    for k in (0, 2):
        layer = f"model.layers.{k}"
        for target, source, kept in (
            ("feed_forward.gate_proj", "mlp.gate_proj", neurons),
            ("feed_forward.up_proj", "mlp.up_proj", neurons),
            ("self_attn.q_proj", "self_attn.q_proj", rows),
            ("self_attn.k_proj", "self_attn.k_proj", rows[:16] - 8),
        ):
            wanted = theirs[f"{layer}.{source}.weight"][kept][:, channels] * gain
            assert torch.allclose(mine[f"{layer}.{target}.weight"], wanted, rtol=1e-6)
    C = student.layer(1).mamba.rows("C")[:32]  # of its four heads, others fill the class's whole multiple
    wanted = theirs["model.layers.1.self_attn.q_proj.weight"][rows][:, channels] * gain / 8**0.5
    assert torch.allclose(C, wanted, rtol=1e-6)
    spaced = smaller(model, 0, 2, width=24, neurons=16, heads=4, importance="uniform")
    table = theirs["model.embed_tokens.weight"]
    evenly = table[:, torch.arange(24) * 64 // 24]
    assert torch.equal(spaced.state_dict()["model.embed_tokens.weight"], evenly)


@pytest.mark.parametrize("tied", [False, True])
def test_without_the_silent_channels_it_is_the_teacher(tied: bool) -> None:
    """Whose norms divide by more channels, and whose head reads more."""
    channels = torch.randperm(64, generator=torch.Generator().manual_seed(6))[:24]
    model = planted(channels, torch.arange(56), torch.arange(4), tied)
    student = smaller(model, 0, 1, 2, width=24)
    with torch.no_grad():
        assert relative(student(texts()), model(texts()).logits) < 1e-5
        assert relative(smaller(model, 0, 1, 2, width=23)(texts()), model(texts()).logits) > 1e-3


@pytest.mark.parametrize("shared", [1, 3])
def test_heads_are_those_that_say_most(shared: int) -> None:
    """Against all choices."""
    import itertools

    seeded = torch.Generator().manual_seed(shared)
    for _ in range(10):
        score = torch.rand(4, shared, 5, generator=seeded)
        chosen = Selection(8, 8, {"inner.6": score.flatten()})
        each = max(1, shared - 1)
        by_head = score.sum(-1)
        best = max(
            (sum(sorted(by_head[g].tolist())[-each:][i] for g in groups for i in range(each)), groups)
            for groups in itertools.combinations(range(4), 2)
        )
        found = chosen.heads(6, 4, shared, 2, each)
        assert (found // shared == torch.tensor(best[1])[:, None]).all()
        assert float(by_head.flatten()[found].sum()) == pytest.approx(best[0])
        assert torch.equal(found.flatten(), found.flatten().sort().values)
        assert torch.equal(chosen.heads(6, 4, shared, 4, shared).flatten(), torch.arange(4 * shared))


@pytest.mark.parametrize("architecture", ["bamba", "granite"])
@pytest.mark.parametrize("name", SMALLER)
def test_it_runs_trains_and_is_loaded_by_the_stock_class(
    name: str, architecture: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    options = dict(SMALLER[name], architecture=architecture)
    student = smaller(llama(**WIDE, attention_bias=True), 0, **options)
    config = student.config
    for key, asked in (
        ("width", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("depth", "num_hidden_layers"),
    ):
        assert key not in options or getattr(config, asked) == options[key]
    text = texts(4, 24)
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=3e-3), []
    for _ in range(12):
        logits = student(text)[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    save_student(student.eval(), tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        wanted = student(text)
        assert relative(stock(text).logits, wanted) < 1e-5
        assert torch.equal(load_student(tmp_path / "out")(text), wanted)


def test_its_mamba_layers_are_begun_in_its_own_channels() -> None:
    """What one adds is nearer to those of attention's than nothing is, and its gate is open there."""
    model = llama(**WIDE)
    teacher, batches = adapt_teacher(model), calibration()
    student = smaller(model, width=40, neurons=32)
    kept = torch.tensor(
        [
            int((model.model.embed_tokens.weight == column[:, None]).all(0).nonzero())
            for column in columns(student)
        ]
    )
    capture = Capture(mixers=dict.fromkeys((0, 2, 4), frozenset(("input", "output"))))
    taught = teacher(batches[0].inputs, {"decoder": capture}).streams["decoder"].mixers
    for k in range(3):
        wanted = taught[2 * k]["output"][..., kept]
        with torch.no_grad():
            made = student.mixer(k, taught[2 * k]["input"][..., kept], Context(), Capture())[0]
        assert (made - wanted).square().sum() < wanted.square().sum()


def columns(student: HybridStudent) -> Tensor:
    return student.state_dict()["model.embed_tokens.weight"].T


def test_change_keeps_the_heads_that_moved_least(tmp_path: Path) -> None:
    """Of a teacher whose heads share k and v."""
    base = llama(**WIDE)
    base.save_pretrained(tmp_path)
    tuned = llama(**WIDE)
    with torch.no_grad():
        for layer in tuned.model.layers:
            layer.self_attn.v_proj.weight.unflatten(0, (4, 8))[[0, 2]] += 1.0
            layer.mlp.up_proj.weight[20:] += 1.0
    init = SubcloneConfig(importance="change", base=str(tmp_path))
    student = hybrid(tuned, 0, 1, 2, init=init, heads=4, neurons=20)
    mine, theirs = student.state_dict(), tuned.state_dict()
    rows = torch.arange(64).unflatten(0, (4, 16))[[1, 3]].flatten()
    for k in range(3):
        name = f"model.layers.{k}"
        assert torch.equal(
            mine[f"{name}.self_attn.q_proj.weight"], theirs[f"{name}.self_attn.q_proj.weight"][rows]
        )
        up = theirs[f"{name}.mlp.up_proj.weight"][:20]
        assert torch.equal(mine[f"{name}.feed_forward.up_proj.weight"], up)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(width=65), "student.width is 65; write 64 at most"),
        (dict(neurons=57), "student.neurons is 57; write 56 at most"),
        (dict(heads=9), "student.heads is 9; write 8 at most"),
        (dict(heads=3), "student.heads is 3 on 1 of k and v, in the teacher 8 on 4; write a whole multiple"),
        (dict(heads=1), "student.heads is 1 on 0 of k and v"),
        (dict(heads=6, kv_heads=2), "student.heads is 6 on 2 of k and v"),
        (dict(width=0), "width: 0; write a number of at least 1"),
    ],
)
def test_a_size_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        hybrid(llama(**WIDE), **options)


def test_without_texts_to_rank_by_the_criterion_says_so() -> None:
    with pytest.raises(UserError, match=r"set init\.importance to 'uniform'"):
        hybrid(llama(**WIDE), init=SubcloneConfig(), width=24)
    assert hybrid(llama(**WIDE), width=24)(texts()).shape == (2, 30, WORDS)
