"""`transmamba search-peft`: which methods of an adapter, how large and how fast, in two steps.

The folder of a search holds journal.log (optuna's, of both steps), search.json (what was asked), search.html
and best.yaml, the recipe with the best adapter, whose run alone looks at the test split.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..config.registry import METHODS as REGISTRY
from ..errors import UserError
from ..peft import MambaPeftConfig
from ..peft.families.mixer import Mixer
from ..peft.search.space import SIZES, Parts, as_first, first, known_sets, names_of, second
from ..peft.search.study import FREE, JOURNAL, METHODS, PARAMETERS, WHY, Pruned, Steps, finished, unlock
from ..peft.student import refuse_apart
from ..peft.targets import candidates, described, targets_of
from ..reporting.progress import Display
from ..reporting.search_page import write_search
from ..training.interrupted import Interrupted
from ..training.precision import float32_products
from .build import assemble, make_accelerator
from .folder import sole
from .recipe import Recipe
from .search_settings import SETTINGS, Search, claim
from .search_trial import clear, headline, held_out, methods_of, score, with_methods
from .withdrawn import unmade, withdrawn

BEST = "best.yaml"
_BETWEEN_LOOKS = 0.5


@dataclass
class Plan:
    """What all workers know: the recipe on its held-out split, what is searched, how scores are read, and
    what is adapted: mixers and embedding (`takers`), how many parameters are trained whole, and which methods
    the student does not take, and why (`refused`)."""

    recipe: Recipe
    search: Search
    folder: Path
    names: list[str]
    limit: int | None
    metric: Any
    takers: dict[str, list[Mixer]]
    whole: int
    refused: dict[str, str] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)

    def parameters(self, recipe: Recipe) -> int:
        """That a recipe's adapter trains, counted without making it."""
        assert recipe.adapter is not None, "made by with_methods"
        pairs = ((method, mixer) for method in recipe.adapter.methods for mixer in self.takers[method.on])
        starts = (start for method, mixer in pairs for start in method.tensors(mixer).values())
        return self.whole + sum(math.prod(start.shape) for start in starts if not start.buffer)

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
    there = claim(folder, recipe, search)
    begun = (folder / JOURNAL).is_file
    with unmade(there), sole(folder, "the search's folder"), withdrawn(there, (SETTINGS,), begun):
        unlock(folder)
        accelerator = accelerator or make_accelerator(recipe)
        display = Display(quiet=quiet)
        clear(folder)
        plan = _plan(recipe, search, folder, accelerator)
        for name, why in plan.refused.items():
            display.say(f"{name} is not searched: {why}")
        for step in ("step 1", "step 2"):
            steps = plan.steps(step)
            steps.drop_unfinished()
            _try_all(plan, step, steps, workers, accelerator, display)
            if steps.best is None:
                why = next((trial.user_attrs.get("why") for trial in steps.finished), "none was tried")
                raise UserError(
                    f"{step}: no trial could be scored within the budget; the first one: {why}; write a "
                    "larger --budget, or more --trials"
                )
            plan.chosen = names_of(steps.best.user_attrs[METHODS])
        return _leave(plan)


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
            method = REGISTRY[name]()
            targets_of(MambaPeftConfig(methods=[method]), student)
            refuse_apart(student, [method])
            names.append(name)
        except UserError as error:
            why[name] = str(error)
    if search.methods and why:
        raise UserError(next(iter(why.values())))
    if not names:
        raise UserError(f"the student takes none of the methods: {next(iter(why.values()))}")
    size = sum(parameter.numel() for parameter in student.parameters())
    assert probe.adapter is not None, "made by with_methods"
    found = candidates(student)
    config = probe.adapter.config([{"name": name} for name in names])
    takers: dict[str, list[Mixer]] = {"mixer": [], "embedding": []}
    for target in targets_of(config, student):
        takers[found[target][1].on].append(described(*found[target]))
    ends = probe.adapter.whole
    kept = [m for path, m in student.named_modules() if path in ends or path.rpartition(".")[2] in ends]
    whole = sum(parameter.numel() for module in kept for parameter in module.parameters())
    limit, metric = search.limit(size), headline(parts.task)
    return Plan(recipe, search, folder, names, limit, metric, takers, whole, why)


def _objective(plan: Plan, step: str, steps: Steps, accelerator: Any) -> Callable[[Any], float]:
    def objective(trial: Any) -> float:
        methods = plan.draw(step, trial)
        if not methods:
            raise Pruned("no method is on", free=True)
        recipe = with_methods(plan.recipe, methods)
        asked = methods_of(recipe)
        trial.set_user_attr(METHODS, asked)
        trial.set_user_attr(PARAMETERS, parameters := plan.parameters(recipe))
        if plan.limit is not None:
            trial.set_constraint("parameters", parameters - plan.limit)
            if parameters > plan.limit:
                raise Pruned(f"{parameters:,} parameters, and the budget is {plan.limit:,}", free=True)
        if (same := steps.before(asked)) is None:
            with float32_products(recipe.trainer.precision):
                return score(trial, recipe, plan.folder, accelerator)
        if not finished(same):
            raise Pruned(same.user_attrs.get(WHY, "given up before"), free=True)
        trial.set_user_attr(FREE, True)  # the same seed gives the same score
        return float(same.value)

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
        clear(plan.folder)  # of those that were killed
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
