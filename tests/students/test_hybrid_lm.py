"""A language model's hybrid: exact where all layers keep attention, equal to the stock class always, and what
else the house asks of a student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hybrids import hybrid, llama, make, moved, qwen3, relative, texts
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert
from transmamba.core.output import Capture, Context
from transmamba.core.tower import Student, Tower
from transmamba.distillation.distiller import Distiller
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.students.hybrid_lm.names import HybridLM

# teacher -> the class that `auto` chooses
HELD = {
    "Llama 2": "BambaForCausalLM",
    "Llama 3 (llama3 RoPE)": "BambaForCausalLM",
    "Llama, linear RoPE": "BambaForCausalLM",
    "Llama, yarn RoPE": "BambaForCausalLM",
    "Llama, biases, wide heads": "BambaForCausalLM",
    "SmolLM (tied)": "BambaForCausalLM",
    "Mistral": "BambaForCausalLM",
    "Qwen2 (QKV biases)": "GraniteMoeHybridForCausalLM",
    "Qwen3 (q/k norms)": "HybridForCausalLM",
}


def logits(student: HybridStudent, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        made = student.run(inputs).logits
    assert made is not None
    return made()


def stock_logits(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", HELD)
def test_all_layers_attention_is_the_teacher(name: str) -> None:
    model, text = make(name), texts()
    student = hybrid(model, 0, 1, 2)
    wanted = stock_logits(model, input_ids=text)
    stock = student.stock()
    assert type(stock).__name__ == HELD[name]
    assert relative(logits(student, text=text), wanted) < 1e-5
    assert relative(stock_logits(stock, input_ids=text), wanted) < 1e-5


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_heads_that_share_keys_are_the_teacher_s(kv_heads: int) -> None:
    model, text = llama(num_key_value_heads=kv_heads), texts()
    for kind in ("bamba", "granite"):
        made = logits(hybrid(model, 0, 1, 2, architecture=kind), text=text)
        assert relative(made, stock_logits(model, input_ids=text)) < 1e-5


@pytest.mark.parametrize("kept", [(), (1,), (0, 2)])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Llama 2", "bamba"),
        ("Llama 2", "granite"),
        ("Qwen2 (QKV biases)", "granite"),
        ("SmolLM (tied)", "bamba"),
        ("Qwen3 (q/k norms)", "own"),
        ("Llama, biases, wide heads", "own"),
    ],
)
def test_the_stock_class_holds_its_tensors(name: str, kind: str, kept: tuple[int, ...]) -> None:
    student, text = moved(hybrid(make(name), *kept, architecture=kind)), texts()
    stock = student.stock()
    assert relative(logits(student, text=text), stock_logits(stock, input_ids=text)) < 1e-5
    mine = dict(student.named_parameters())
    assert all(p.data_ptr() == mine[n].data_ptr() for n, p in stock.named_parameters() if n in mine)
    assert len(stock.model.layers) == 3 + (not kept and kind != "own")


def test_biases_of_the_mlps_and_wide_heads_are_held() -> None:
    """Heads of 12 at width 32: 48 channels, which no whole multiple of 32 is, so there are 8 heads."""
    student, text = hybrid(make("Llama, biases, wide heads"), 1), texts()
    assert student.config.mamba_expand * 32 == student.config.mamba_n_heads * 12 == 96
    assert relative(logits(student, text=text), stock_logits(student.stock(), input_ids=text)) < 1e-5


@pytest.mark.parametrize("name", ["Qwen2 (QKV biases)", "Qwen3 (q/k norms)"])
@pytest.mark.parametrize("kept", [(), (1,), (0, 1, 2)])
def test_padding_before_a_text_changes_nothing(kept: tuple[int, ...], name: str) -> None:
    student, text = moved(hybrid(make(name), *kept)), texts(length=12)
    padded = torch.cat([texts(length=5, seed=3), text], dim=1)
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[:, :5] = False
    alone = logits(student, text=text)
    assert relative(logits(student, text=padded, text_mask=mask)[:, 5:], alone) < 1e-5
    places = (mask.long().cumsum(1) - 1).clamp_min(0)
    stock = stock_logits(student.stock(), input_ids=padded, attention_mask=mask.long(), position_ids=places)
    assert relative(stock[:, 5:], alone) < 1e-5


@pytest.mark.parametrize("name", ["Qwen2 (QKV biases)", "Qwen3 (q/k norms)"])
@pytest.mark.parametrize("kept", [(), (1,), (0, 1, 2)])
def test_packed_documents_are_documents_alone(kept: tuple[int, ...], name: str) -> None:
    student = moved(hybrid(make(name), *kept))
    first, second, third = (texts(1, length, seed=length) for length in (7, 2, 11))
    packed = torch.cat([first, second, third], dim=1)
    segments = torch.tensor([[0] * 7 + [1] * 2 + [2] * 11], dtype=torch.int32)
    together = logits(student, text=packed, text_segment=segments)
    apart = torch.cat([logits(student, text=text) for text in (first, second, third)], dim=1)
    assert relative(together, apart) < 1e-5
    assert relative(logits(student, text=packed)[:, 7:], apart[:, 7:]) > 1e-2


def test_a_mixer_alone_is_what_it_adds_within_the_model() -> None:
    student, text = hybrid(llama(), 1), texts()
    assert isinstance(student, Student) and isinstance(student, Tower)
    names = frozenset(("output", *student.parts))
    capture = Capture(hidden=frozenset((0, 1, 2)), mixers=dict.fromkeys(range(3), names))
    with torch.no_grad():
        stream = student.run({"text": text}, {"decoder": capture}).streams["decoder"]
        for k in (1, 2):
            made, parts = student.mixer(k, stream.hidden[k - 1], Context(), capture)
            assert torch.equal(made, stream.mixers[k]["output"])
            asked = student.parts if k == 2 else {"layer": student.width}
            assert {name: part.shape[-1] for name, part in parts.items()} == asked
            assert relative(stream.hidden[k - 1] + parts["layer"], stream.hidden[k]) < 1e-6
    assert student.sources(("attention", "mlp") * 3) == {0: 0, 2: 4}


def test_a_step_has_finite_gradients_in_every_part() -> None:
    student = hybrid(llama(head_dim=12), 1).train()
    for checkpointing in (False, True):
        student.set_grad_checkpointing(checkpointing)
        student.zero_grad()
        student(texts()).logsumexp(-1).sum().backward()
        grads = {name: p.grad for name, p in student.named_parameters()}
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads.values())
        # the two heads beyond the teacher's four are no dead end
        wide = student.layer(0).mamba.out_proj.weight.grad
        assert (wide[:, 48:] != 0).any(dim=0).all() and wide.shape[1] == 96
        if not checkpointing:
            before = grads
    assert all(torch.allclose(grads[name], before[name], atol=1e-5) for name in grads)  # type: ignore[arg-type]


def test_norms_of_queries_and_keys_have_gradients() -> None:
    student = hybrid(qwen3(), 1).train()
    student(texts()).logsumexp(-1).sum().backward()
    norms = {name: p.grad for name, p in student.named_parameters() if name.split(".")[-2][1:] == "_norm"}
    assert {name.split(".")[-2] for name in norms} == {"q_norm", "k_norm", "B_norm", "C_norm"}
    assert all(grad is not None and bool(grad.isfinite().all() and grad.any()) for grad in norms.values())


def test_groups_name_every_parameter() -> None:
    for name in ("SmolLM (tied)", "Qwen2 (QKV biases)", "Qwen3 (q/k norms)"):
        student = hybrid(make(name), 1)
        groups = student.groups()
        assert groups.keys() == {*HybridLM().group_names}
        for each, _ in student.named_parameters():
            found = [group for group, holds in groups.items() if holds(each)]
            assert (
                found == (["embedding", "head"] if "embed" in each and len(found) == 2 else found[:1]) != []
            )
        mixers = [name for name, _ in student.named_parameters() if groups["mixers"](name)]
        assert len(mixers) == 2 * (8 if "Qwen3" not in name else 10)
        assert any(groups["head"](name) for name, _ in student.named_parameters())


def test_alignment_sees_the_teacher_s_own_inputs() -> None:
    """A layer's error in stage B is that of its mixer on the teacher's stream, with the teacher's weights."""
    from transmamba.core.batch import Batch

    model, text = llama(), texts()
    student, teacher = hybrid(model, 1), adapt_teacher(model)
    batch = Batch({"text": text}, {}, torch.arange(2), {"samples": 2, "tokens": text.numel()})
    with torch.no_grad():
        value, _ = Distiller(student, teacher, ["mixer"]).loss(batch)
    capture = Capture(mixers={s: frozenset(("input", "output")) for s in (0, 4)})
    taught = teacher({"text": text}, {"decoder": capture}).streams["decoder"].mixers
    errors = []
    with torch.no_grad():
        for k, s in ((0, 0), (2, 4)):
            made, wanted = student.mixer(k, taught[s]["input"], Context(), Capture())[0], taught[s]["output"]
            errors.append((made - wanted).square().sum((1, 2)) / wanted.square().sum((1, 2)))
    assert float(value) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_a_whole_layer_is_what_the_teacher_s_adds_given_its_input() -> None:
    """Of attention and MLP together, by transformers' own streams; nothing is left where a layer keeps its
    attention, as those of a window that reads all do."""
    from transmamba.core.batch import Batch
    from transmamba.losses.mixer import Mixer

    model, text = llama(), texts()
    student, teacher = hybrid(model, 1), adapt_teacher(model)
    batch = Batch({"text": text}, {}, torch.arange(2), {"samples": 2, "tokens": text.numel()})
    with torch.no_grad():
        value, _ = Distiller(student, teacher, [Mixer(layer=True)]).loss(batch)
        streams = model.model(text, output_hidden_states=True).hidden_states
        last: list[torch.Tensor] = []  # transformers' last stream is behind its norm
        model.model.norm.register_forward_pre_hook(lambda _, given: last.append(given[0]))
        model.model(text)
        errors = []
        for k in (0, 2):
            before, after = streams[k], (*streams[:3], last[0])[k + 1]
            made = before + student.layer(k).mamba(student.layer(k).input_layernorm(before), Context()).output
            layer = model.model.layers[k]
            made = made + layer.mlp(layer.post_attention_layernorm(made))
            errors.append((made - after).square().sum((1, 2)) / (after - before).square().sum((1, 2)))
    assert float(value) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)
    rival, _ = convert(teacher, "window_lm", attention_layers=[1], window=64)
    assert Distiller(rival, teacher, [Mixer(layer=True)]).loss(batch)[1]["mixer"] < 1e-8


def test_a_shallower_student_takes_both_ends() -> None:
    model, text = llama(num_hidden_layers=5), texts()
    student = hybrid(model, 0, 1, 4, depth=3)
    assert student.num_layers == 3 and student.attention_layers == (0, 1, 2)
    with torch.no_grad():
        kept = torch.nn.ModuleList(model.model.layers[t] for t in (0, 1, 4))
        model.model.layers, model.config.num_hidden_layers = kept, 3
        assert relative(logits(student, text=text), stock_logits(model, input_ids=text)) < 1e-5


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Mistral, window of 5", "window of 5 tokens"),
        ("Qwen2, windows in the last layers", "window of 4 tokens"),
        ("SmolLM3 (layers without RoPE)", "no rotary positions"),
        ("Gemma", "scaled by 5.65"),
        ("GPT-2", "positions"),
    ],
)
def test_what_no_class_holds_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as said:
        hybrid(make(name))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kind", ["bamba", "granite"])
def test_a_class_without_norms_of_queries_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UserError, match=r"as Qwen3 does.*student\.architecture=own") as said:
        hybrid(make("Qwen3 (q/k norms)"), 1, architecture=kind)
    assert "\n" not in str(said.value)
    with pytest.raises(UserError, match="biases beneath their norms"):
        hybrid(qwen3(attention_bias=True), 1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(attention_layers=[3]), "layers are 0 to 2"),
        (dict(attention_layers=[1], depth=1), "takes 0"),
        (dict(depth=4), "write 1 to 3"),
        (dict(depth=0), "depth: 0"),
        (dict(attention_layers=[1, 1]), "each once"),
        (dict(half_life=0), "half_life: 0"),
        (dict(conv_tap=0), "conv_tap: 0"),
        (dict(architecture="mamba"), "bamba"),
    ],
)
def test_wrong_options_are_said_in_a_line(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        convert(adapt_teacher(llama()), "hybrid_lm", **options)
    with pytest.raises(UserError, match="architecture=bamba"):
        hybrid(make("Llama, biases, wide heads"), architecture="granite")
