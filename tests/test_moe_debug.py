"""The miniature of MoE-Mamba: it learns more than which byte follows which, and its experts are all used where
their loads are balanced, and starve where they are not."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import transmamba
from transmamba.runs.run import load_recipe

ROOT = Path(__file__).parents[1]
SHORTER = (
    "task.validation=0.01",
    "trainer.global_batch=8",
    "stages.0.steps=60",
    "student.experts=8",
    "student.capacity=null",
)


def ran(shared_data: Path, folder: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    recipe = load_recipe(
        ROOT / "recipes" / "configs" / "moe_mamba_debug.yaml",
        [
            f"output_dir={folder}",
            f"task.data.train={shared_data / 'text' / 'tinystories_head.txt'}",
            f"task.cache={folder.parent / 'tokens'}",
            *SHORTER,
            *overrides,
        ],
    )
    results = transmamba.distill(recipe)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return results, [row for row in rows if "loss/cross_entropy" in row]


def bigram_nats(path: Path) -> float:
    """Of a byte after another, by their counts in the very text: no model of bigrams is better there."""
    text = path.read_bytes()
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    total = len(text) - 1
    return -sum(count / total * math.log(count / firsts[a]) for (a, _), count in pairs.items())


def least_load(rows: list[dict[str, Any]]) -> float:
    """Share of tokens that the least used of all layers' experts has, by the end."""
    return min(value for key, value in rows[-1].items() if "/load_" in key)


def test_experts_learn_and_starve_without_balance(shared_data: Path, tmp_path: Path) -> None:
    results, rows = ran(shared_data, tmp_path / "balanced", "stages.0.losses.1.weight=0.05")
    bigram = bigram_nats(shared_data / "text" / "tinystories_head.txt")
    assert 1.0 < results["student"]["nats_per_token"] < bigram - 0.1
    assert rows[-1]["loss/balance"] < 1.1 and least_load(rows) > 0.2 / 8
    keys = {key for key in rows[-1] if key.startswith("routing/balance/")}
    assert len(keys) == 2 * (8 + 2) and rows[-1]["routing/balance/0/dropped"] == 0
    loads = [rows[-1][f"routing/balance/1/load_{e}"] for e in range(8)]
    assert sum(loads) == pytest.approx(1.0, abs=1e-4)
    _, rows = ran(shared_data, tmp_path / "starved", "stages.0.losses.1.weight=0", "stages.0.steps=40")
    assert least_load(rows) < 0.1 / 8, "an expert has less than a tenth of its even share"


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(shared_data: Path, tmp_path: Path) -> None:
    """Shares of the balance loss come with the checkpoint."""
    short = ("stages.0.steps=6", "trainer.save_every=3", "trainer.log_every=1", "student.capacity=1.0")
    _, whole = ran(shared_data, tmp_path / "whole", *short)
    newest = max((tmp_path / "whole" / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    for gone in (newest, tmp_path / "whole" / "student"):
        import shutil

        shutil.rmtree(gone)
    (tmp_path / "whole" / "results.json").unlink()
    _, again = ran(shared_data, tmp_path / "whole", *short)
    assert [row["loss"] for row in again] == [row["loss"] for row in whole] and len(whole) == 6
