"""Measures cases: every implementation of one, in turns, in one process."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import peers
from .case import Call, Case
from .cases import cases
from .machine import describe
from .report import case_table, header, plot
from .timing import Timer, graphed, peak_bytes, saved_bytes

ROUNDS = 60
QUICK_ROUNDS = 10


def bench_kernels(
    ops: Sequence[str] = (),
    shapes: Sequence[str] = (),
    quick: bool = False,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    graphs: bool = False,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Times of our operators and of what else is installed: {"machine", "results", "absent"}.

    ops, shapes: which, all where empty; a shape is picked by its label, "B64 D768 L197 N16", or a word of it.
    quick: one shape an operator, few rounds. out: a folder for kernels.json and kernels.png. graphs: also as
    replays of CUDA graphs, without the time of the launches. say: gets each part of the report as it comes.

    Raises ValueError for an operator that does not exist and where no shape fits.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    wanted = list(cases(where, dtype, list(ops), list(shapes), quick))
    if not wanted:
        raise ValueError(f"shapes: none of the labels has {' or '.join(shapes)}")
    machine = describe(where)
    say(header(machine))
    rounds = QUICK_ROUNDS if quick else ROUNDS
    results: list[dict[str, Any]] = []
    for case in wanted:
        rows = measure(case, where, rounds, machine, graphs and where.type == "cuda")
        for row in rows:
            row["dtype"] = str(dtype).removeprefix("torch.")
        say(case_table(rows))
        results += rows
    for name, reason in peers.absent.items():
        say(f"not measured: {name} ({reason})")
    result = {"machine": machine, "results": results, "absent": dict(peers.absent)}
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernels.json").write_text(json.dumps(result, indent=1))
        say(f"\nnumbers: {folder / 'kernels.json'}\n{plot(results, machine, folder / 'kernels.png')}")
    return result


def measure(
    case: Case, device: torch.device, rounds: int, machine: dict[str, Any], graphs: bool
) -> list[dict[str, Any]]:
    """One row an implementation; one that fails gets its error for a row."""
    if device.type != "cuda":
        return _measure(case, device, rounds, machine, graphs)
    # A CUDA graph cannot hold the default stream, and a backward runs on the stream of its forward.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        return _measure(case, device, rounds, machine, graphs)


def _measure(
    case: Case, device: torch.device, rounds: int, machine: dict[str, Any], graphs: bool
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    work: dict[str, dict[str, Callable[[], Any]]] = {}
    for name, build in case.calls.items():
        row: dict[str, Any] = {
            "op": case.op,
            "label": case.label,
            "shape": case.shape,
            "implementation": name,
        }
        rows[name] = row
        try:
            call = build()
            work[name] = _phases(call, row, case, device)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    timer = Timer(device)
    for phase in ("inference", "forward", "backward"):
        calls = {name: phases[phase] for name, phases in work.items() if phase in phases}
        for name, (seconds, turns) in timer.medians(calls, rounds).items():
            rows[name][f"{phase}_ms"] = 1e3 * seconds
            rows[name][f"{phase}_rounds"] = turns
            _shares(rows[name], phase, seconds, case, machine)
        if graphs:
            captured = {name: graphed(call) for name, call in calls.items()}
            replays = {name: replay for name, replay in captured.items() if replay is not None}
            for name, (seconds, _) in timer.medians(replays, rounds).items():
                rows[name][f"{phase}_graph_ms"] = 1e3 * seconds
            del captured, replays
    work.clear()
    gc.collect()
    return list(rows.values())


def _phases(
    call: Call, row: dict[str, Any], case: Case, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """What is timed of one implementation; fills in what is counted, not timed."""
    still = {name: tensor.detach() for name, tensor in call.tensors.items()}

    def inference() -> Any:
        with torch.no_grad():
            return call.run(**still)

    read = sum(tensor.nbytes for tensor in still.values())
    written = sum(tensor.nbytes for tensor in _tensors(inference())) + call.bytes_again
    row["inference_bytes"] = read + written
    if not call.trains:
        return {"inference": inference}
    leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in call.tensors.items()}
    wanted = [tensor for tensor in leaves.values() if tensor.requires_grad]

    def forward() -> Any:
        return call.run(**leaves)

    row["saved_bytes_per_element"] = saved_bytes(forward, wanted) / case.elements
    outputs = _tensors(forward())
    grads = [torch.randn_like(y) for y in outputs]

    def backward() -> Any:
        return torch.autograd.grad(outputs, wanted, grads, retain_graph=True)

    row["forward_bytes"] = read + written
    row["backward_bytes"] = read + written + sum(tensor.nbytes for tensor in backward())
    if device.type == "cuda":
        row["peak_bytes"] = peak_bytes(lambda: torch.autograd.grad(_tensors(forward()), wanted, grads))
    return {"inference": inference, "forward": forward, "backward": backward}


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _shares(row: dict[str, Any], phase: str, seconds: float, case: Case, machine: dict[str, Any]) -> None:
    """Least bytes and exponentials over the time, over what the machine can do.

    The least bytes are the inputs', the outputs' and, in the backward, the gradients': what else an
    implementation moves counts against it.
    """
    share = row[f"{phase}_bytes"] / seconds / (1e9 * machine["copy_gb_per_s"])
    row[f"copy_share_{phase}"] = share
    if case.exps:
        row[f"exp2_share_{phase}"] = case.exps / seconds / (1e9 * machine["exp2_per_ns"])
