"""A row of metrics.jsonl as people read it: names instead of keys, and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.task import Metric

# of a row: what is said of it, in this order
FIELDS = {
    "lr": "lr {:.3g}",
    "grad_norm": "gradient norm {:.3g}",
    "samples_per_second": "{:,.0f} samples/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "peak_memory_mb": "peak {:,.0f} MiB",
}


def status(row: Mapping[str, Any], metrics: Sequence[Metric] = ()) -> str:
    """`loss 0.5 (kl 0.3, feature 0.2)  lr 0.001  1,234 samples/s  data wait 15 %  peak 512 MiB`; of an
    evaluation its metrics, by their labels."""
    parts = [*_loss(row), *_evaluation(row, metrics)]
    for key, form in FIELDS.items():
        if key == "peak_memory_mb" and row.get("data_wait") is not None:
            parts.append(f"data wait {100 * row['data_wait']:.0f} %")
        if row.get(key) is not None:
            parts.append(form.format(row[key]))
    return "  ".join(parts)


def stage(row: Mapping[str, Any], stages: int) -> str:
    """`stage 2 of 3 distil`; nothing where the row names none."""
    if row.get("stage") is None:
        return ""
    of = f" of {stages}" if stages else ""
    return f"stage {row['stage'] + 1}{of} {row.get('stage_name', '')}".rstrip()


def _loss(row: Mapping[str, Any]) -> list[str]:
    """The sum, and each term where there are several or it is weighted."""
    terms = {key.removeprefix("loss/"): value for key, value in row.items() if key.startswith("loss/")}
    said = ", ".join(f"{name} {value:.4g}" for name, value in terms.items() if value is not None)
    if row.get("loss") is None:
        return [f"loss {said}"] if said else []
    return [f"loss {row['loss']:.4g}" + (f" ({said})" if said else "")]


def _evaluation(row: Mapping[str, Any], metrics: Sequence[Metric]) -> list[str]:
    known = {metric.key: metric for metric in metrics}
    said = []
    for key, value in row.items():
        if not key.startswith("eval/") or value is None:
            continue
        name = key.removeprefix("eval/")
        metric = known.get(name)
        text = metric.form.format(value) if metric else f"{value:.4g}"
        said.append(f"{metric.label if metric else name} {text}")
    return said
