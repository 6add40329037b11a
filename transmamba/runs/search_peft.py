"""`transmamba search-peft`: which methods of an adapter, how large and how fast, in two steps.

The folder of a search holds journal.log (optuna's, of both steps), search.json (what was asked), search.html
and best.yaml, the recipe with the best adapter, whose run alone looks at the test split.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..config.registry import METHODS as REGISTRY
from ..errors import UserError, refuse_all, suggest
from ..peft import MambaPeftConfig
from ..peft.search.space import SIZES, Parts, as_first, first, known_sets, names_of, second
from ..peft.search.study import FREE, METHODS, PARAMETERS, WHY, Pruned, Sampler, Steps, unlock
from ..peft.targets import targets_of
from ..reporting.progress import Display
from ..reporting.search_page import write_search
from ..training.interrupted import Interrupted
from .build import assemble, make_accelerator
from .folder import differences, sole
from .recipe import Recipe
from .search_trial import headline, held_out, methods_of, score, with_methods

SETTINGS, BEST = "search.json", "best.yaml"
_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is asked.

    trials:  of each step
    budget:  largest number of trained parameters, or a share of the student's, such as `0.5%`; None: any
    methods: what is searched among; none named: all that the student takes
    sampler: `tpe`, or `random` to compare with
    """

    trials: int = 100
    budget: str | None = None
    seed: int = 0
    sampler: Sampler = "tpe"
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [] if self.trials >= 1 else [f"trials is {self.trials}; write at least 1"]
        for name in self.methods:
            if name not in SIZES:
                problems.append(f"methods: {name!r} is not searched{suggest(name, SIZES)}")
        if self.budget is not None:
            text = self.budget.removesuffix("%")
            number = float(text) if text.replace(".", "", 1).isdigit() else 0.0
            if not number or (text == self.budget and not text.isdigit()):
                problems.append(
                    f"budget is {self.budget!r}; write a number of parameters above 0, or a share: 0.5%"
                )
        refuse_all(problems)

    def limit(self, parameters: int) -> int | None:
        """The budget in parameters, of a student with so many."""
        if self.budget is None:
            return None
        return (
            int(float(self.budget[:-1]) / 100 * parameters) if self.budget.endswith("%") else int(self.budget)
        )


@dataclass
class Plan:
    """What all workers know: the recipe on its held-out split, what is searched, and how scores are read."""

    recipe: Recipe
    search: Search
    folder: Path
    names: list[str]
    limit: int | None
    metric: Any
    chosen: list[str] = field(default_factory=list)

    def steps(self, step: str) -> Steps:
        known: list[dict[str, Any]]
        if step == "step 1":
            mine = (
                []
                if self.recipe.adapter is None
                else [names_of(configs.dump(self.recipe.adapter)["methods"])]
            )
            known = [dict(each) for each in known_sets(self.names, mine)]
        else:
            known = [as_first(self.chosen)]
        settings: dict[str, Any] = dict(trials=self.search.trials, seed=self.search.seed)
        return Steps(
            self.folder, step, better=self.metric.better, known=known, sampler=self.search.sampler, **settings
        )

    def draw(self, step: str, trial: Any) -> Parts:
        return first(trial, self.names) if step == "step 1" else second(trial, self.chosen)


def search_peft(
    recipe: Recipe,
    search: Search,
    folder: Path,
    *,
    workers: int = 1,
    accelerator: Any = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Search, or go on with a search. Returns the best trial of both steps: its `score`, `parameters` and
    `methods`, and `trials` by step.

    Raises UserError for what the user can mend, and where no trial could be trained within the budget.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: write at least 1")
    _claim(folder, recipe, search)
    with sole(folder, "the search's folder"):
        unlock(folder)
        accelerator = accelerator or make_accelerator(recipe)
        plan = _plan(recipe, search, folder, accelerator)
        display = Display(quiet=quiet)
        for step in ("step 1", "step 2"):
            steps = plan.steps(step)
            steps.drop_unfinished()
            _try_all(plan, step, steps, workers, accelerator, display)
            if steps.best is None:
                why = next((trial.user_attrs.get("why") for trial in steps.finished), "none was tried")
                raise UserError(f"{step}: no trial could be scored within the budget; the first one: {why}")
            plan.chosen = names_of(steps.best.user_attrs[METHODS])
        return _leave(plan)


def _claim(folder: Path, recipe: Recipe, search: Search) -> None:
    """Make the folder this search's, or find that it is. Raises UserError for another's."""
    asked = json.loads(json.dumps({"search": configs.dump(search), "recipe": configs.dump(recipe)}))
    path = folder / SETTINGS
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); search in another folder") from None
        same = {
            **there,
            "search": {**there.get("search", {}), "trials": search.trials},
        }  # more may be asked for
        if changes := list(differences(same, asked)):
            raise UserError(
                f"{folder} holds another search ({'; '.join(changes[:3])}); name another folder: --output"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no search; name another folder: --output")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=1) + "\n")


def _plan(recipe: Recipe, search: Search, folder: Path, accelerator: Any) -> Plan:
    """Find out what the student takes, how large it is, and what scores are."""
    from dataclasses import replace

    recipe = replace(recipe, task=held_out(recipe.task), scratch=None)
    wanted = list(search.methods) or list(SIZES)
    probe = with_methods(
        recipe, [{"name": wanted[0]}]
    )  # says at once what of the recipe cannot be with an adapter
    parts = assemble(replace(probe, adapter=None), accelerator, quiet=True)
    student, names, why = parts.student, [], {}
    for name in wanted:
        try:
            targets_of(MambaPeftConfig(methods=[REGISTRY[name]()]), student)
            names.append(name)
        except UserError as error:
            why[name] = str(error)
    if search.methods and why:
        raise UserError(next(iter(why.values())))
    if not names:
        raise UserError(f"the student takes none of the methods: {next(iter(why.values()))}")
    size = sum(parameter.numel() for parameter in student.parameters())
    return Plan(recipe, search, folder, names, search.limit(size), headline(parts.task))


def _objective(plan: Plan, step: str, steps: Steps, accelerator: Any) -> Callable[[Any], float]:
    def objective(trial: Any) -> float:
        methods = plan.draw(step, trial)
        if not methods:
            raise Pruned("no method is on", free=True)
        recipe = with_methods(plan.recipe, methods)
        asked = methods_of(recipe)
        trial.set_user_attr(METHODS, asked)
        if (same := steps.before(asked)) is None:
            return score(trial, recipe, plan.folder, accelerator, plan.limit)
        if same.value is None:
            raise Pruned(same.user_attrs.get(WHY, "given up before"), free=True)
        trial.set_user_attr(FREE, True)  # the same seed gives the same score
        trial.set_user_attr(PARAMETERS, same.user_attrs[PARAMETERS])
        return same.value

    return objective


def _try_all(plan: Plan, step: str, steps: Steps, workers: int, accelerator: Any, display: Display) -> None:
    bar = display.bar(f"{step} of 2", steps.trials, "trials", prompt=True)

    def show() -> None:
        bar.update(len(steps.trained), _status(plan, steps))

    show()
    try:
        if workers == 1:
            steps.work(_objective(plan, step, steps, accelerator), show)
        else:
            _in_processes(plan, step, workers, show)
    finally:
        bar.close()


def _status(plan: Plan, steps: Steps) -> str:
    best = steps.best
    if best is None:
        return "none scored yet"
    value = plan.metric.form.format(best.value)
    return (
        f"best {value} with {best.user_attrs[PARAMETERS]:,}: {', '.join(names_of(best.user_attrs[METHODS]))}"
    )


def _in_processes(plan: Plan, step: str, workers: int, show: Callable[[], None]) -> None:
    """Each with a journal of its own open, on a GPU of its own where there are several. Raises UserError for
    one that failed, Interrupted for one that was stopped; the others are stopped then."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(plan, step, worker)) for worker in range(workers)]
    for process in processes:
        process.start()
    try:
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes):
                break
            time.sleep(_BETWEEN_LOOKS)
            show()
    finally:
        for process in processes:
            if process.exitcode is None:
                process.terminate()
            process.join()
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        raise UserError(
            f"a worker ended with exit status {codes[0]}; what it said stands above. {step} goes on "
            "where it was with the same command"
        )


def _work(plan: Plan, step: str, worker: int) -> None:
    """A worker process."""
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{worker % count}"
    try:
        steps = plan.steps(step)
        steps.work(_objective(plan, step, steps, make_accelerator(plan.recipe)), lambda: None, worker)
    except Interrupted as stopped:
        raise SystemExit(stopped.code or 1) from None


def _leave(plan: Plan) -> dict[str, Any]:
    """The page, and the recipe with the best adapter."""
    steps = [plan.steps(step) for step in ("step 1", "step 2")]
    sign = 1 if plan.metric.better == "up" else -1
    scored = [best for each in steps if (best := each.best) is not None]
    best = max(scored, key=lambda trial: sign * (trial.value or 0.0))
    searched = json.loads((plan.folder / SETTINGS).read_text())["recipe"]
    original = configs.parse(Recipe, searched, SETTINGS)
    chosen = with_methods(original, best.user_attrs[METHODS])
    configs.save_yaml(chosen, plan.folder / BEST)
    write_search(plan.folder / "search.html", plan.metric, steps, plan.limit, configs.dump(plan.search))
    return {
        "score": best.value,
        "parameters": best.user_attrs[PARAMETERS],
        "methods": best.user_attrs[METHODS],
        "trials": {each.step: len(each.trained) for each in steps},
    }


__all__: Sequence[str] = ["Search", "search_peft"]
