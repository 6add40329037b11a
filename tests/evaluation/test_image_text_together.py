"""Retrieval, zero-shot and linear probe in one task: their names, and what a run keeps of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from embedding_runners import Embeds, class_batches, filled, pair_batches, unit

from transmamba.core.task import Evaluator, Pass
from transmamba.evaluation.linear_probe import LinearProbeEvaluator
from transmamba.evaluation.retrieval import RetrievalEvaluator
from transmamba.evaluation.run import measure
from transmamba.evaluation.zero_shot import TEMPLATES, ZeroShotEvaluator
from transmamba.reporting.metrics import headline, rows
from transmamba.reporting.samples import ITEMS_FILE, SAMPLES_FILE, read_arrays, read_items, unpacked
from transmamba.reporting.samples import write_samples as keep


def test_they_share_results_and_files(tmp_path: Path) -> None:
    labels, names = torch.arange(30) % 3, ["a", "b", "c"]
    evaluators: list[Evaluator] = [
        RetrievalEvaluator("test", pair_batches(torch.arange(12), 12), lambda n: [f"caption {n}"], filled),
        ZeroShotEvaluator(
            "test",
            class_batches(labels),
            names,
            TEMPLATES,
            lambda texts: {"text": torch.tensor([[ord(text[-2])] for text in texts])},
            filled,
        ),
        LinearProbeEvaluator("test", class_batches(labels), class_batches(labels), names, filled),
    ]
    runners = {
        name: Embeds(unit(n, 30, 4), unit(n + 5, 130, 4)) for n, name in enumerate(("student", "teacher"))
    }
    measured = measure(evaluators, runners, Pass(batch_size=8))
    metrics = [metric for evaluator in evaluators for metric in evaluator.metrics]
    keys = [metric.key for metric in metrics]
    assert len(set(keys)) == len(keys)
    results = measured.results()
    assert results["student"].keys() | results["agreement"].keys() == set(keys)
    for key, found in results["difference"].items():
        mean = results["student"][key] - results["teacher"][key]
        assert found["mean"] == pytest.approx(mean, abs=1e-9) and found["low"] <= mean <= found["high"], key
        assert found["items"] == (30 if key.startswith(("zero_shot", "probe")) else 12)
        if found["ratio"] is not None:
            assert found["ratio"] == pytest.approx(results["student"][key] / results["teacher"][key]), key
    kinds = {f"{way}_{kind}" for way in ("i2t", "t2i") for kind in ("r1", "r5", "r10", "mean_rank")}
    kinds |= {f"{name}_{kind}" for name in ("zero_shot", "probe") for kind in ("top1", "top5", "per_class")}
    assert results["difference"].keys() == {"mean_recall", *kinds}
    assert results["difference"]["i2t_mean_rank"]["ratio"] and results["difference"]["probe_top1"]["ratio"]
    assert [metric.key for metric, _ in rows(results, metrics)] == keys
    first = headline(metrics)
    assert first is not None and first.key == "mean_recall"

    keep(tmp_path, measured, 6)
    items = read_items(tmp_path / ITEMS_FILE)
    assert [len(each.index) for each in items] == [12, 30, 30]
    for each, prefix in zip(items, ("", "zero_shot_", "probe_"), strict=True):
        assert each.scores and all(key.split("/")[1].startswith(prefix) for key in each.scores)
    samples, exhibits = unpacked(read_arrays(tmp_path / SAMPLES_FILE))
    headings = {sample.group.split(":")[0] for sample in samples}
    assert headings == {"image to text", "zero-shot", "linear probe"}
    titles = [exhibit.title for exhibit in exhibits["student"]]
    assert len(set(titles)) == len(titles) == 1 + 3 + 4
