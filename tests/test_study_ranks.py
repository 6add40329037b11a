"""scripts/study_ranks.py: ranks beside scipy's, intervals beside resampling by hand, claims on known scores;
scripts/peft_sizes.py; and what recipes/studies/peft_*.yaml would run."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter as Counted
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import rankdata

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import peft_sizes  # noqa: E402
import study_ranks  # noqa: E402
from study_file import Study, name_of  # noqa: E402

import transmamba.peft  # noqa: E402, F401  (whose methods are registered then)
from transmamba.config.registry import METHODS as REGISTERED  # noqa: E402
from transmamba.peft.search.space import SIZES  # noqa: E402

METHODS = {"a": 60.0, "b": 59.0, "c": 40.0}
TASKS = {"x": 40, "y": 60}


def study(root: Path, **ranks: Any) -> Study:
    return Study(
        {
            "output_dir": str(root),
            "common": ["config=c.yaml"],
            "axes": {
                "task": {name: [] for name in (*TASKS, "z")},
                "method": {name: [] for name in METHODS},
                "size": {"1%": []},
                "seed": {f"s{k}": [] for k in range(3)},
            },
            "report": {
                **{"metric": "top1", "better": "up", "rows": ["method", "size"], "columns": "task"},
                "ranks": {"groups": {"both": list(TASKS)}, **ranks},
            },
        }
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds each of three methods on two tasks: a and b near each other, c behind."""
    generator = np.random.default_rng(0)
    for cell in study(tmp_path).cells:
        if cell["task"] == "z":
            continue
        folder = tmp_path / name_of(cell)
        folder.mkdir()
        items = 100.0 * (generator.random(TASKS[cell["task"]]) < METHODS[cell["method"]] / 100)
        np.savez(folder / "items.npz", index=np.arange(len(items)), **{"student/top1": items})
        results: dict[str, Any] = {"student": {"top1": items.mean()}}
        if cell["method"] != "c":
            results["adapter"] = {"trained": 1234, "merge_seconds": 0.25}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.yaml").write_text("trainer: {global_batch: 50}")
        lines = [{"samples_per_second": rate, "peak_memory_mb": 7.0} for rate in (1.0, 100.0)]
        lines.append({"step": 2, "eval/top1": 3.0})
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize("better", ["up", "down"])
def test_ranks_are_scipys(better: str) -> None:
    values = np.random.default_rng(0).integers(0, 4, (3, 6, 5)).astype(float)
    wanted = [rankdata(-each if better == "up" else each, axis=0).mean(1) for each in values]
    np.testing.assert_allclose(study_ranks.mean_ranks(values, better), wanted)


def test_draws_take_the_same_runs_and_items_for_all_rows(runs: Path) -> None:
    """Two rows with the same scores differ in no draw; the spread is that of runs and items drawn by hand."""
    for seed in range(3):
        for file in ("items.npz", "results.json"):
            source = runs / f"x.a.1%.s{seed}" / file
            (runs / f"x.b.1%.s{seed}" / file).write_bytes(source.read_bytes())
    scores = study_ranks.scores_of(study(runs))
    assert np.array_equal(scores.draws[:, 0, 0], scores.draws[:, 1, 0])
    items = np.stack([np.load(runs / f"y.a.1%.s{seed}" / "items.npz")["student/top1"] for seed in range(3)])
    generator = np.random.default_rng(1)
    by_hand = [
        items[generator.integers(0, 3, 3)][:, generator.integers(0, 60, 60)].mean() for _ in range(4000)
    ]
    assert scores.values[0, 1] == pytest.approx(items.mean())
    assert scores.draws[:, 0, 1].std() == pytest.approx(np.std(by_hand), rel=0.1)
    assert scores.draws[:, 0, 1].mean() == pytest.approx(items.mean(), abs=0.6)


CLAIMS = [
    {"claim": "first", "better": "a 1%", "than": ["c 1%"]},
    {"claim": "second", "better": "c 1%", "than": ["a 1%", "b 1%"]},
    {"claim": "third", "better": "a 1%", "than": ["b 1%"]},
    {"claim": "fourth", "better": "a 1%", "than": ["a 1%"], "equal": True},
    {"claim": "fifth", "better": "a 1%", "over": "c 1%", "than": ["a 1%"], "than_over": "c 1%"},
    {"claim": "sixth", "better": "a 1%", "than": ["c 1%"], "tasks": ["z"]},
]


def test_the_page(runs: Path) -> None:
    made = study(runs, claims=CLAIMS)
    study_ranks.check(made)
    lines = study_ranks.page(made, study_ranks.scores_of(made)).splitlines()
    assert lines[0] == (
        "| method size | mean rank [95 %] | mean top1 | both | x | y "
        "| trained | ms a step | peak MiB | merge ms |"
    )
    rows = [line.strip("| ").split(" | ") for line in lines[2:5]]
    assert (
        rows[2][0] == "c 1%" and rows[2][1].startswith("3.0 [") and rows[2][-4:] == ["-", "500.0", "7", "-"]
    )
    assert {row[0] for row in rows[:2]} == {"a 1%", "b 1%"} and rows[0][-4:] == ["1,234", "500.0", "7", "250"]
    scores = [
        [json.loads((runs / f"{task}.{row[0][0]}.1%.s{k}" / "results.json").read_text()) for k in range(3)]
        for row in rows[:1]
        for task in TASKS
    ]
    means = [np.mean([each["student"]["top1"] for each in three]) for three in scores]
    assert rows[0][2:6] == [f"{value:.2f}" for value in (np.mean(means), np.mean(means), *means)]
    verdicts = {line.split("**: ")[1][:3]: line.split("**")[1] for line in lines if line.startswith("- **")}
    assert verdicts == {
        **{"fir": "holds", "sec": "fails", "thi": "undecided"},
        **{"fou": "holds", "fif": "undecided", "six": "not run yet"},
    }


def test_a_row_without_all_tasks_has_no_rank(runs: Path) -> None:
    for seed in range(3):
        (runs / f"y.b.1%.s{seed}" / "results.json").unlink()
    made = study(runs, claims=[{"claim": "x", "better": "a 1%", "than": ["b 1%"]}])
    text = study_ranks.page(made, study_ranks.scores_of(made))
    assert "without a rank: b 1%." in text and "\n| b 1%" not in text
    assert "b 1%: 1 of 2 tasks, " in text


BAD = {
    "row": (
        {"claims": [{"claim": "x", "better": "d 1%", "than": ["a 1%"]}]},
        "'d 1%' is no row of the study",
    ),
    "task": ({"groups": {"one": ["w"]}}, "'w' is no label of task of the study"),
    "half": ({"claims": [{"claim": "x", "better": "a 1%", "than": ["b 1%"], "over": "c 1%"}]}, "or neither"),
    "key": ({"clams": []}, "write groups, claims, margin"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_page_can_be_made_of_is_said(name: str, tmp_path: Path) -> None:
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        study_ranks.check(study(tmp_path, **given))


# --- sizes, and the studies of adapters ---


@pytest.fixture(scope="module")
def vim() -> peft_sizes.Counter:
    return peft_sizes.Counter(peft_sizes.maker("vim_mini_patch4_32"))


def test_what_is_counted_is_what_an_adapter_would_train(vim: peft_sizes.Counter) -> None:
    for methods, layers in ((["lora_x", "affix", "additional_scan", "sdt"], ()), (["lora_in"], (0, 5, 11))):
        assert vim.trained(methods, layers) == vim.injected(methods, layers)
    width, inner = 192, 384  # r (d + 2 D) a layer, section 1.1 of MambaPEFT
    assert vim.trained([{"name": "lora_in", "r": 5}]) == 12 * 5 * (width + 2 * inner)


def test_the_nearest_size_is_the_nearest_of_all(vim: peft_sizes.Counter) -> None:
    for method, share in (("lora_dt", 0.02), ("affix", 0.005), ("state_offset_h", 0.001)):
        found, option = vim.nearest(method, share), peft_sizes.SIZED[method][0]
        assert found is not None
        off = abs(math.log(found.share / share))
        for size in range(1, 12):
            count = vim.trained([{"name": method, option: size}])
            assert off <= abs(math.log(count / vim.parameters / share)) + 1e-9
    assert vim.nearest("additional_scan", 0.001) is None or vim.nearest("prompt", 0.02) is None


def of_images() -> Study:
    return Study(yaml.safe_load((ROOT / "recipes" / "studies" / "peft_images.yaml").read_text()))


# rows without a cell, and why
NOT_IN = {
    "peft_images": set(),
    "peft_text": {
        *("cls_token", "pos_embed"),  # of pictures
        *("lora_dt", "lora_d"),  # of delta's 9 rows every rank that is near a share is above them
    },
}


@pytest.mark.parametrize("name", NOT_IN)
def test_every_method_is_in_a_study_and_sized(name: str) -> None:
    """Named by itself in a cell on held-out data and in one on the test split, at the same shares."""
    made = Study(yaml.safe_load((ROOT / "recipes" / "studies" / f"{name}.yaml").read_text()))
    alone: dict[str, set[str]] = {"held_out": set(), "test": set()}
    shares: dict[str, set[tuple[str, str]]] = {"held_out": set(), "test": set()}
    for cell in made.cells:
        if "20k" in cell["task"]:
            continue
        alone[cell["part"]].add(cell["method"])
        shares[cell["part"]].add((cell["method"], cell["share"]))
    assert set(REGISTERED.names()) - alone["test"] == NOT_IN[name]
    assert shares["held_out"] == shares["test"]
    sized = {method for method, size in SIZES.items() if size is not None} | {"state_offset_h"}
    assert set(peft_sizes.SIZED) == sized


def test_the_embedding_of_the_language_student_is_near_its_shares() -> None:
    """49,152 words of 576 channels, in 151.9 million parameters."""
    data = yaml.safe_load((ROOT / "recipes" / "studies" / "peft_text.yaml").read_text())
    let = data["axes"]["method"]["lora_embed"]["let"]
    for key, share in (("a01", 0.1), ("a05", 0.5), ("a2", 2.0)):
        (method,) = yaml.safe_load(let[key])["methods"]
        assert 1 / 1.05 < method["r"] * (49_152 + 576) / 151.9e6 / (share / 100) < 1.05


def test_every_size_of_the_image_study_is_near_its_share(
    vim: peft_sizes.Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made, seen = of_images(), Counted[str]()
    study_ranks.check(made)
    for cell in made.cells:
        if (cell["part"], cell["task"], cell["rate"]) != ("held_out", "count", "slow"):
            continue
        adapter = made.resolved(made.run_of(cell))[0].get("adapter")
        seen[cell["share"]] += 1
        assert (adapter is None) == (cell["share"] == "whole")
        if adapter is None or not cell["share"].endswith("%") or "stock" in adapter:
            continue
        share = vim.trained(adapter["methods"], adapter.get("layers", ())) / vim.parameters
        assert 1 / 1.4 < 100 * share / float(cell["share"][:-1]) < 1.4, (cell, share)
    assert seen == {"0.5%": 16, "own": 11, "2%": 19, "0.1%": 14, "whole": 4}


def test_a_rate_is_chosen_without_the_test_split_and_each_cell_has_three(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    made = of_images()
    rates: dict[tuple[str, ...], set[str]] = {}
    for cell in made.cells:
        if cell["task"] not in ("mnist", "count_20k"):
            continue
        recipe = made.resolved(made.run_of(cell))[0]
        held = cell["part"] == "held_out"
        assert recipe["task"]["validation"] == (0.2 if held else 0.0)
        assert recipe["task"].get("final_split") == ("validation" if held else None)
        key = tuple(label for axis, label in cell.items() if axis != "rate")
        rates.setdefault(key, set()).add(recipe["stages"][0]["lr"])
    assert {len(each) for each in rates.values()} == {3}
