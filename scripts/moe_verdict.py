"""The verdict on MoE-Mamba: final losses in order, steps until Mamba's own final loss, beside the paper's.

    python scripts/moe_verdict.py runs/moe_mamba_study [runs/moe_upcycled_study]

Reads the runs that `scripts/study.py` has finished of recipes/studies/moe_mamba.yaml and moe_upcycled.yaml,
and those alone; what is not there is said. Differences have 95 % intervals over seeds and texts, as in the
studies' own tables. Behind or ahead of Mamba is who is so in the whole interval; of the steps that 32 experts
need it is over seeds alone, and a seed that is never there counts with all. An expert starves where in the
last tenth of the log lines fewer than a tenth of its even share of tokens chose it.
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

import numpy as np
from study_tables import Score, interval, read_score

MAMBA = "mamba"
MODELS = ("e1", "e4", "e8", "e16", "e32")
PARALLEL, UPCYCLED = "parallel", ("topk_norm", "switch", "drop")
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
# of the paper, with 32 experts [recalled, as a reader of it has it]: Mamba's steps over its own
RATIO = "2.2 to 2.35"
# of Mamba's steps: 32 experts that need more of them refute the paper
MOST = 0.6
# of the blog's own numbers: what two decimals cannot tell apart
ROUNDED = 0.01
# of Mamba's loss: 8 experts so far behind are more than a tie; the blog's four are 1.1 % behind
TIE = 0.01
STARVED, LAST = 0.1, 0.1


class Curve(NamedTuple):
    """A finished run: (step, nats a token) of each evaluation, and the number in its results.

    loads: of each router each expert's share of tokens, times the number of experts, late in the run
    dropped: of its tokens, then, the mean share over routers
    """

    points: list[tuple[int, float]]
    score: Score
    loads: dict[str, list[float]] = {}  # noqa: RUF012
    dropped: float = 0.0

    @property
    def final(self) -> float:
        return self.score.value

    @classmethod
    def read(cls, run: Path) -> Curve | None:
        """None for a run that is not finished. Raises ValueError for a damaged file."""
        try:
            score = read_score(run, METRIC)
            if score is None:
                return None
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            points = [(row["step"], row[f"eval/{METRIC}"]) for row in rows if f"eval/{METRIC}" in row]
            routed = [row for row in rows if any(key.startswith("routing/") for key in row)]
            late = routed[-max(1, round(LAST * len(routed))) :]
            return cls(points, score, _loads(late), _dropped(late))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{run}: cannot be read ({error}); run it again") from None

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


def _loads(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for key in rows[0] if rows else ():
        layer, _, what = key.rpartition("/")
        if layer.startswith("routing/") and what.startswith("load_"):
            found.setdefault(layer, []).append(mean(row[key] for row in rows))
    return {layer: [len(each) * load for load in each] for layer, each in found.items()}


def _dropped(rows: Sequence[Mapping[str, float]]) -> float:
    told = [
        row[key] for row in rows for key in row if key.startswith("routing/") and key.endswith("/dropped")
    ]
    return mean(told) if told else 0.0


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
    loss, share = PAPER.get(model, (None, None))
    theirs = "- | -" if loss is None else f"{loss:.2f} | {'never' if share is None else f'{share:.2f}'}"
    if model not in found:
        return f"| {model} | not run | not run | {theirs} |"
    told = shares(found, model)
    reached = [value for value in told if value is not None]
    said = _reached(told, reached) if told else "no Mamba to compare with"
    finals = [curve.final for curve in found[model].values()]
    return f"| {model} | {_numbers(finals, '.4f')} ({len(finals)} seeds) | {said} | {theirs} |"


def order(losses: Mapping[str, float], apart: float = 0.0) -> str:
    """From the lowest loss on; those less than `apart` from each other are equal."""
    names = sorted(losses, key=lambda model: losses[model])
    signs = [" < " if losses[b] - losses[a] >= apart else " = " for a, b in pairwise(names)]
    return "".join(part for pair in zip(names, [*signs, ""], strict=True) for part in pair)


def gap(mine: Mapping[str, Curve], other: Mapping[str, Curve]) -> tuple[str, float, float] | None:
    """Mean difference over the seeds that both have, in words with its interval; and the interval, of one run
    without items nothing but the difference itself. None without such a seed."""
    pairs = [(mine[seed].score, other[seed].score) for seed in sorted(mine.keys() & other.keys())]
    if not pairs:
        return None
    center = mean(a.value - b.value for a, b in pairs)
    around = interval(pairs)
    if around is None:
        return f"{center:+.4f} [one pair]", center, center
    low, high, over = around
    seeds = f"{len(pairs)} seed{'s' * (len(pairs) > 1)}"
    return f"{center:+.4f} [{low:+.4f} to {high:+.4f}; {seeds}{', ' * bool(over)}{over}]", low, high


def verdict(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """The table and what follows from it; nothing where none of its models has run."""
    models = (MAMBA, *MODELS, PARALLEL)
    if not any(model in found for model in models):
        return []
    lines = [
        "| model | nats a token | share of steps to Mamba's loss | theirs | theirs, share |",
        "|---" * 5 + "|",
    ]
    lines += [row(found, model) for model in models]
    own = {
        model: mean(c.final for c in found[model].values()) for model in (MAMBA, *MODELS) if model in found
    }
    theirs = {model: PAPER[model][0] for model in own}
    lines += ["", f"order here:   {order(own)}", f"order theirs: {order(theirs, ROUNDED / 2)}"]
    scratch = {model: found[model] for model in models if model in found}
    return [*lines, *beside_mamba(found), *ratios(found), *starved(scratch)]


def beside_mamba(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Who is ahead of Mamba, and behind, here and there."""
    lines = []
    for model in (*MODELS, PARALLEL):
        told = gap(found.get(model, {}), found.get(MAMBA, {}))
        if told is None:
            continue
        words, low, high = told
        mine = "ahead" if high < 0 else "behind" if low > 0 else "not told apart"
        said = f"{model} - mamba: {words}: {mine}"
        if model in PAPER:
            apart = PAPER[model][0] - PAPER[MAMBA][0]
            there = "ahead" if apart < -ROUNDED / 2 else "behind" if apart > ROUNDED / 2 else "equal"
            said += f"; theirs {there}: {_agrees(mine, there, low, found)}"
        lines.append(said)
    if told := gap(found.get(PARALLEL, {}), found.get("e8", {})):
        lines.append(f"{PARALLEL} - e8: {told[0]}")
    return lines


def _agrees(mine: str, there: str, low: float, found: Mapping[str, Mapping[str, Curve]]) -> str:
    if there == "equal":
        most = TIE * mean(curve.final for curve in found[MAMBA].values())
        return f"{'no' if low > most else 'yes'} (a tie of theirs is refuted by more than {most:.4f} behind)"
    return "open" if mine == "not told apart" else "yes" if mine == there else "no"


def ratios(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Mamba's steps over those that a model needs to its loss; and the judgement of 32 experts' steps."""
    lines = []
    for model in (*MODELS, PARALLEL):
        told = shares(found, model) if model in found else []
        if told:
            said = _reached(told, [1 / share for share in told if share])
            blog = PAPER.get(model, (0.0, None))[1]
            theirs = f"; theirs {1 / blog:.2f}" if blog else ""
            theirs += f" [blog], {RATIO} [paper]" if model == "e32" else ""
            lines.append(f"Mamba's steps over those of {model}: {said}{theirs}")
            lines += [_fast(told)] if model == "e32" else []
    return lines


def _reached(told: Sequence[float | None], values: Sequence[float]) -> str:
    """`values`: of the seeds in `told` that were there."""
    of = f" ({len(values)} of {len(told)} seeds)" if len(values) < len(told) else ""
    return f"{_numbers(values, '.2f')}{of}" if values else "never"


def _fast(told: Sequence[float | None]) -> str:
    at, none = [1.0 if share is None else share for share in told], (np.zeros(0, np.int64), np.zeros(0))
    around = interval([(Score(share, *none), Score(0.0, *none)) for share in at])
    if around is None:
        return f"e32 needs {at[0]:.2f} of Mamba's steps [one seed]: open"
    low, high, over = around
    judged = "no" if low > MOST else "yes" if high <= MOST else "open"
    spread = f"{mean(at):.2f} [{low:.2f} to {high:.2f}; {len(at)} seeds, {over}]"
    return f"e32 needs {spread} of Mamba's steps; at most {MOST} as theirs: {judged}"


def starved(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """How many experts of all routers starve, seed by seed."""
    lines = []
    for model, seeds in found.items():
        for seed, curve in seeds.items():
            every = [load for loads in curve.loads.values() for load in loads]
            if len(every) > len(curve.loads):  # one expert has all
                few, lost = sum(load < STARVED for load in every), 100 * curve.dropped
                lines.append(
                    f"{model} {seed}: {few} of {len(every)} experts starve; the least has {min(every):.3f}, "
                    f"the most {max(every):.2f} of an even share; {lost:.1f} % of tokens dropped"
                )
    return lines


def upcycled(found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Each way of upcycling against the same model without."""
    lines = []
    for model in (name for name in found if name not in ("dense", MAMBA, *MODELS, PARALLEL)):
        told = gap(found[model], found.get("dense", {}))
        if told is not None:
            both = sorted(found[model].keys() & found["dense"].keys())
            each = ", ".join(f"{found[model][s].final - found['dense'][s].final:+.4f}" for s in both)
            lines.append(f"{model} - dense: {told[0]} nats a token (a seed each: {each})")
    return [*lines, *starved({name: found[name] for name in UPCYCLED if name in found})]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="+", help="a study's output_dir")
    folders = parser.parse_args().folder
    found: dict[str, dict[str, Curve]] = {}
    try:
        for folder in folders:
            more = curves(folder, (MAMBA, *MODELS, PARALLEL, "dense", *UPCYCLED))
            if both := ", ".join(model for model in more if model in found):
                raise ValueError(f"{folder}: has runs of {both}, as a folder before has; write one of them")
            found |= more
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not found:
        print(f"{folders[0]}: no finished run of the study; write its output_dir", file=sys.stderr)
        return 2
    print("\n".join([*verdict(found), *upcycled(found)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
