"""A step's trials in a journal on the disk, which several processes write and a killed search goes on
from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError

try:
    import optuna
except ImportError as error:
    raise UserError("the search needs optuna: pip install 'transmamba[peft]'") from error

from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

JOURNAL = "journal.log"
Sampler = Literal["tpe", "random"]
# of a trial's attributes
METHODS, PARAMETERS, WHY, FREE = "methods", "parameters", "why", "free"
# trials at most for each that is trained
_FREE_ONES = 20
# trials and evaluations before any is stopped
_BEFORE_PRUNING = 4
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Pruned(optuna.TrialPruned):
    """A trial that is not worth going on with, or cannot; it says why. free: it was not trained at all."""

    def __init__(self, why: str, free: bool = False) -> None:
        super().__init__(why)
        self.free = free


def unlock(folder: Path) -> None:
    """Take away the lock of a process that was killed as it wrote, for which optuna would wait half a minute.
    Of the only process that is in the folder."""
    for lock in folder.glob(f"{JOURNAL}.lock*"):
        lock.unlink(missing_ok=True)


class Steps:
    """One step's study.

    known:   choices that are tried first
    trials:  how many there are to be that are trained, those that were pruned too; what is over the budget,
        cannot be trained, or was tried before, costs nothing and does not count
    """

    def __init__(
        self,
        folder: Path,
        step: str,
        *,
        better: str,
        trials: int,
        known: Sequence[dict[str, Any]] = (),
        seed: int = 0,
        sampler: Sampler = "tpe",
    ) -> None:
        self.step, self.trials, self.known, self.seed, self.sampler = step, trials, known, seed, sampler
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING)
        self.study = optuna.create_study(
            storage=storage,
            study_name=step,
            pruner=pruner,
            direction="maximize" if better == "up" else "minimize",
            load_if_exists=True,
        )

    def drop_unfinished(self) -> None:
        """What a killed search has begun is done again. Of the only process that is in the folder."""
        for trial in self.of(TrialState.RUNNING, TrialState.WAITING):
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def of(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    @property
    def finished(self) -> list[FrozenTrial]:
        return self.of(TrialState.COMPLETE, TrialState.PRUNED)

    @property
    def trained(self) -> list[FrozenTrial]:
        """Those finished that count."""
        return [trial for trial in self.finished if FREE not in trial.user_attrs]

    def before(self, methods: Any) -> FrozenTrial | None:
        """The first finished trial of the same methods and options, one that was refused untrained too."""
        return next((t for t in self.finished if t.user_attrs.get(METHODS) == methods), None)

    @property
    def best(self) -> FrozenTrial | None:
        """Of those within the budget; None where none is done."""
        try:
            return self.study.best_trial
        except ValueError:
            return None

    def work(self, objective: Callable[[Trial], float], done: Callable[[], None], worker: int = 0) -> None:
        """Try until there are enough, with whoever else is at it.

        Each trial's draws follow from (seed, trials before it): a search that was killed goes on with the
        choices that it would have had.
        """
        while True:
            begun = len(self.of(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
            counted = len(self.trained) + len(self.of(TrialState.RUNNING))
            if counted >= self.trials or begun >= _FREE_ONES * self.trials:
                return
            self.study.sampler = self._sampler(begun, worker)
            if begun < len(self.known):
                self.study.enqueue_trial(self.known[begun])
            trial = self.study.ask()
            try:
                value = objective(trial)
                if not math.isfinite(value):  # optuna would have it fail, and be drawn again for ever
                    raise Pruned(f"its score is {value}")
            except Pruned as why:
                trial.set_user_attr(WHY, str(why))
                if why.free:
                    trial.set_user_attr(FREE, True)
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, value)
            done()

    def _sampler(self, begun: int, worker: int) -> BaseSampler:
        seed = (self.seed * 1_000_003 + begun) * 1_009 + worker
        if self.sampler == "random":
            return RandomSampler(seed=seed % 2**32)
        return TPESampler(seed=seed % 2**32, n_startup_trials=10)


def finished(trial: FrozenTrial) -> bool:
    """Whether its score is that of the whole trial; one that was given up has the last that it reported."""
    return trial.state == TrialState.COMPLETE


def front(trials: Sequence[FrozenTrial], better: str) -> list[FrozenTrial]:
    """Those that no other one beats with as few parameters, from few to many."""
    found: list[FrozenTrial] = []
    sign = 1 if better == "up" else -1
    scored = [trial for trial in trials if finished(trial)]
    for trial in sorted(scored, key=lambda t: (t.user_attrs[PARAMETERS], -sign * _value(t), t.number)):
        if not found or sign * _value(trial) > sign * _value(found[-1]):
            found.append(trial)
    return found


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "asked by the caller"
    return trial.value
