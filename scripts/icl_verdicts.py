"""The verdicts of the study on learning in context: who learns what, beside the paper's.

    python scripts/icl_verdicts.py recipes/studies/icl.yaml [--figure OUT.png]

Of each function and architecture the rate and the state with the least that is `missed` (percent; mean over
seeds), and a verdict [ours]: ok, within 5 points or a quarter of the best architecture's; fails, where nine
tenths of what a guess misses is missed; behind, in between. Nobody is said to fail whose rate was not swept,
nor a Mamba whose state was not: such a verdict has a question mark, and so has one of fewer than three seeds.
The paper's verdicts are a recollection of Table 1 of arXiv 2402.04248 that could not be checked against it:
see docs/in_context.md. The figure: what is missed against the size of the state, a line a rate.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from study_file import Study, name_of

OK, BEHIND, FAILS = "ok", "behind", "fails"
# recollected, not read; of functions by the names of their parts
PAPER = {
    "linear": {"transformer": OK, "mamba": OK, "mambaformer": OK},
    "sparse_linear": {"transformer": OK, "mamba": OK, "mambaformer": OK},
    "two_layer_network": {"transformer": OK, "mamba": OK, "mambaformer": OK},
    "decision_tree": {"transformer": OK, "mamba": BEHIND, "mambaformer": OK},
    "orthogonal_outlier": {"transformer": OK, "mamba": BEHIND, "mambaformer": OK},
    "many_outlier": {"transformer": BEHIND, "mamba": OK, "mambaformer": OK},
    "sparse_parity": {"transformer": FAILS, "mamba": OK, "mambaformer": OK},
    "chain_of_thought": {"transformer": OK, "mamba": OK, "mambaformer": OK},
    "mqar": {"transformer": OK, "mamba": FAILS, "mambaformer": OK},
}
NEAR, SHARE, GUESSED = 5.0, 1.25, 0.9
SEEDS = 3


@dataclass(frozen=True)
class Runs:
    """Finished runs of one task and architecture: (state, rate) -> what each seed missed, in percent.

    function: by name; None where there are several
    guess: what a guess misses
    alone: whether it was learnt from labels and by itself, as in the paper
    """

    task: str
    architecture: str
    function: str | None
    guess: float
    missed: dict[tuple[str, str], list[float]]
    alone: bool = True

    @property
    def best(self) -> tuple[str, str]:
        return min(self.missed, key=lambda at: mean_of(self.missed[at]))

    @property
    def mean(self) -> float:
        return mean_of(self.missed[self.best])

    @property
    def swept(self) -> bool:
        """Whether it may be said to fail: of the architectures with a state, that was varied too."""
        states, rates = ({at[place] for at in self.missed} for place in (0, 1))
        return len(rates) > 1 and (self.architecture == "transformer" or len(states) > 1)


def mean_of(values: list[float]) -> float:
    """Infinite where a run diverged: nan is neither less nor more, and would be the best."""
    mean = statistics.fmean(values)
    return math.inf if math.isnan(mean) else mean


def guess_of(function: dict[str, Any]) -> float:
    """What is missed, in percent, by who answers at random, or says 0."""
    if function["name"] == "sparse_parity":
        return 50.0
    return 100 * (1 - 1 / function["pairs"]) if function["name"] == "mqar" else 100.0


def gather(study: Study) -> list[Runs]:
    """Of the study's finished cells; of several functions in one run each by itself. Raises ValueError for a
    damaged file."""
    found: dict[tuple[str, str], Runs] = {}
    for cell in study.cells:
        folder = study.root / name_of(cell)
        if not (folder / "results.json").is_file():
            continue
        try:
            results = json.loads((folder / "results.json").read_text())["student"]
            config = yaml.safe_load((folder / "config.yaml").read_text())
            task, taught = config["task"], config.get("teacher") is not None
        except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{folder}: cannot be read ({error})") from None
        functions = [task["function"], *task["mixed"]]
        alone = not taught and len(functions) == 1
        for function in functions:
            prefix = f"{function['name']}_" if function is not functions[0] else ""
            label = f"{cell['task']}: {function['name']}" if len(functions) > 1 else cell["task"]
            runs = found.setdefault(
                (label, cell["architecture"]),
                Runs(label, cell["architecture"], function["name"], guess_of(function), {}, alone),
            )
            at = (cell["state"], cell["rate"])
            runs.missed.setdefault(at, []).append(float(results[f"{prefix}missed"]))
    return list(found.values())


def verdict(runs: Runs, best: float) -> str:
    """`best`: the least mean of any architecture on the same task."""
    if runs.mean >= GUESSED * runs.guess:
        found = FAILS + ("" if runs.swept else "?")
    else:
        found = OK if runs.mean <= max(best + NEAR, SHARE * best) else BEHIND
    few = len(runs.missed[runs.best]) < SEEDS and not found.endswith("?")
    return found + ("?" if few else "")


def table(every: Iterable[Runs]) -> str:
    """A row a task and architecture, as Markdown."""
    heads = ("task", "architecture", "missed %, mean (least to most; seeds)", "a guess", "rate", "state")
    lines = [_row(*heads, "verdict", "paper (recollected)", "agree"), "|---" * 9 + "|"]
    every = list(every)
    for runs in every:
        best = min(other.mean for other in every if other.task == runs.task)
        (state, rate), values = runs.best, runs.missed[runs.best]
        paper = PAPER.get(runs.function or "", {}) if runs.alone else {}
        mine, theirs = verdict(runs, best), paper.get(runs.architecture, "")
        agree = "" if not theirs else "yes" if mine.rstrip("?") == theirs else "no"
        spread = f"{runs.mean:.2f} ({min(values):.2f} to {max(values):.2f}; {len(values)})"
        shown = (spread, f"{runs.guess:.1f}", rate, state, mine, theirs, agree)
        lines.append(_row(runs.task, runs.architecture, *shown))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(every: Iterable[Runs], path: Path) -> None:
    """A panel for each task and architecture that has runs of several states."""
    from matplotlib.figure import Figure

    several = [runs for runs in every if len({state for state, _ in runs.missed}) > 1]
    figure = Figure(figsize=(4.2 * max(1, len(several)), 3.4), layout="constrained")
    for place, runs in enumerate(several):
        axes = figure.add_subplot(1, len(several), place + 1, title=f"{runs.task}, {runs.architecture}")
        states = list(dict.fromkeys(state for state, _ in runs.missed))
        for rate in dict.fromkeys(rate for _, rate in runs.missed):
            points = [(states.index(s), values) for (s, r), values in runs.missed.items() if r == rate]
            axes.plot(
                [at for at, _ in points],
                [statistics.fmean(values) for _, values in points],
                marker="o",
                label=f"rate {rate}",
            )
        axes.axhline(runs.guess, linestyle="--", color="grey", label="a guess")
        axes.set_xticks(range(len(states)), states)
        axes.set(xlabel="state", ylabel="missed %", ylim=(0, None))
        axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="the study's file")
    parser.add_argument(
        "--figure", type=Path, help="where a figure is drawn: what is missed against the state"
    )
    arguments = parser.parse_args(argv)
    try:
        found = gather(Study(yaml.safe_load(arguments.study.read_text())))
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not found:
        print(
            f"error: {arguments.study}: no run of it has finished; run scripts/study.py first",
            file=sys.stderr,
        )
        return 2
    print(table(found))
    if arguments.figure is not None:
        draw(found, arguments.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
