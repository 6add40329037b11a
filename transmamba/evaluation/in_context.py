"""What a model has learnt in context: its error, or how often it is right, at each example of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.points import mean_of_asked
from ..core.task import Matrix, Metric, Outcome, Pass, Runner, Sample
from ..data.functions.prompts import Function
from ..errors import UserError
from .baselines import ZERO, has_baselines
from .once import once

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# what is lost at a prompt's last value where the steps before it are the model's own
ROLLED = "rolled_error"


@dataclass
class Tally:
    """Of the batches so far: numbers of their prompts, how many tokens are asked at each place (N, places),
    and of each model, by what was summed, the sums over these tokens."""

    index: list[Ints] = field(default_factory=list)
    asked: list[Floats] = field(default_factory=list)
    sums: dict[str, dict[str, list[Floats]]] = field(default_factory=dict)


@dataclass
class InContextEvaluator:
    """Measures models on prompts of one function.

    read:   this process's batches: `points`, `values`, `asked` and, where answers are recalled, `candidates`
    prefix: of its metrics' keys; title: of their labels, where a run has several functions
    beside: the errors (N, places) of the baselines on the first N prompts, and of what says 0 (`zero`)
    """

    split: str
    function: Function
    read: Callable[[Pass], Iterator[Batch]]
    prefix: str = ""
    title: str = ""
    baselines: Sequence[str] = ()
    beside: Callable[[], Mapping[str, Floats]] | None = None

    @property
    def compared(self) -> Sequence[str]:
        """The baselines that predict this function."""
        return self.baselines if has_baselines(self.function) else ()

    @property
    def counted(self) -> bool:
        """Whether answers are right or wrong."""
        return self.function.signs or self.function.recalled

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The last ones are of the last tenth of a prompt's examples."""
        moments = sorted(set(self.function.moments))
        error = "squared error" + (
            " / each step's of 0" if len(moments) > 1 else f" / {moments[0]:g}" if moments != [1] else ""
        )
        found = [
            Metric(key="error", label=error, form="{:.4f}", better="down", headline=not self.counted),
            Metric(key="last_error", label=f"{error}, last tenth", form="{:.4f}", better="down"),
        ]
        if self.counted:
            found = [
                Metric(key="accuracy", label="accuracy %", headline=True),
                Metric(key="last_accuracy", label="accuracy %, last tenth"),
                *found,
            ]
        missed = "100 of what says 0" if not self.counted else "answers that are wrong"
        found.append(Metric(key="missed", label=f"missed % ({missed})", better="down"))
        if self.function.steps > 1:
            words = f"{error} of the last value, from the model's own steps"
            found.append(Metric(key=ROLLED, label=words, form="{:.4f}", better="down"))
        if self.compared:
            relative = f"ICL regression score ({self.compared[0]} 1, zero 0)"
            found.append(Metric(key="score", label=relative, form="{:.3f}"))
        for name in self.compared:
            words = f"{error} of {name}"
            found.append(Metric(key=f"{name}_error", label=words, form="{:.4f}", better="down"))
        return tuple(
            Metric(
                key=f"{self.prefix}{each.key}",
                label=f"{self.title}{each.label}",
                form=each.form,
                better=each.better,
                headline=each.headline,
            )
            for each in found
        )

    def batches(self, passing: Pass) -> Iterator[Batch]:
        return self.read(passing)

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        targets = {name: tensor.cpu() for name, tensor in batch.targets.items()}
        tally.index.append(batch.index.cpu().numpy())
        tally.asked.append(self._by_place(targets["asked"].any(dim=-1).double()))
        for name, runner in runners.items():
            made = runner.logits(batch)().float().cpu()
            kept = tally.sums.setdefault(name, {})
            for what, scores in self._scores(made, targets).items():
                kept.setdefault(what, []).append(self._by_place(scores))
            if (points := self.function.rolled(batch.inputs["points"], made)) is not None:
                again = runner.logits(replace(batch, inputs={"points": points}))().float().cpu()
                end = self.function.shape.length - 1  # of its last example, whose last step is asked before
                lost = self._scores(again, targets)["error"][:, end - 1 : end]
                kept.setdefault(ROLLED, []).append(lost.numpy())

    def _scores(self, made: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By metric, (B, L) of each token, 0 where nothing is asked."""
        values, asked = targets["values"], targets["asked"]
        moments = torch.ones(values.shape[-1], dtype=torch.float64)  # 1 where another function is wider
        moments[: self.function.shape.outputs] = torch.tensor(self.function.moments, dtype=torch.float64)
        errors = mean_of_asked((made.double() - values).square() / moments, asked)
        found = {"error": errors}
        if self.function.signs:
            found["accuracy"] = 100.0 * (asked & (made * values > 0)).any(dim=-1).double()
        if self.function.recalled:
            found["accuracy"] = (
                100.0 * (recalled(made, values, targets["candidates"]) & asked.any(dim=-1)).double()
            )
        return found

    def _by_place(self, scores: Tensor) -> Floats:
        """Sums (B, places) of scores (B, L)."""
        places = torch.tensor(self.function.places())
        summed = torch.zeros(len(scores), self.function.examples, dtype=torch.float64)
        return summed.index_add(1, places, scores[:, : len(places)].double()).numpy()

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where there is no prompt at all."""
        kept = [tally for tally in tallies if any(map(len, tally.index))]
        if not kept:
            raise UserError(f"the {self.split} split is empty; there is nothing to measure")
        index, chosen = once([part for tally in kept for part in tally.index])
        asked = np.concatenate([part for tally in kept for part in tally.asked])[chosen]
        found = {}
        for name in kept[0].sums:
            sums = {
                what: np.concatenate([part for tally in kept for part in tally.sums[name][what]])[chosen]
                for what in kept[0].sums[name]
            }
            found[name] = self._outcome(name, index, asked, sums)
        return found

    @property
    def _last(self) -> slice:
        """The last tenth of a prompt's examples."""
        return slice(-max(1, self.function.examples // 10), None)

    def _outcome(self, name: str, index: Ints, asked: Floats, sums: Mapping[str, Floats]) -> Outcome:
        last, metrics, items, lines = self._last, {}, {}, {}
        if ROLLED in sums:
            metrics[f"{self.prefix}{ROLLED}"] = float(sums[ROLLED].mean())
            sums = {what: each for what, each in sums.items() if what != ROLLED}
        for what, each in sums.items():
            metrics[f"{self.prefix}{what}"] = float(each.sum() / asked.sum())
            at_last = asked[:, last].sum()
            metrics[f"{self.prefix}last_{what}"] = (
                float(each[:, last].sum() / at_last) if at_last else float("nan")
            )
            items[f"{self.prefix}{what}"] = each.sum(axis=1) * (len(each) / asked.sum())
            lines[what] = each.sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
        items[f"{self.prefix}missed"] = self._missed(asked, sums)
        metrics[f"{self.prefix}missed"] = float(items[f"{self.prefix}missed"].mean())
        others: dict[str, Floats] = {}
        if self.compared and self.beside is not None:
            found = dict(self.beside())
            metrics |= self._relative(asked, sums["error"], found)
            shown = np.maximum(asked[: len(found[ZERO])].sum(axis=0), 1)
            others = {each: errors.sum(axis=0) / shown for each, errors in found.items() if each != ZERO}
        return Outcome(metrics, items, index, exhibits=self._exhibits(name, lines, others), answers=lines)

    def _missed(self, asked: Floats, sums: Mapping[str, Floats]) -> Floats:
        """(N,) of each prompt, of which the mean is one number for functions of every kind, in percent: wrong
        answers, or the error relative to that of what says 0; in the last tenth, but where every answer was
        shown before the first query."""
        places = slice(None) if self.function.recalled else self._last
        wanted = asked[:, places].sum(axis=1)
        if self.counted:
            lost = 100 * wanted - sums["accuracy"][:, places].sum(axis=1)
        else:
            lost = 100 * sums["error"][:, places].sum(axis=1)
        return lost * (len(lost) / wanted.sum()) if wanted.any() else np.full(len(lost), np.nan)

    def _relative(self, asked: Floats, errors: Floats, found: Mapping[str, Floats]) -> dict[str, float]:
        """The baselines' own errors, and the ICL regression score (arXiv 2411.03945): how much of the error
        of what says 0 a model saves, relative to what the first baseline saves, on the prompts that it has
        seen."""
        first = slice(len(found[ZERO]))
        each = {name: float(lost.sum() / asked[first].sum()) for name, lost in found.items()}
        mine, zero = float(errors[first].sum() / asked[first].sum()), each.pop(ZERO)
        saved = each[self.compared[0]] - zero
        score = {f"{self.prefix}score": (mine - zero) / saved if saved else float("nan")}
        return score | {f"{self.prefix}{name}_error": lost for name, lost in each.items()}

    def _exhibits(
        self, name: str, lines: Mapping[str, Floats], others: Mapping[str, Floats]
    ) -> tuple[Matrix, ...]:
        columns = [str(place + 1) for place in range(self.function.examples)]
        return tuple(
            Matrix(
                f"{self.function.name}: {what} by example" + (", %" if what == "accuracy" else ""),
                np.stack([line, *(others.values() if what == "error" else ())]),
                [name, *(others if what == "error" else ())],
                columns,
                column_label="example",
                lines=True,
            )
            for what, line in lines.items()
        )

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Nothing: what models say is not kept."""
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        return []


def recalled(made: Tensor, values: Tensor, candidates: Tensor) -> Tensor:
    """(B, L) bool: whether the candidate (B, C, O) nearest to a prediction (B, L, O) is the one nearest to
    its value."""
    said, right = (torch.cdist(x.double(), candidates.double()).argmin(dim=-1) for x in (made, values))
    return said == right
