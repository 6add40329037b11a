"""The rival: attention to the last tokens and the first ones, against attention written out in loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hybrids import llama, make, moved, relative, texts
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert
from transmamba.core.batch import Batch
from transmamba.core.output import Capture, Context
from transmamba.core.tower import Student, Tower
from transmamba.distillation.distiller import Distiller
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.students.window_lm import WindowLM

HELD = ("Llama 3 (llama3 RoPE)", "Llama, yarn RoPE", "Llama, biases, wide heads", "SmolLM (tied)", "Mistral")
WINDOW, SINKS = 6, 2


def windowed(model: Any, *kept: int, window: int = WINDOW, sinks: int = SINKS, **also: Any) -> HybridStudent:
    options: dict[str, Any] = dict(attention_layers=list(kept), window=window, sinks=sinks, **also)
    student, report = convert(adapt_teacher(model), "window_lm", **options)
    assert isinstance(student, HybridStudent) and (not report.dropped or "depth" in also)
    return student


def logits(student: HybridStudent, text: Tensor, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        made = student.run({"text": text, **inputs}).logits
    assert made is not None
    return made()


def read_by(i: int, kept: bool, window: int, sinks: int) -> list[int]:
    """The tokens that token i reads."""
    return [j for j in range(i + 1) if kept or j < sinks or j > i - window]


@torch.no_grad()
def written_out(model: Any, text: Tensor, kept: tuple[int, ...], window: int, sinks: int) -> Tensor:
    """Logits (L, V) of one row (L,), head by head and token by token, in float64 by a Llama's own tensors."""
    config, tensors = model.config, {name: x.double() for name, x in model.state_dict().items()}
    heads, size = config.num_attention_heads, tensors["model.layers.0.self_attn.q_proj.weight"].shape[0]
    size, shared = size // heads, heads // config.num_key_value_heads

    def norm(x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
        return x / scale * tensors[f"{name}.weight"]

    def turned(x: Tensor, place: int) -> Tensor:
        out = x.clone()
        for c in range(size // 2):
            angle = place * config.rope_parameters["rope_theta"] ** (-2 * c / size)
            a, b = x[c], x[c + size // 2]
            out[c] = a * math.cos(angle) - b * math.sin(angle)
            out[c + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x = tensors["model.embed_tokens.weight"][text]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        u = norm(x, f"{name}.input_layernorm")
        q, k, v = (u @ tensors[f"{name}.self_attn.{part}_proj.weight"].mT for part in "qkv")
        mixed = torch.zeros(len(text), heads * size, dtype=torch.float64)
        for h in range(heads):
            mine, theirs = slice(h * size, (h + 1) * size), h // shared
            of = slice(theirs * size, (theirs + 1) * size)
            for i in range(len(text)):
                read = read_by(i, layer in kept, window, sinks)
                query = turned(q[i, mine], i) / math.sqrt(size)
                scores = torch.stack([query @ turned(k[j, of], j) for j in read])
                mixed[i, mine] = scores.softmax(0) @ v[read, of]
        x = x + mixed @ tensors[f"{name}.self_attn.o_proj.weight"].mT
        u = norm(x, f"{name}.post_attention_layernorm")
        gate, up, down = (tensors[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        x = x + (F.silu(u @ gate.mT) * (u @ up.mT)) @ down.mT
    return norm(x, "model.norm") @ tensors["lm_head.weight"].mT


@pytest.mark.parametrize("kept", [(), (1,), (0, 2)])
@pytest.mark.parametrize(("window", "sinks"), [(WINDOW, SINKS), (1, 0), (3, 5), (15, 0)])
def test_it_reads_the_last_tokens_and_the_first_ones(kept: tuple[int, ...], window: int, sinks: int) -> None:
    model, text = llama(num_key_value_heads=2), texts(1, 16)
    wanted = written_out(model, text[0], kept, window, sinks)
    student = windowed(model, *kept, window=window, sinks=sinks).double()
    assert relative(logits(student, text)[0], wanted) < 1e-6
    assert relative(written_out(model, text[0], kept, window + 1, sinks), wanted) > 1e-3
    assert relative(student.stock().double()(text).logits[0], wanted) < 1e-5


@pytest.mark.parametrize("name", HELD)
def test_with_a_window_over_all_it_is_the_teacher(name: str) -> None:
    model, text = make(name), texts(2, 30)
    with torch.no_grad():
        wanted = model(text, use_cache=False).logits
    assert relative(logits(windowed(model, window=30, sinks=0), text), wanted) < 1e-5
    assert relative(logits(windowed(model, window=3, sinks=27), text), wanted) < 1e-5
    assert relative(logits(windowed(model, 0, 1, 2), text), wanted) < 1e-5
    assert relative(logits(windowed(model), text), wanted) > 1e-2


def test_each_weight_is_the_teacher_s() -> None:
    model = make("Llama, biases, wide heads")
    mine, theirs = windowed(model, 1).state_dict(), model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_padding_before_a_text_changes_nothing() -> None:
    """Its sinks are its own first tokens."""
    student, text = windowed(make("SmolLM (tied)"), 1), texts(1, 16)
    padded = torch.cat([texts(1, 5, seed=3), text], dim=1)
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[:, :5] = False
    alone = logits(student, text)
    assert relative(logits(student, padded, text_mask=mask)[:, 5:], alone) < 1e-5
    stock = student.stock()
    with torch.no_grad():
        assert relative(stock(padded, attention_mask=mask.long()).logits[:, 5:], alone) < 1e-5
    after = torch.cat([text, texts(1, 5, seed=3)], dim=1)
    assert relative(logits(student, after, text_mask=mask.flip(1))[:, :16], alone) < 1e-5


def test_packed_documents_are_documents_alone() -> None:
    student, lengths = windowed(make("SmolLM (tied)"), 1), (13, 2, 17)
    apart = [texts(1, length, seed=length) for length in lengths]
    segments = torch.tensor([[k for k, length in enumerate(lengths) for _ in range(length)]])
    packed = torch.cat(apart, dim=1)
    together = logits(student, packed, text_segment=segments.int())
    wanted = torch.cat([logits(student, text) for text in apart], dim=1)
    assert relative(together, wanted) < 1e-5
    assert relative(logits(student, packed)[:, 13:], wanted[:, 13:]) > 1e-2


def test_alignment_and_distillation_have_gradients_in_every_part() -> None:
    model, text = llama(), texts(2, 20)
    teacher, student = adapt_teacher(model), windowed(model, 1).train()
    assert isinstance(student, Student) and isinstance(student, Tower)
    batch = Batch({"text": text}, {}, torch.arange(2), {"samples": 2, "tokens": text.numel()})
    for loss in ("kl", "mixer"):
        for checkpointing in (False, True):
            student.set_grad_checkpointing(checkpointing)
            student.zero_grad(set_to_none=True)
            value, _ = Distiller(student, teacher, [loss]).loss(batch)
            value.backward()
            mixers = student.groups()["mixers"]
            for name, p in student.named_parameters():
                if loss == "kl" or mixers(name):
                    assert p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()), name
            assert float(value.detach()) > 0.01


def test_alignment_is_of_each_window_on_the_teacher_s_own_inputs() -> None:
    model, text = llama(), texts(2, 20)
    student, teacher = windowed(model, 1), adapt_teacher(model)
    batch = Batch({"text": text}, {}, torch.arange(2), {"samples": 2, "tokens": text.numel()})
    capture = Capture(mixers={s: frozenset(("input", "output")) for s in (0, 4)})
    taught = teacher({"text": text}, {"decoder": capture}).streams["decoder"].mixers
    errors = []
    with torch.no_grad():
        value, _ = Distiller(student, teacher, ["mixer"]).loss(batch)
        for k, s in ((0, 0), (2, 4)):
            made, parts = student.mixer(k, taught[s]["input"], Context(), capture)
            assert not parts
            wanted = taught[s]["output"]
            assert relative(made[:, :WINDOW], wanted[:, :WINDOW]) < 1e-5
            errors.append((made - wanted).square().sum((1, 2)) / wanted.square().sum((1, 2)))
    assert float(value) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_the_ceiling_keeps_all_attention() -> None:
    model, text = llama(), texts(2, 20)
    student, teacher = windowed(model, 0, 1, 2).train(), adapt_teacher(model)
    batch = Batch({"text": text}, {}, torch.arange(2), {"samples": 2, "tokens": text.numel()})
    value, _ = Distiller(student, teacher, ["kl"]).loss(batch)
    value.backward()
    assert float(value.detach()) < 1e-6
    with pytest.raises(UserError, match="nothing is there to align"):
        Distiller(student, teacher, ["mixer"])


def test_groups_name_every_parameter_once() -> None:
    student = windowed(llama(), 1)
    groups = student.groups()
    assert groups.keys() == {*WindowLM.group_names}
    for name, _ in student.named_parameters():
        assert sum(holds(name) for holds in groups.values()) == 1, name
    assert sum(groups["mixers"](name) for name, _ in student.named_parameters()) == 2 * 4
    assert sum(groups["attention"](name) for name, _ in student.named_parameters()) == 4


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(window=0), "window: 0; write"),
        (dict(sinks=-1), "sinks: -1; write"),
        (dict(attention_layers=[1, 1]), "each once"),
        (dict(attention_layers=[3]), "layers are 0 to 2"),
        (dict(depth=4), "student.depth is 4"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        convert(adapt_teacher(llama()), "window_lm", **options)


def test_fewer_layers_are_both_ends() -> None:
    model, text = llama(num_hidden_layers=5), texts(1, 20)
    student = windowed(model, 0, depth=3)
    assert student.kinds == ("full_attention", "window_attention", "window_attention")
    with torch.no_grad():
        model.model.layers = torch.nn.ModuleList(model.model.layers[t] for t in (0, 1, 4))
        model.config.num_hidden_layers = 3
    assert torch.equal(logits(student, text), logits(windowed(model, 0), text))
    assert not torch.equal(logits(moved(student), text), logits(windowed(model, 0), text))


def test_layers_by_a_pattern_or_a_file(tmp_path: Path) -> None:
    """As of a hybrid, its rival."""
    teacher = adapt_teacher(llama())
    rival, _ = convert(teacher, "window_lm", attention_layers="every_2nd_from_1", window=5, sinks=2)
    assert rival.kinds == ("window_attention", "full_attention", "window_attention")
    config = llama().config
    told = dict(layers=3, width=config.hidden_size, heads=config.num_attention_heads)
    told |= dict(kv_heads=config.num_key_value_heads, vocabulary=config.vocab_size)
    file = tmp_path / "layers.json"
    written = {"format": "transmamba layers 1", "teacher": told, "order": [2, 0, 1]}
    file.write_text(json.dumps(written))
    chosen, _ = convert(teacher, "window_lm", attention_layers={"file": str(file), "keep": 2}, window=5)
    assert chosen.attention_layers == (0, 2)
    file.write_text(json.dumps(written | {"teacher": told | {"layers": 4}}))
    with pytest.raises(UserError, match="is of a teacher with layers 4"):
        convert(teacher, "window_lm", attention_layers={"file": str(file), "keep": 1}, window=5)
