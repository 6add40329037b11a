"""The miniature of MoE-Mamba: it learns more than which byte follows which, and all of its experts are
used."""

from __future__ import annotations

import json
import math
import shutil
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


def test_it_learns_more_than_bigrams_by_all_of_its_experts(shared_data: Path, tmp_path: Path) -> None:
    results, rows = ran(shared_data, tmp_path / "run")
    bigram = bigram_nats(shared_data / "text" / "tinystories_head.txt")
    assert 1.0 < results["student"]["nats_per_token"] < bigram - 0.1
    loads = [[row[f"routing/balance/{k}/load_{e}"] for e in range(4)] for row in rows[-3:] for k in range(2)]
    assert all(sum(each) == pytest.approx(1.0, abs=1e-4) for each in loads)
    used = [sum(each[e] for each in loads) / len(loads) for e in range(4)]
    assert min(used) > 0.25 / 5, f"starved: {used}"
    last = rows[-1]
    assert last["loss/balance"] < 1.25 and 0 < last["routing/balance/0/dropped"] < 0.5
    assert 0 < last["routing/balance/0/entropy"] <= math.log(4)


def test_pure_mamba_is_the_same_recipe(shared_data: Path, tmp_path: Path) -> None:
    alone = ("student.experts=0", "stages.0.losses=[cross_entropy]")
    results, rows = ran(shared_data, tmp_path / "mamba", *alone)
    bigram = bigram_nats(shared_data / "text" / "tinystories_head.txt")
    assert 1.0 < results["student"]["nats_per_token"] < bigram - 0.1
    assert not [key for key in rows[-1] if key.startswith("routing/")]


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(shared_data: Path, tmp_path: Path) -> None:
    """Shares of the balance loss come with the checkpoint."""
    short = ("stages.0.steps=6", "trainer.save_every=3", "trainer.log_every=1")
    _, whole = ran(shared_data, tmp_path / "whole", *short)
    newest = max((tmp_path / "whole" / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    for gone in (newest, tmp_path / "whole" / "student"):
        shutil.rmtree(gone)
    (tmp_path / "whole" / "results.json").unlink()
    _, again = ran(shared_data, tmp_path / "whole", *short)
    assert [row["loss"] for row in again] == [row["loss"] for row in whole] and len(whole) == 6
