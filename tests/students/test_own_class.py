"""The class of our own: its folder holds its code, and is whole without us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import convert, make, moved, quiet_texts, relative, texts
from test_hybrid_lm_folder import generated, teacher_folder
from torch import Tensor

from transmamba import UserError, adapt_teacher, inspect, load_student, save_student
from transmamba.ecosystems.find import card_of
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.students.hybrid_lm.upcycled import Upcycled
from transmamba.subcloning.checkpoint import convert_checkpoint

WINDOW, SINKS = 6, 2
NEARBY: dict[str, Any] = dict(window=WINDOW, sinks=SINKS)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "windows alone": ("SmolLM (tied)", "window_lm", dict(attention_layers=[], **NEARBY)),
    "windows, mixed": ("Qwen2 (QKV biases)", "window_lm", dict(attention_layers=[1], **NEARBY)),
    "windows, normed": ("Qwen3 (q/k norms)", "window_lm", dict(attention_layers=[0], **NEARBY)),
    "hybrid, normed": ("Qwen3 (q/k norms)", "hybrid_lm", dict(attention_layers=[1])),
    "pure, normed": ("Qwen3 (q/k norms)", "hybrid_lm", dict(attention_layers=[])),
    "window and scan": ("SmolLM (tied)", "hybrid_lm", dict(attention_layers=[1], **NEARBY)),
    "window and scan, normed": ("Qwen3 (q/k norms)", "hybrid_lm", dict(attention_layers=[], **NEARBY)),
    "switch experts": (
        "SmolLM (tied)",
        "hybrid_lm",
        dict(attention_layers=[1], experts=Upcycled(count=3, routing="switch", every=2)),
    ),
    "hybrid, biases": ("Qwen2 (QKV biases)", "hybrid_lm", dict(attention_layers=[2], architecture="own")),
}
ALONE = """
import sys
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    else:
        raise AssertionError("loaded as another model")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    text = torch.load(sys.argv[1])
    with torch.no_grad():
        torch.save(model(text).logits, folder + "/logits.pt")
    model.generation_config.eos_token_id = None
    torch.save(model.generate(text[:, :9], max_new_tokens=12, do_sample=False), folder + "/generated.pt")
    model.save_pretrained(folder + "/again")
    again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(again(text).logits, model(text).logits)
assert not [name for name in sys.modules if name.startswith("transmamba")]
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[HybridStudent, Path]]:
    found = {}
    for kind, (name, student, options) in KINDS.items():
        made, _ = convert(adapt_teacher(make(name)), student, **options)
        assert isinstance(made, HybridStudent)
        folder = tmp_path_factory.mktemp("student")
        save_student(moved(made), folder)
        found[kind] = made, folder
    return found


def test_a_process_without_us_loads_the_same_model(
    saved: dict[str, tuple[HybridStudent, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    torch.save(texts(), tmp_path / "text.pt")
    folders = [str(folder) for _, folder in saved.values()]
    command = [sys.executable, "-c", ALONE, str(tmp_path / "text.pt"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    for student, folder in saved.values():
        with torch.no_grad():
            assert relative(torch.load(folder / "logits.pt"), student(texts())) < 1e-5
        stock = student.stock()
        quiet(stock)
        wanted = stock.generate(texts()[:, :9], max_new_tokens=12, do_sample=False)
        assert torch.equal(torch.load(folder / "generated.pt"), wanted)


def quiet(model: Any) -> None:
    quiet_texts(model)
    model.generation_config.eos_token_id = None


@pytest.mark.parametrize("kind", KINDS)
def test_it_generates_alike_with_and_without_cache_and_padding(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str
) -> None:
    student, _ = saved[kind]
    stock = student.stock()
    quiet(stock)
    text, lengths = texts(3, 9), (9, 1, 6)
    mask = torch.stack([torch.arange(9) >= 9 - length for length in lengths]).long()
    cached = generated(stock, text, attention_mask=mask)
    assert torch.equal(cached, generated(stock, text, attention_mask=mask, use_cache=False))
    for row, length in enumerate(lengths):
        alone = text[row : row + 1, 9 - length :]
        assert torch.equal(cached[row : row + 1], generated(stock, alone, attention_mask=alone * 0 + 1))
    mine = text[:1]
    for _ in range(12):
        with torch.no_grad():
            mine = torch.cat([mine, student(mine)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached[:1], mine[:, 9:])
    beams = [generated(stock, text, attention_mask=mask, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_may_come_in_any_portions(saved: dict[str, tuple[HybridStudent, Path]], kind: str) -> None:
    """Left-padded rows through the cache, some tokens at a time, are those rows read at once."""
    student, _ = saved[kind]
    stock, text = student.stock(), texts(2, 24)
    mask = torch.ones_like(text)
    mask[1, :7] = 0
    with torch.no_grad():
        whole = stock(text, attention_mask=mask, use_cache=False)
        cache, parts, at = None, [], 0
        for size in (5, 1, 9, 1, 1, 7):
            at += size
            made = stock(
                text[:, at - size : at], attention_mask=mask[:, :at], past_key_values=cache, use_cache=True
            )
            cache, parts = made.past_key_values, [*parts, made.logits]
    together, real = torch.cat(parts, dim=1), mask.bool()
    assert relative(together[real], whole.logits[real]) < 1e-5
    assert cache.get_seq_length() == 24


def held(cache: Any) -> list[int]:
    """Numbers that each layer's memory has."""
    return [sum(x.numel() for x in layer.values()) for layer in cache.held]


def test_a_window_remembers_no_more_than_it_reads(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    student, _ = saved["windows, mixed"]
    stock, text = student.stock(), texts(1, 40)
    with torch.no_grad():
        sizes = [held(stock(text[:, :length], use_cache=True).past_key_values) for length in (20, 40)]
    each = 2 * stock.config.num_key_value_heads * stock.config.head_dim
    assert sizes[0] == [each * n for n in (WINDOW + SINKS - 1, 20, WINDOW + SINKS - 1)]
    assert sizes[1] == [each * n for n in (WINDOW + SINKS - 1, 40, WINDOW + SINKS - 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_as_ours(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without its folder's code, and without a question."""
    student, folder = saved[kind]
    again = load_student(folder)
    assert isinstance(again, HybridStudent) and not again.training and again.kinds == student.kinds
    with torch.no_grad():
        assert torch.equal(again(texts()), student(texts()))
    assert "custom code" not in "".join(capfd.readouterr())
    save_student(again, tmp_path / "twice")
    for file in folder.glob("*.*"):
        if file.is_file() and file.suffix != ".pt":
            assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()
    save_student(again, tmp_path / "twice", overwrite=True)


def test_what_it_cannot_do_is_said(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    stock, text = saved["windows, mixed"][0].stock(), texts(1, 8)
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    for wrong, why in (
        (dict(position_ids=packed), "packed texts"),
        (dict(attention_mask=torch.ones(1, 1, 8, 8)), "attention_mask is"),
        (dict(output_attentions=True), "no attention weights"),
    ):
        with pytest.raises(ValueError, match=why):
            stock(text, **wrong)
    with torch.no_grad():
        assert torch.equal(
            stock(text, position_ids=packed * 0 + torch.arange(8) + 3).logits, stock(text).logits
        )


def test_it_has_a_loss_of_its_own(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    """For who goes on with transformers' trainer."""
    for student, _ in saved.values():
        stock, text = student.stock().train(), texts(2, 20)
        stock.gradient_checkpointing_enable()
        loss = stock(text, labels=text).loss
        loss.backward()
        with torch.no_grad():
            wanted = torch.nn.functional.cross_entropy(
                student(text)[:, :-1].flatten(0, 1), text[:, 1:].flatten()
            )
        assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
        assert all(p.grad is not None for p in stock.parameters())
        student.zero_grad(set_to_none=True)


def test_a_checkpoint_becomes_a_folder_with_its_words(tmp_path: Path) -> None:
    teacher, out = teacher_folder(tmp_path / "teacher"), tmp_path / "out"
    options = dict(attention_layers=[1], **NEARBY)
    report = convert_checkpoint(str(teacher), out, student="window_lm", options=options)
    assert not report.unused and report.covered == 1.0
    again = load_student(out)
    assert again.reads is not None or again.beside.tokenizer is not None
    assert again.beside.tokenizer("w9 w8").input_ids == [9, 8]
    card = card_of(again)
    assert card is not None and (card.licence, card.base_model) == ("mit", "somebody/llama")
    assert (
        "trust_remote_code=True" in card.snippet
        and "trust_remote_code=True" in (out / "README.md").read_text()
    )
    config = json.loads((out / "config.json").read_text())
    assert config["transmamba"]["student"] == "window_lm" and "layer_types" not in config


def test_a_damaged_folder_is_refused_in_a_line(
    saved: dict[str, tuple[HybridStudent, Path]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved["windows, mixed"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight") as said:
        load_student(tmp_path)
    assert "\n" not in str(said.value)


def test_a_state_does_not_grow(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    stock, text = saved["hybrid, normed"][0].stock(), texts(1, 40)
    with torch.no_grad():
        sizes = [held(stock(text[:, :length], use_cache=True).past_key_values) for length in (20, 40)]
    config = stock.config
    state = config.mamba_n_heads * config.mamba_d_head * config.mamba_d_state
    taps = (config.mamba_d_conv - 1) * stock.model.layers[0].mamba.conv1d.weight.shape[0]
    each = 2 * config.num_key_value_heads * config.head_dim
    assert sizes == [[state + taps, each * length, state + taps] for length in (20, 40)]


def test_a_window_with_a_scan_holds_both_and_no_more(
    saved: dict[str, tuple[HybridStudent, Path]],
) -> None:
    stock, text = saved["window and scan"][0].stock(), texts(1, 40)
    with torch.no_grad():
        sizes = [held(stock(text[:, :length], use_cache=True).past_key_values) for length in (20, 40)]
    groups, size = stock.config.num_key_value_heads, stock.config.head_dim
    each = (WINDOW + SINKS) * groups * (2 * size + 1) + groups * size * (size + 1)
    assert sizes == [[each, 2 * groups * size * length, each] for length in (20, 40)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_scan_is_the_recurrence(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several spans of chunks, from a state that several heads read, against token after token in
    float64; so is each token read alone. Decays that add up to thousands over chunks cost no precision."""
    from transmamba.students.hybrid_lm.own import scan_transmamba
    from transmamba.students.hybrid_lm.own.scan_transmamba import scan

    monkeypatch.setattr(scan_transmamba, "CHUNK", 8)
    monkeypatch.setattr(scan_transmamba, "SPAN", 32)
    seeded, most = torch.Generator().manual_seed(0), 1e-10 if dtype == torch.float64 else 1e-5
    rows, groups, heads, length, size, states = 2, 3, 2, 77, 4, 5

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=seeded)

    x, step, B = (
        drawn(rows, groups, length, size),
        drawn(rows, groups, length),
        drawn(rows, groups, length, states),
    )
    C, rate = (
        drawn(rows, groups, heads, length, states),
        -torch.tensor([0.02, 1.0, 50.0], dtype=torch.float64),
    )
    step, state = step.exp(), drawn(rows, groups, size, states)
    rounded = [part.to(dtype) for part in (x, step, rate, B, C, state)]
    made, last = scan(*rounded)
    x, step, rate, B, C, state = (part.double() for part in rounded)
    alone = rounded[-1]
    for t in range(length):
        decay = (step[:, :, t] * rate).exp()[..., None, None]
        state = decay * state + step[:, :, t, None, None] * x[:, :, t, :, None] * B[:, :, t, None]
        wanted = (state[:, :, None] * C[:, :, :, t, None]).sum(-1)
        assert relative(made[:, :, :, t].double(), wanted) < most
        one = [part[:, :, t : t + 1] for part in (rounded[0], rounded[1], rounded[3])]
        y, alone = scan(one[0], one[1], rounded[2], one[2], rounded[4][:, :, :, t : t + 1], alone)
        assert relative(y[:, :, :, 0].double(), wanted) < most
    assert relative(last.double(), state) < most and relative(alone.double(), state) < most


def test_inspect_says_which_layers_are_what(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    student, folder = saved["windows, mixed"]
    found = inspect(folder)
    tower = found.towers["decoder"]
    first = tower["sublayers"][0]["of"][0]
    assert (tower["kind"], found.converted) == ("window", ())
    assert (first["kind"], first["window"], first["sinks"]) == ("attention", WINDOW, SINKS)
    assert "window" not in tower["sublayers"][1]["of"][0] and found.refused is None
    assert found.parameters == sum(p.numel() for p in student.parameters())
    both = inspect(saved["window and scan"][1])
    first = both.towers["decoder"]["sublayers"][0]["of"][0]
    assert (first["kind"], first["window"], first["sinks"]) == ("window_mamba2", WINDOW, SINKS)
    assert (first["head_size"], first["state"], both.converted) == (8, 8, ("decoder",))
    normed = inspect(saved["hybrid, normed"][1]).towers["decoder"]
    assert [run["of"][0]["kind"] for run in normed["sublayers"]] == ["mamba2", "attention", "mamba2"]
    assert [run["of"][0]["qk_norm"] for run in normed["sublayers"]] == ["RMSNorm 1e-06"] * 3


def test_half_precision_is_as_near_as_ours(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    """To the same numbers in float32: both round, not in the same places."""
    for student, folder in saved.values():
        half, text = load_student(folder).to(torch.bfloat16), texts(1, 40)
        with torch.no_grad():
            wanted, mine, stock = student(text), half(text).float(), half.stock()(text).logits.float()
        assert relative(stock, wanted) < 1.5 * relative(mine, wanted) < 0.15
