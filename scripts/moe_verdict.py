"""The verdict on MoE-Mamba: final losses in order, steps until Mamba's own final loss, beside the paper's.

    python scripts/moe_verdict.py runs/moe_mamba_study

Reads the runs that `scripts/study.py recipes/studies/moe_mamba.yaml` has finished, and those alone; what is
not there is said. Intervals over items are in the study's own table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

MAMBA = "mamba"
MODELS = ("e1", "e4", "e8", "e16", "e32")
# nats a token after 100,000 steps, and the share of them until Mamba's own final loss: the authors' blog on
# the first version (MoE with 512 channels and GPT-2's words on C4), read as text, not the paper's tables
PAPER: Mapping[str, tuple[float, float | None]] = {
    MAMBA: (3.51, 1.0),
    "e1": (3.56, None),
    "e4": (3.55, None),
    "e8": (3.51, 0.91),
    "e16": (3.45, 0.56),
    "e32": (3.41, 0.46),
}
METRIC = "nats_per_token"


class Curve(NamedTuple):
    """A finished run: (step, nats a token) of each evaluation, and the number in its results."""

    points: list[tuple[int, float]]
    final: float

    @classmethod
    def read(cls, run: Path) -> Curve | None:
        """None for a run that is not finished. Raises ValueError for a damaged file."""
        try:
            final = json.loads((run / "results.json").read_text())["student"][METRIC]
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            points = [(row["step"], row[f"eval/{METRIC}"]) for row in rows if f"eval/{METRIC}" in row]
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{run}: cannot be read ({error}); run it again") from None
        return cls(points, final)

    def until(self, loss: float) -> float | None:
        """Steps to a loss, between two evaluations on the line through them; None for one never reached."""
        for step, value in self.points:
            if value <= loss:
                first = step
                break
        else:
            return None
        for (before, high), (after, low) in pairwise(self.points):
            if after == first:
                return before + (after - before) * (high - loss) / (high - low)
        return float(first)


def curves(folder: Path, models: Sequence[str]) -> dict[str, dict[str, Curve]]:
    """By model and seed, of the runs MODEL.SEED."""
    found: dict[str, dict[str, Curve]] = {}
    for model in models:
        for run in sorted(folder.glob(f"{model}.*")):
            if run.is_dir() and (curve := Curve.read(run)) is not None:
                found.setdefault(model, {})[run.name.partition(".")[2]] = curve
    return found


def shares(found: Mapping[str, Mapping[str, Curve]], model: str) -> list[float | None]:
    """By seed, steps until that seed's Mamba's final loss, as a share of its steps."""
    told = []
    for seed, curve in found[model].items():
        if (rival := found.get(MAMBA, {}).get(seed)) is not None and rival.points:
            steps = curve.until(rival.points[-1][1])
            told.append(None if steps is None else steps / rival.points[-1][0])
    return told


def _numbers(values: Sequence[float], form: str) -> str:
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"


def row(found: Mapping[str, Mapping[str, Curve]], model: str) -> str:
    """A line of the table."""
    loss, share = PAPER[model]
    theirs = f"{loss:.2f} | {'never' if share is None else f'{share:.2f}'}"
    if model not in found:
        return f"| {model} | not run | not run | {theirs} |"
    told = shares(found, model)
    reached = [value for value in told if value is not None]
    said = _numbers(reached, ".2f") if reached else "never" if told else "no Mamba to compare with"
    if reached and len(reached) < len(told):
        said += f" ({len(reached)} of {len(told)} seeds)"
    finals = [curve.final for curve in found[model].values()]
    return f"| {model} | {_numbers(finals, '.4f')} ({len(finals)} seeds) | {said} | {theirs} |"


def order(losses: Mapping[str, float]) -> str:
    """From the lowest loss on."""
    return " < ".join(sorted(losses, key=lambda model: losses[model]))


def verdict(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """The table and what follows from it."""
    lines = [
        "| model | nats a token | share of steps to Mamba's loss | theirs | theirs, share |",
        "|---" * 5 + "|",
    ]
    lines += [row(found, model) for model in (MAMBA, *MODELS)]
    own = {
        model: mean(c.final for c in found[model].values()) for model in (MAMBA, *MODELS) if model in found
    }
    theirs = {model: PAPER[model][0] for model in own}
    lines += ["", f"order here:   {order(own)}", f"order theirs: {order(theirs)}"]
    if MAMBA in own:
        apart = [m for m in own if m != MAMBA and theirs[m] != theirs[MAMBA]]
        other = [m for m in apart if (own[m] < own[MAMBA]) != (theirs[m] < theirs[MAMBA])]
        lines.append(
            f"on which side of Mamba: {len(apart) - len(other)} of {len(apart)} agree"
            + (f"; not {', '.join(other)}" if other else "")
        )
    return lines


def upcycled(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Each way of upcycling against the same model without, seed by seed."""
    lines = []
    for model in (name for name in found if name not in ("dense", MAMBA, *MODELS, "parallel")):
        both = found[model].keys() & found.get("dense", {}).keys()
        gaps = [found[model][seed].final - found["dense"][seed].final for seed in sorted(both)]
        if gaps:
            lines.append(
                f"{model} - dense: {', '.join(f'{gap:+.4f}' for gap in gaps)} nats a token, a seed each"
            )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the study's output_dir")
    folder = parser.parse_args().folder
    try:
        found = curves(folder, (MAMBA, *MODELS, "parallel", "dense", "topk_norm", "switch", "drop"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not found:
        print(f"{folder}: no finished run of the study; write its output_dir", file=sys.stderr)
        return 2
    print("\n".join([*verdict(found), *upcycled(found)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
