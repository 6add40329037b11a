"""Hybrids timed beside their teacher: that what is timed decodes rightly, and what the rows say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "students"))
from hybrids import hybrid, llama, make

from transmamba import UserError
from transmamba.bench import decode, decode_models, fits
from transmamba.bench.decode import bench_decode
from transmamba.bench.decode_models import (
    Decoding,
    Prefill,
    attention_layers,
    hybrid_config,
    make_model,
    read_model_config,
)
from transmamba.cli.main import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration alone."""
    folder = tmp_path_factory.mktemp("decode")
    llama().config.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Seconds that fall by half from model to model; (steps, rounds of warming up) of each point."""
    said = []

    def interleaved(kinds: Any, steps: int, device: Any, *, warmup: int, before: Any) -> dict[str, float]:
        assert kinds.keys() == before.keys()
        said.append((steps, warmup))
        return {name: 0.5**number for number, name in enumerate(kinds)}

    monkeypatch.setattr(fits, "interleaved", interleaved)
    return said


def greedy(model: Any, text: Tensor, count: int) -> Tensor:
    """Without any cache."""
    for _ in range(count):
        logits = model(text, use_cache=False).logits[:, -1:]
        text = torch.cat([text, logits.argmax(-1)], dim=1)
    return text[:, -count:]


def written(decoding: Decoding, first: Tensor) -> Tensor:
    """The four words that it writes, one step after the other, behind `first`."""
    decoding.ids.copy_(first)
    seen = []
    for _ in range(4):
        decoding.step()
        seen.append(decoding.ids.clone())
    return torch.cat(seen, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("keep", [None, (1,), (), (0, 1, 2)])
def test_a_timed_run_writes_what_the_model_says(keep: tuple[int, ...] | None) -> None:
    """After a prompt that was read and not made up; again, where there is no state of Mamba-2."""
    stock: Any = llama() if keep is None else hybrid(llama(), *keep).stock()
    text = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(5))
    decoding = Decoding(stock, 2, 20, 4)
    decoding.cache.reset()
    first = stock(text[:, :16], past_key_values=decoding.cache, use_cache=True).logits[:, -1:].argmax(-1)
    wanted = greedy(stock, torch.cat([text[:, :16], first], dim=1), 4)
    for _ in range(2 if keep in (None, (0, 1, 2)) else 1):
        decoding.rewind()
        assert torch.equal(written(decoding, first), wanted)
    prompt = Prefill(stock, 2, 17)
    prompt.ids.copy_(text)
    for _ in range(2):
        prompt.rewind()
        logits = prompt()
        assert logits.shape == (2, 1, 97)
        assert torch.allclose(logits[:, 0], stock(text, use_cache=False).logits[:, -1], atol=1e-4)


@pytest.mark.parametrize("name", ["SmolLM (tied)", "Qwen2 (QKV biases)", "Llama, biases, wide heads"])
def test_the_hybrid_is_the_one_that_would_be_converted(name: str) -> None:
    model = make(name)
    for keep in ((1,), ()):
        wanted = hybrid(model, *keep).config.to_dict()
        found = hybrid_config(model.config, keep).to_dict()
        assert found == wanted
        assert attention_layers(hybrid_config(model.config, keep)) == len(keep)
    assert attention_layers(model.config) == 3


def test_rows_say_what_was_found(teacher: str, no_time: list[tuple[int, int]]) -> None:
    """8 bytes of a pair of bf16 numbers in each of 2 heads of 8 channels; Mamba-2's of 4 heads in float32."""
    options = dict(keep=[1], lengths=[16, 32], batches=[1, 3], steps=7, tokens=4, device="cpu")
    rows = list(bench_decode(teacher, **options))  # type: ignore[arg-type]
    assert no_time == [(7, 2)] * 4 + [(3, 1)] * 4
    points = [(row["phase"], row["length"], row["batch"], row["model"]) for row in rows]
    assert points == [
        (phase, length, batch, model)
        for phase in ("decode", "prefill")
        for length in (16, 32)
        for batch in (1, 3)
        for model in ("teacher", "hybrid")
    ]
    for row in rows:
        teacher_s = row["model"] == "teacher"
        seconds = 1.0 if teacher_s else 0.5
        written, counted = (4, 4) if row["phase"] == "decode" else (1, row["length"])
        assert row["milliseconds"] == 1000 * seconds / written
        assert row["tokens_per_second"] == row["batch"] * counted / seconds
        assert (row["speed"], row["peak_memory_mb"], row["problem"]) == (1 / seconds, None, None)
        keys = row["batch"] * row["length"] * 2 * 2 * 8 * 2
        states = row["batch"] * 4 * (8 * 8 * 4 + 3 * 8 * 4 * 2)  # of one layer
        assert row["attention_layers"] == (3 if teacher_s else 1)
        assert row["cache_mb"] * 2**20 == (3 * keys if teacher_s else keys + 2 * states)
    json.dumps(rows)


def test_what_does_not_fit_is_a_row(
    teacher: str, no_time: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that never does in 5 rows, a hybrid that does without the teacher in 3, neither in 9."""
    held: list[str] = []

    class Narrow(Prefill):
        def __init__(self, model: Any, batch: int, length: int) -> None:
            name = "teacher" if model.config.model_type == "llama" else "hybrid"
            if batch == 9 or (name, batch) == ("teacher", 5) or (held and batch == 3):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            super().__init__(model, batch, length)
            held.append(name)

        def __del__(self) -> None:
            if hasattr(self, "cache"):
                held.pop()

    monkeypatch.setattr(decode, "Prefill", Narrow)
    rows = list(bench_decode(teacher, [0], [12], [1, 3, 5, 9], phases=["prefill"], device="cpu"))
    assert [(row["batch"], row["speed"], row["problem"]) for row in rows] == [
        (1, 1.0, None),
        (1, 2.0, None),
        (3, 1.0, None),
        (3, 1.0, "not in turns: no room beside the other"),
        (5, None, "out of memory"),
        (5, None, None),
        (9, None, "out of memory"),
        (9, None, "out of memory"),
    ]
    assert rows[5]["tokens_per_second"] == 5 * 12 and rows[4]["milliseconds"] is None and not held
    other = RuntimeError("shapes cannot be multiplied")
    monkeypatch.setattr(Narrow, "__call__", lambda self: (_ for _ in ()).throw(other))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(bench_decode(teacher, [0], [12], [1], phases=["prefill"], device="cpu"))


def test_mamba_runs_on_the_kernels_that_are_named(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding and prompts; a reader who stops in the middle leaves transformers as it was."""
    from transformers.models.bamba import modeling_bamba
    from transmamba_kernels import compat

    theirs = (modeling_bamba.mamba2_selective_state_update, modeling_bamba.mamba2_chunk_scan)
    calls = {"selective_state_update": 0, "mamba_chunk_scan_combined": 0}
    for name in calls:
        ours = getattr(compat, name)

        def counted(*arguments: Any, name: str = name, ours: Any = ours, **options: Any) -> Any:
            calls[name] += 1
            return ours(*arguments, **options)

        monkeypatch.setattr(compat, name, counted)

    def rows(kernels: Any) -> Iterator[dict[str, Any]]:
        return bench_decode(teacher, [0], [12], [1], steps=1, tokens=2, kernels=kernels, device="cpu")

    assert {row["kernels"] for row in rows("transformers")} == {"transformers"}
    assert list(calls.values()) == [0, 0]
    begun = rows("transmamba")
    next(begun)
    begun.close()
    # two layers; two tokens of the first run, of two to warm up, of one that is timed; two prompts
    assert list(calls.values()) == [2 * 2 * 4, 2]
    assert theirs == (modeling_bamba.mamba2_selective_state_update, modeling_bamba.mamba2_chunk_scan)


def test_weights_and_caches_have_the_precision(teacher: str, no_time: list[tuple[int, int]]) -> None:
    model = make_model(decode_models.read_model_config(teacher), CPU, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not model.training
    sizes = {
        precision: next(bench_decode(teacher, [], [16], [1], precision=precision, device="cpu"))["cache_mb"]
        for precision in ("no", "bf16")
    }
    assert sizes["no"] == 2 * sizes["bf16"]


def test_what_a_student_would_have_as_zeros_is_zero() -> None:
    for keep in ((), (1,)):
        model = make_model(hybrid_config(llama().config, keep), CPU, torch.float32)
        empty = [not any(bool(p.any()) for p in layer.parameters()) for layer in model.model.layers]
        assert empty == [False] * 3 + [True] * (not keep)


@torch.no_grad()
@pytest.mark.parametrize("keep", [(1,), ()])
def test_the_kernels_of_a_token_write_the_same(
    keep: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the operators that a GPU has it run on, its null layer left out."""
    from transmamba_kernels import patch_transformers, transformers_tokens

    steps = []
    plain = transformers_tokens.mamba2_step
    monkeypatch.setattr(transformers_tokens, "mamba2_step", lambda *a: steps.append(1) or plain(*a))
    stock: Any = hybrid(llama(), *keep).stock()
    text = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(5))
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    decoding = Decoding(stock, 2, 20, 4)
    decoding.cache.reset()
    with patch_transformers([stock.config.model_type]):
        first = stock(text, past_key_values=decoding.cache, use_cache=True).logits[:, -1:].argmax(-1)
        decoding.rewind()
        found = written(decoding, first)
    assert len(steps) == 4 * (3 - len(keep))
    assert torch.equal(found, greedy(stock, torch.cat([text, first], dim=1), 4))


def test_a_token_is_recorded_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in of CUDA's graph; one that cannot be recorded is told of in a line."""
    recorded: list[Any] = []

    class Replay:
        def __init__(self, body: Any, inputs: Any, constants: Any) -> None:
            recorded.append(body)
            self.calls = 0

        def __call__(self) -> None:
            self.calls += 1

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(decode_models, "Recording", Replay)
    stock = llama()
    with torch.no_grad():
        made: Any = Decoding(stock, 1, 12, 3, graphs=True)
        made()
        assert len(recorded) == 1 and made._recording.calls == 3
        assert made.cache.get_seq_length() == 9, "it is at the first token again"

        def fails(*_: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        monkeypatch.setattr(decode_models, "Recording", fails)
        with pytest.raises(UserError, match=r"graphs: a token of llama could not be .*capturing\); leave"):
            Decoding(stock, 1, 12, 3, graphs=True)


def test_a_student_s_own_configuration(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hybrid(llama(), 0, 2).save_pretrained(tmp_path)
    capsys.readouterr()  # what libraries print when they are imported
    words = ["bench", "decode", "--teacher", f"{teacher}/config.json", "--lengths", "12", "--batch", "2"]
    words += ["--steps", "1", "--tokens", "2", "--device", "cpu", "--precision", "no"]
    assert main([*words, "--student", str(tmp_path), "--phases", "prefill", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["attention_layers"] for row in rows] == [3, 2]
    assert main([*words, "--keep", "1", "--phases", "decode"]) == 0
    first, head, *lines = capsys.readouterr().out.splitlines()
    assert first == "Mamba-2 by transmamba, no" and head.split()[:3] == ["phase", "tokens", "batch"]
    assert [line.split()[:5] for line in lines] == [
        ["decode", "12", "2", "teacher", "3"],
        ["decode", "12", "2", "hybrid", "1"],
    ]


def test_what_cannot_be_timed_is_told_in_a_line(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "bert.json").write_text('{"model_type": "bert"}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "not.json").write_text("{")
    for given, options, says in (
        (teacher, dict(lengths=[11]), "length is 11; write at least 12"),
        (teacher, dict(batches=[0]), "batch is 0; write at least 1"),
        (teacher, dict(steps=0), "steps is 0; write at least 1"),
        (teacher, dict(phases=["train"]), r"phases is \['train'\].*phases out of decode, prefill"),
        (teacher, dict(lengths=[]), r"lengths \[\]"),
        (teacher, dict(kernels="mamba_ssm"), "kernels is 'mamba_ssm'; write transmamba or transformers"),
        (teacher, dict(precision="int8"), "precision is 'int8'"),
        (teacher, dict(graphs=True), "graphs are CUDA's"),
        (teacher, dict(keep=[7]), r"has 7; the teacher's layers are 0 to 2"),
        (teacher, dict(keep=[1], student=teacher), r"keep is \[1\], but student"),
        (teacher, dict(student=teacher), "llama has no Mamba-2"),
        (str(tmp_path / "bert.json"), {}, "model_type is 'bert'"),
        (str(tmp_path / "list.json"), {}, "model_type is None"),
        (str(tmp_path / "not.json"), {}, "is no JSON"),
        (str(tmp_path / "nowhere"), {}, "no such folder"),
    ):
        with pytest.raises(UserError, match=says) as said:
            next(bench_decode(given, device="cpu", **options))  # type: ignore[arg-type]
        assert "\n" not in str(said.value)
    assert main(["bench", "decode", "--teacher", teacher, "--batch", "x"]) == 2


def test_of_a_llava_the_decoder_is_timed(tmp_path: Path) -> None:
    """As its config.json says it, in a folder or alone; one that says nothing of it is refused."""
    from small_llava import llava_folder
    from transformers import AutoConfig

    folder = llava_folder(tmp_path / "llava")
    decoder = AutoConfig.from_pretrained(folder).text_config
    for name in (folder, folder / "config.json"):
        read = read_model_config(str(name))
        assert (read.model_type, read.to_dict()) == ("llama", decoder.to_dict())
    said = json.loads((folder / "config.json").read_text())
    (tmp_path / "unsaid.json").write_text(json.dumps({**said, "text_config": None}))
    with pytest.raises(UserError, match="text_config is null"):
        read_model_config(str(tmp_path / "unsaid.json"))


WINDOWED = {"window": 5, "sinks": 2}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "keep", "nearby"),
    [
        ("SmolLM (tied)", (1,), WINDOWED),
        ("Qwen3 (q/k norms)", (), WINDOWED),
        ("Qwen3 (q/k norms)", (0,), {}),
    ],
)
def test_a_timed_run_of_our_own_class_writes_what_it_says(
    name: str, keep: tuple[int, ...], nearby: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = make_model(hybrid_config(make(name).config, keep, **nearby), CPU, torch.float32)
    for parameter in model.parameters():  # at their start, words are nearly alike
        parameter.normal_(std=0.2)
    text = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(5))
    decoding = Decoding(model, 2, 20, 4)
    decoding.cache.reset()
    first = model(text[:, :16], past_key_values=decoding.cache).logits[:, -1:].argmax(-1)
    wanted = greedy(model, torch.cat([text[:, :16], first], dim=1), 4)
    assert torch.equal(written(decoding, first), wanted)
    assert len(wanted.unique()) > 1
    prompt = Prefill(model, 2, 17)
    prompt.ids.copy_(text)
    for _ in range(2):
        prompt.rewind()
        assert torch.allclose(prompt()[:, 0], model(text, use_cache=False).logits[:, -1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [16, 19, 33])
@pytest.mark.parametrize("student", ["hybrid_lm", "window_lm"])
def test_a_cache_that_pretends_holds_what_one_that_read_does(tokens: int, student: str) -> None:
    other = "window_mamba" if student == "hybrid_lm" else "window_attention"
    config = hybrid_config(make("SmolLM (tied)").config, (1,), **WINDOWED)
    config.layer_kinds = [other if kind == "window_mamba" else kind for kind in config.layer_kinds]
    model = make_model(config, CPU, torch.float32)
    read = model.fixed_cache(40)
    model(torch.randint(3, 97, (2, tokens)), past_key_values=read)
    made = Decoding(model, 2, 40, 40 - tokens)
    assert made.start == tokens == made.cache.read and made.cache.next.tolist() == read.next.tolist()
    for mine, theirs in zip(made.cache.held, read.held, strict=True):
        assert mine["keys"].shape == theirs["keys"].shape and mine["keys"].std() > 0.5
    assert made.cache.placed.keys() == read.placed.keys()
    for kind, places in read.placed.items():
        still = places >= 0
        assert torch.equal(made.cache.placed[kind][still], places[still]) and still.any()


def test_rows_of_our_own_class(teacher: str, no_time: list[tuple[int, int]]) -> None:
    options: Any = dict(keep=[1], lengths=[48], batches=[3], tokens=4, phases=["decode"], device="cpu")
    _, row = bench_decode(teacher, **WINDOWED, **options)
    assert (row["attention_layers"], row["kernels"], row["speed"]) == (1, "its own code", 2.0)
    config = read_model_config(teacher)
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    # in eights: 48 tokens and a slot for what nobody reads; 2 + 6 and that. bf16; places in 8 bytes, once for
    # all layers that remember as many
    full, near = 56 * 2 * heads * size * 2, 16 * 2 * heads * size * 2
    far = 16 * heads * 4 + heads * (size * size + size) * 4  # steps, state and sums in float32
    assert row["cache_mb"] * 2**20 == 3 * (full + 56 * 8 + 2 * (near + far) + 16 * 8)
    with pytest.raises(UserError, match=r"counts its tokens on the host.*leave --compile out"):
        next(bench_decode(teacher, compiled=True, device="cpu", **WINDOWED))
    with pytest.raises(UserError, match=r"window is 5, sinks 2, but student .* has its own"):
        next(bench_decode(teacher, student=teacher, device="cpu", **WINDOWED))
    for sizes, says in (({"sinks": 2}, "sinks is given, but window is 0"), ({"window": -1}, "window is -1")):
        with pytest.raises(UserError, match=says):
            next(bench_decode(teacher, [1], device="cpu", **sizes))  # type: ignore[arg-type]


def test_a_folder_of_our_own_class_is_timed(tmp_path: Path, teacher: str) -> None:
    config = hybrid_config(make("SmolLM (tied)").config, (1,), **WINDOWED)
    config.save_pretrained(tmp_path)
    for given in (tmp_path, tmp_path / "config.json"):
        assert read_model_config(str(given)).layer_kinds == config.layer_kinds
