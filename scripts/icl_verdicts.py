"""The verdicts of the study on learning in context: who learns what, beside the paper's.

    python scripts/icl_verdicts.py recipes/studies/icl.yaml [--figure OUT.png]

Of each function and architecture the rate and the state with the least that is `missed` (percent; mean over
seeds, with a 95 % interval over seeds and prompts), and a verdict [ours]: ok, within 5 points or a quarter of
the best architecture's, of a student with a teacher the teacher's, and at most half of what a guess misses
(of recall a tenth); fails, where nine tenths of what a guess misses is missed; behind, in between, where
another learnt it; open, where nobody did. Parity, of which much can be said by looking answers up, is ok
where at most 5 % is missed, and else not learnt within the steps that it had. Nobody is said to fail whose
rate was not swept, nor a Mamba whose state was not: such a verdict has a question mark, and so has one of
fewer than three seeds, of who is alone in its task, of an untaught student with one rate, and of a student
whose teacher has not learnt it itself. What has one neither agrees nor disagrees with the paper; nor does
open, or not within its steps. The best rate is chosen on the prompts that are shown. The paper's verdicts are
a recollection of Table 1 of arXiv 2402.04248 that could not be checked against it: see docs/in_context.md.

The second table has each state by itself, and differences: of a taught student to the untaught one, of a
larger state to 16 numbers, of others to the Transformer. The figure: what is missed against the size of the
state, a line a rate.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from icl_references import references
from study_file import Study, name_of
from study_tables import Score, interval, read_score

OK, BEHIND, FAILS, OPEN = "ok", "behind", "fails", "open"
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
# of a guess's miss: as much may be missed by who has learnt it; a smoother of parity misses half of it
LEARNT = {"sparse_parity": 0.1, "mqar": 0.1}
HALF = 0.5
SEEDS = 3
PARITY, UNTAUGHT = "sparse_parity", "_untaught"
SMALLEST = ("auto", "16")
Scores = dict[str, Score]  # by seed


@dataclass(frozen=True)
class Runs:
    """Finished runs of one task and architecture: (state, rate) -> what each seed missed, in percent.

    function: by name
    known:    what is missed without having learnt it, by `icl_references`
    steps:    that each of them had
    alone:    whether it was learnt from labels and by itself, as in the paper
    teacher:  what each run's teacher missed, empty where there is none
    """

    task: str
    architecture: str
    function: str
    known: dict[str, float]
    missed: dict[tuple[str, str], Scores]
    steps: int = 0
    alone: bool = True
    teacher: list[float] = field(default_factory=list)

    @property
    def guess(self) -> float:
        return self.known["guess"]

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

    def one_rate(self, state: str) -> bool:
        return sum(at == state for at, _ in self.missed) == 1

    def learnt(self, missed: float) -> bool:
        """Whether so little is missed as by nobody who has not learnt it, whatever others miss."""
        return missed <= LEARNT.get(self.function, HALF) * self.guess

    def at_state(self, state: str) -> tuple[str, Scores]:
        """The best rate of a state, and its runs."""
        rate = min((r for at, r in self.missed if at == state), key=lambda r: mean_of(self.missed[state, r]))
        return rate, self.missed[state, rate]


def mean_of(scores: Scores) -> float:
    """Infinite where a run diverged: nan is neither less nor more, and would be the best."""
    mean = statistics.fmean(score.value for score in scores.values())
    return math.inf if math.isnan(mean) else mean


def gather(study: Study) -> list[Runs]:
    """Of the study's finished cells; of several functions in one run each by itself. Raises ValueError for a
    damaged file."""
    found: dict[tuple[str, str], Runs] = {}
    for cell in study.cells:
        folder = study.root / name_of(cell)
        if not (folder / "results.json").is_file():
            continue
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
            task, taught = config["task"], config.get("teacher") is not None
            functions = [task["function"], *task["mixed"]]
            steps = sum(stage.get("steps") or 0 for stage in config.get("stages", ()))
        except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{folder}: cannot be read ({error})") from None
        for number, function in enumerate(functions):
            metric = f"{function['name']}_missed" if number else "missed"
            label = f"{cell['task']}: {function['name']}" if len(functions) > 1 else cell["task"]
            key = (label, cell["architecture"])
            if key not in found:
                known, alone = references(task, number), not taught and len(functions) == 1
                found[key] = Runs(*key, function["name"], known, {}, steps, alone)
            score = read_score(folder, metric)
            assert score is not None, "it has finished"
            at = (cell["state"], cell["rate"])
            found[key].missed.setdefault(at, {})[cell.get("seed", "")] = score
            if taught and (other := read_score(folder, metric, "teacher")) is not None:
                found[key].teacher.append(other.value)
    return list(found.values())


def verdict(runs: Runs, others: Iterable[Runs]) -> str:
    """`others`: of any architecture on the same task."""
    rivals = [each.mean for each in others if each.architecture != runs.architecture]
    doubt = len(runs.missed[runs.best]) < SEEDS
    doubt |= runs.task.endswith(UNTAUGHT) and runs.one_rate(runs.best[0])
    if runs.teacher:
        best = statistics.fmean(runs.teacher)
        doubt |= not runs.learnt(best)
    else:
        best = min([runs.mean, *rivals])
        doubt |= not rivals
    if runs.learnt(runs.mean) and (runs.function == PARITY or runs.mean <= max(best + NEAR, SHARE * best)):
        found = OK
    elif runs.function == PARITY:
        found, doubt = f"not within {runs.steps:,} steps", doubt or not runs.swept
    elif runs.mean >= GUESSED * runs.guess:
        found, doubt = FAILS, doubt or not runs.swept
    else:
        found = BEHIND if runs.learnt(best) else OPEN
    return found + "?" * doubt


def agreement(mine: str, theirs: str) -> str:
    if not theirs or mine.endswith("?") or mine not in (OK, BEHIND, FAILS):
        return "open" if theirs else ""
    return "yes" if mine == theirs else "no"


def table(every: Iterable[Runs]) -> str:
    """A row a task and architecture, as Markdown."""
    heads = ("task", "architecture", "missed %, mean [95 %] (least to most; seeds)", "without learning it")
    lines = [_row(*heads, "rate", "state", "verdict", "paper (recollected)", "agree"), "|---" * 9 + "|"]
    every = list(every)
    for runs in every:
        (state, rate), scores = runs.best, runs.missed[runs.best]
        theirs = PAPER.get(runs.function, {}).get(runs.architecture, "") if runs.alone else ""
        mine = verdict(runs, [other for other in every if other.task == runs.task])
        values = [score.value for score in scores.values()]
        spread = f"{shown(scores)} ({min(values):.2f} to {max(values):.2f}; {len(values)})"
        known = "; ".join(f"{name} {missed:.1f}" for name, missed in runs.known.items())
        cells = (runs.task, runs.architecture, spread, known, rate, state, mine, theirs)
        lines.append(_row(*cells, agreement(mine, theirs)))
    return "\n".join(lines)


def differences(every: Iterable[Runs]) -> str:
    """A row a task, architecture and state, each at its best rate, and its difference to its baseline."""
    heads = ("task", "architecture", "state", "rate", "missed %, mean [95 %]", "its teacher", "difference")
    lines = [_row(*heads, "to"), "|---" * 8 + "|"]
    found = {(runs.task, runs.architecture): runs for runs in every}
    for runs in found.values():
        teacher = f"{statistics.fmean(runs.teacher):.2f}" if runs.teacher else ""
        for state in dict.fromkeys(state for state, _ in runs.missed):
            rate, scores = runs.at_state(state)
            gap = other = ""
            if beside := baseline(found, runs, state):
                other, theirs = beside
                gap = shown(scores, theirs)
            lines.append(_row(runs.task, runs.architecture, state, rate, shown(scores), teacher, gap, other))
    return "\n".join(lines)


def baseline(found: dict[tuple[str, str], Runs], runs: Runs, state: str) -> tuple[str, Scores] | None:
    """Whom a row is compared with, in words, and its runs at its best rate."""
    plain = runs.task.replace(UNTAUGHT, "")
    if runs.task.endswith("_taught"):
        task, architecture, states = runs.task.replace("_taught", UNTAUGHT), runs.architecture, (state,)
    elif state not in SMALLEST:
        task, architecture, states = runs.task, runs.architecture, SMALLEST
    else:
        task, architecture, states = plain, "transformer", SMALLEST
    other = found.get((task, architecture))
    there = [each for each in states if other and any(at == each for at, _ in other.missed)]
    if other is None or not there or (other is runs and state in there):
        return None
    rate, scores = other.at_state(there[0])
    doubt = "?" * (task.endswith(UNTAUGHT) and other.one_rate(there[0]))
    return f"{task} {architecture} {there[0]} {rate}{doubt}", scores


def shown(scores: Scores, others: Scores | None = None) -> str:
    """Mean with its interval, or that of the difference to the runs of the same seeds."""
    if others is None:
        pairs = [(a, Score(0.0, a.index, np.zeros(len(a.index)))) for a in scores.values()]
    else:
        pairs = [(scores[seed], others[seed]) for seed in scores if seed in others]
    gaps = [a.value - b.value for a, b in pairs]
    if not pairs:
        return "no pairs"
    mean = f"{statistics.fmean(gaps):{'' if others is None else '+'}.2f}"
    if any(math.isnan(gap) for gap in gaps) or (around := interval(pairs)) is None:
        return f"{mean} [{'diverged' if any(map(math.isnan, gaps)) else 'one run'}]"
    low, high, over = around
    return f"{mean} [{low:.2f} to {high:.2f}{', ' * bool(over)}{over}]"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(every: Iterable[Runs], path: Path) -> None:
    """A panel for each task and architecture that has runs of several states."""
    from matplotlib.figure import Figure

    several = [runs for runs in every if len({state for state, _ in runs.missed}) > 1]
    columns, rows = max(1, min(4, len(several))), max(1, math.ceil(len(several) / 4))
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    for place, runs in enumerate(several):
        axes = figure.add_subplot(rows, columns, place + 1, title=f"{runs.task}, {runs.architecture}")
        states = list(dict.fromkeys(state for state, _ in runs.missed))
        for rate in dict.fromkeys(rate for _, rate in runs.missed):
            points = [(states.index(s), scores) for (s, r), scores in runs.missed.items() if r == rate]
            axes.plot(
                [at for at, _ in points],
                [statistics.fmean(score.value for score in scores.values()) for _, scores in points],
                marker="o",
                label=f"rate {rate}",
            )
        for name, missed in runs.known.items():
            axes.axhline(missed, linestyle="--", color="grey", label=name)
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
    parser.add_argument("--figure", type=Path, help="where what is missed is drawn against the state")
    arguments = parser.parse_args(argv)
    try:
        found = gather(Study(yaml.safe_load(arguments.study.read_text())))
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not found:
        said = f"{arguments.study}: no run of it has finished; run scripts/study.py first"
        print(f"error: {said}", file=sys.stderr)
        return 2
    print(f"{table(found)}\n\n{differences(found)}")
    if arguments.figure is not None:
        draw(found, arguments.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
