"""The page of a search: the front of score against parameters, the best trials, what was stopped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.task import Metric
from .figure import SERIES, STYLE, new_figure, svg
from .pages import render_template, write_page

if TYPE_CHECKING:
    from markupsafe import Markup

_SHOWN = 15


def write_search(
    path: Path, metric: Metric, steps: Sequence[Any], limit: int | None, settings: Mapping[str, Any]
) -> Path:
    """steps: each has its name (`step`), its study and the trials that are `finished`; limit: of parameters.
    Raises UserError where nothing can be written there."""
    return write_page(path, render_search(metric, steps, limit, settings))


def render_search(
    metric: Metric, steps: Sequence[Any], limit: int | None, settings: Mapping[str, Any]
) -> str:
    import matplotlib

    from ..peft.search.study import finished, front

    scored = [
        (each.step, trial) for each in steps for trial in each.trained if finished(trial) and _fits(trial)
    ]
    sign = 1 if metric.better == "up" else -1
    best = sorted(scored, key=lambda pair: (-sign * pair[1].value, pair[1].user_attrs["parameters"]))
    edge = front([trial for _, trial in scored], metric.better)
    with matplotlib.rc_context(STYLE):
        chart = _chart(metric, scored, edge, limit)
    return render_template(
        "search.html.jinja",
        html=True,
        metric=metric.label,
        best=[_row(metric, step, trial) for step, trial in best[:_SHOWN]],
        front=[_row(metric, "", trial) for trial in edge],
        chart=chart,
        counts=[(each.step, len(each.trained), sum(map(finished, each.trained))) for each in steps],
        stopped=_stopped(steps),
        settings=sorted((key, str(value)) for key, value in settings.items()),
    )


def _fits(trial: Any) -> bool:
    return all(value <= 0 for value in trial.constraints.values())


def _row(metric: Metric, step: str, trial: Any) -> dict[str, str]:
    methods = trial.user_attrs["methods"]
    return {
        "step": step,
        "score": metric.form.format(trial.value),
        "parameters": f"{trial.user_attrs['parameters']:,}",
        "methods": "; ".join(_written(method) for method in methods),
    }


def _written(method: Mapping[str, Any]) -> str:
    """A method and its options, numbers in three digits; those that are usual left out."""
    options = {key: value for key, value in method.items() if key != "name" and value is not None}
    shown = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in options.items()
        if not (key in ("rate", "decay") and value == 1)
    )
    return f"{method['name']} ({shown})" if shown else str(method["name"])


def _chart(metric: Metric, scored: Sequence[Any], edge: Sequence[Any], limit: int | None) -> Markup:
    from matplotlib.ticker import EngFormatter

    figure, axes = new_figure(height=3.6, width=8.0)
    for number, step in enumerate(dict.fromkeys(step for step, _ in scored)):
        trials = [trial for each, trial in scored if each == step]
        axes.scatter(
            [trial.user_attrs["parameters"] for trial in trials],
            [trial.value for trial in trials],
            s=16,
            color=SERIES[number],
            alpha=0.7,
            label=step,
        )
    axes.step(
        [trial.user_attrs["parameters"] for trial in edge],
        [trial.value for trial in edge],
        where="post",
        color=SERIES[2],
        label="front",
    )
    if limit is not None:
        axes.axvline(limit, color=SERIES[-1], linestyle="--", linewidth=1.2, label="budget")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(metric.label)
    axes.legend(fontsize=8)
    return svg(figure, "front")


def _stopped(steps: Sequence[Any]) -> list[tuple[str, int]]:
    """Why trials were given up, and how many."""
    found: Counter[str] = Counter()
    for each in steps:
        for trial in each.finished:
            if trial.value is None or not _fits(trial):
                why = trial.user_attrs.get("why", "not said")
                found["over the budget" if "the budget is" in why else why] += 1
    return found.most_common()
