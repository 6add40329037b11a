"""What adapters cost beside full tuning: a training step, memory, writing, merging, at any shape.

A model with random weights is trained whole and by each method, in turns in one process; the whole one is not
wrapped, and its parameters are those that the wrapped one has. Rows are of one length without padding.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..evaluation.cost import autocast, find_device, peak_memory_mb, reset_peak_memory
from .decode_models import out_of_memory, read_model_config
from .step import interleaved

FULL = "full tuning"
# layers and channels of state-spaces' checkpoints, of which the bars are
SHAPES: dict[str, dict[str, Any]] = {
    "mamba-130m": dict(model_type="mamba", hidden_size=768, num_hidden_layers=24, vocab_size=50280),
    "mamba-1.4b": dict(model_type="mamba", hidden_size=2048, num_hidden_layers=48, vocab_size=50280),
    "mamba2-1.3b": dict(
        **dict(model_type="mamba2", hidden_size=2048, num_hidden_layers=48, vocab_size=50288),
        **dict(num_heads=64, head_dim=64, state_size=128, n_groups=1, tie_word_embeddings=True),
    ),
}
MORE_STATES = "additional_scan"
# what a method's step may cost, in steps of full tuning, and how fast a wrapped model writes at the least
BARS = {"time": 1.05, "time with more states": 1.3, "speed": 0.95}
_RATE, _WARMUP, _PROMPT = 1e-6, 3, 16
COLUMNS = (
    "method",
    "trained",
    "share",
    "step_ms",
    "time",
    "memory_mb",
    "memory",
    "speed",
    "merge_ms",
    "holds",
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """batch, length:  of a training step, rows and tokens of a row
    written, prompts: tokens that are written after a prompt, and how many at once
    steps:           that are timed of each kind
    precision:       of computing; weights are float32
    """

    batch: int = 8
    length: int = 512
    written: int = 64
    prompts: int = 1
    steps: int = 20
    precision: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("batch", "length", "written", "prompts", "steps"):
            least = 2 if name == "length" else 1
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; write at least {least}")


def bench_adapters(
    model: str,
    methods: Sequence[str],
    workload: Workload,
    *,
    device: str | None = None,
    ready: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """A row for full tuning, then one for each method, with the keys COLUMNS.

    model:   one of SHAPES, or a folder, id or config.json of a language model
    methods: names of adapters' methods, several joined by + for one adapter of them
    time:    of a step, in steps of full tuning; memory likewise, at the peak of a step; None on a CPU
    speed:   of writing, in the base's, which is not wrapped
    holds:   whether BARS do
    ready:   called once, when the models are there and before they are timed

    Raises UserError for methods that there are not, or that the model cannot take, and where memory is small.
    """
    from transmamba_kernels.transformers_patch import patch_transformers

    where = find_device(device)
    if not methods:
        raise UserError("--methods is empty; write names, such as lora_x,conv1d")
    tried = _Tried(_made(model, where), {name: name.split("+") for name in methods}, workload, where)
    ready()
    try:
        with patch_transformers():  # its own scans go step by step
            yield from tried.rows()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        size = f"batch {workload.batch} and length {workload.length}"
        raise UserError(f"{model} at {size} does not fit into memory; write less") from error


def _made(name: str, device: torch.device) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPES.get(name)
    config = read_model_config(name) if shape is None else AutoConfig.for_model(**shape)
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


class _Tried:
    """The base as it is and the base with adapters, of the same parameters."""

    def __init__(
        self, model: Any, methods: Mapping[str, list[str]], workload: Workload, device: torch.device
    ) -> None:
        from ..peft import MambaPeftConfig  # isort: split
        from peft import get_peft_model  # ours first, which says how it is installed

        self.workload, self.device, self.methods = workload, device, methods
        shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
        self.base = copy.deepcopy(model, shared)
        self.parameters = list(self.base.parameters())
        self.wrapped: Any = None
        for number, names in enumerate(methods.values()):
            config = MambaPeftConfig(methods=list(names), task_type="CAUSAL_LM")
            if self.wrapped is None:
                self.wrapped = get_peft_model(model, config, adapter_name=f"a{number}")
            else:
                self.wrapped.add_adapter(f"a{number}", config)
        self.adapters = {name: f"a{number}" for number, name in enumerate(methods)}
        generator = torch.Generator().manual_seed(0)
        words = model.config.vocab_size
        self.text = torch.randint(words, (workload.batch, workload.length), generator=generator).to(device)
        self.prompt = self.text[:1, :_PROMPT].repeat(workload.prompts, 1)

    def rows(self) -> Iterator[dict[str, Any]]:
        memory = {kind: self._memory(kind) for kind in (FULL, *self.methods)}
        seconds, speeds = self._steps(), self._speeds()
        whole = sum(p.numel() for p in self.parameters)
        for kind in (FULL, *self.methods):
            adapted = kind != FULL
            trained = sum(p.numel() for p in self._trained(kind))
            merge = self._merge(kind) if adapted else None
            row: dict[str, Any] = {"method": kind, "trained": trained, "share": trained / whole}
            row |= {"step_ms": 1e3 * seconds[kind], "time": seconds[kind] / seconds[FULL]}
            row |= {"memory_mb": memory[kind], "memory": _ratio(memory[kind], memory[FULL])}
            row |= {"speed": speeds[FULL] / speeds[kind] if adapted else None, "merge_ms": merge}
            yield {**row, "holds": self._holds(row) if adapted else None}

    def _holds(self, row: Mapping[str, Any]) -> bool:
        more = MORE_STATES in self.methods[row["method"]]
        most = BARS["time with more states" if more else "time"]
        return bool(row["time"] <= most and row["speed"] >= BARS["speed"])

    # --- which is active ---

    def _activate(self, kind: str) -> None:
        """Train this kind, and nothing else."""
        if kind != FULL:
            self.wrapped.set_adapter(self.adapters[kind])
        for parameter in self.parameters:
            parameter.requires_grad_(kind == FULL)

    def _trained(self, kind: str) -> list[torch.nn.Parameter]:
        if kind == FULL:
            return self.parameters
        self._activate(kind)
        return [p for p in self.wrapped.parameters() if p.requires_grad]

    # --- training ---

    def _step(self, kind: str) -> Callable[[], object]:
        """Forward, cross-entropy of the next token, backward, clip, AdamW."""
        model, trained = self.base if kind == FULL else self.wrapped, self._trained(kind)
        fused = True if self.device.type == "cuda" else None
        optimizer = torch.optim.AdamW(trained, lr=_RATE, fused=fused)

        def step() -> None:
            model.train()
            with autocast(self.device, self.workload.precision):
                loss: Tensor = model(input_ids=self.text, labels=self.text, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def _memory(self, kind: str) -> float | None:
        """MiB at most, of two steps of this kind alone, weights and the optimizer's numbers among them."""
        if self.device.type != "cuda":
            return None
        self._activate(kind)
        step = self._step(kind)
        reset_peak_memory(self.device)
        step()
        step()
        torch.cuda.synchronize(self.device)
        found = peak_memory_mb(self.device)
        del step
        gc.collect()
        torch.cuda.empty_cache()
        return found

    def _steps(self) -> dict[str, float]:
        kinds = {kind: self._step(kind) for kind in (FULL, *self.methods)}
        before = {kind: lambda kind=kind: self._activate(kind) for kind in kinds}
        return interleaved(kinds, self.workload.steps, self.device, warmup=_WARMUP, before=before)

    # --- writing and merging ---

    def _speeds(self) -> dict[str, float]:
        """Seconds in which each kind writes, the base for full tuning."""
        kinds = {kind: self._writing(kind) for kind in (FULL, *self.methods)}
        before = {kind: lambda kind=kind: self._ready(kind) for kind in kinds}
        return interleaved(kinds, max(3, self.workload.steps // 4), self.device, warmup=1, before=before)

    def _ready(self, kind: str) -> None:
        """What a wrapped model keeps between calls is made once, and not while it is timed.

        Nothing needs gradients: autocast keeps its copies only of leaves that do, which would spare the base
        alone, trained whole a moment ago, a cast of every weight at every token.
        """
        self._activate(kind)
        self.wrapped.requires_grad_(False)  # the base's parameters are among its own
        self._writing(kind, 1)()

    def _writing(self, kind: str, tokens: int | None = None) -> Callable[[], object]:
        model, count = self.base if kind == FULL else self.wrapped, tokens or self.workload.written

        def write() -> Any:
            model.eval()
            with torch.no_grad(), autocast(self.device, self.workload.precision):
                mask = torch.ones_like(self.prompt)
                options = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
                return model.generate(input_ids=self.prompt, attention_mask=mask, **options)

        return write

    def _merge(self, kind: str) -> float | None:
        """Milliseconds, the median of three; None where the weights cannot hold the adapter."""
        adapter = self.adapters[kind]
        if not all(part.merges for part in self.wrapped.peft_config[adapter].parts):
            return None
        self._activate(kind)
        runs = {kind: lambda: self.wrapped.merge_adapter([adapter])}
        before = {kind: lambda: self.wrapped.unmerge_adapter() if self._merged() else None}
        seconds = interleaved(runs, 3, self.device, warmup=1, before=before)[kind]
        self.wrapped.unmerge_adapter()
        return 1e3 * seconds

    def _merged(self) -> bool:
        return any(getattr(module, "merged", False) is True for module in self.wrapped.modules())


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def adapters_line(row: Mapping[str, Any]) -> str:
    """A row of a table; of a row without values its head."""
    if all(row.get(column) is None for column in COLUMNS):
        heads = (
            "method",
            "trained",
            "share %",
            "step ms",
            "time",
            "MiB",
            "memory",
            "speed",
            "merge ms",
            "bars",
        )
        return f"{heads[0]:<24} " + " ".join(f"{head:>12}" for head in heads[1:])
    forms = ("{:,.0f}", "{:.3f}", "{:.2f}", "{:.3f}", "{:,.0f}", "{:.3f}", "{:.3f}", "{:.1f}")
    values = [row["trained"], 100 * row["share"], *(row[column] for column in COLUMNS[3:9])]
    cells = ["-" if value is None else form.format(value) for form, value in zip(forms, values, strict=True)]
    verdict = {None: "-", True: "hold", False: "missed"}[row["holds"]]
    return f"{row['method']:<24} " + " ".join(f"{cell:>12}" for cell in [*cells, verdict])
