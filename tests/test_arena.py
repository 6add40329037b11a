"""The arena of conversion recipes: every arm sees the same tokens, is what its paper says, and runs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from transmamba.config import load as configs
from transmamba.losses.kl import KL
from transmamba.losses.mixer import Mixer
from transmamba.losses.mixing_matrix import MixingMatrix
from transmamba.runs.recipe import Recipe
from transmamba.students.hybrid_lm.names import HybridLM
from transmamba.students.window_lm import WindowLM
from transmamba.training.stage import Items, stage_steps

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "recipes" / "studies" / "conversion_arena.yaml"
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402

ARMS = {
    "ours",
    "window",
    "window_mamba",
    "window_mamba_59",
    "window_158",
    "ceiling",
    "mambainllama",
    "radlads",
    "mohawk",
}
STEPS = {"10M": 300, "50M": 1500, "200M": 6000}


@functools.cache
def recipe_of(**labels: str) -> Recipe:
    study = studies.Study(yaml.safe_load(STUDY.read_text()))
    run = study.run_of({axis: labels[axis] for axis in study.axes})
    rest = [item for item in run.overrides if not item.startswith("config=")]
    return configs.load(Recipe, ROOT / run.config, rest)


def at_ten_million(arm: str, rates: str = "own", attention: str = "8") -> Recipe:
    attention = "30" if arm == "ceiling" else attention
    return recipe_of(arm=arm, attention=attention, tokens="10M", rates=rates, seed="s0")


@pytest.mark.parametrize("tokens", STEPS)
def test_every_arm_reads_the_same_tokens(tokens: str) -> None:
    study = studies.Study(yaml.safe_load(STUDY.read_text()))
    assert set(study.axes["arm"]) == ARMS and set(study.axes["tokens"]) == set(STEPS)
    for arm in ARMS:
        recipe = recipe_of(arm=arm, attention="8", tokens=tokens, rates="own", seed="s0")
        rows = recipe.trainer.global_batch
        blocks = [recipe.task_of(stage).block for stage in range(len(recipe.stages))]
        steps = stage_steps(recipe.stages, [Items(10_000, block) for block in blocks], rows)
        read = [count * rows * block for count, block in zip(steps, blocks, strict=True)]
        assert read == [stage.tokens for stage in recipe.stages], "a stage is a whole number of steps"
        assert sum(read) == STEPS[tokens] * 32_768, arm


def test_the_cells_are_all_arms_at_all_shares() -> None:
    study = studies.Study(yaml.safe_load(STUDY.read_text()))
    for tokens in STEPS:
        cells = [cell for cell in study.cells if (cell["tokens"], cell["rates"]) == (tokens, "own")]
        found = {(cell["arm"], cell["attention"]) for cell in cells if cell["seed"] == "s0"}
        shares = {(arm, share) for arm in ARMS - {"ceiling"} for share in ("0", "4", "8", "15")}
        selected = {(arm, f"{keep}s") for arm in ("ours", "window", "window_mamba_59") for keep in (4, 8, 15)}
        assert found == shares | {("ceiling", "30")} | (selected if tokens != "200M" else set())
    for share in ("0", "4", "8", "15", "30"):
        students = [at_ten_million(arm, attention=share).student for arm in ARMS - {"ceiling"}]
        (layers,) = {student.attention_layers for student in students}
        assert len(layers) == int(share) and set(layers) <= set(range(30))
    nested: list[tuple[int, ...]] = []
    for keep in (15, 8, 4):
        for arm in ("ours", "window", "window_mamba_59"):
            layers = at_ten_million(arm, attention=f"{keep}s").student.attention_layers
            assert len(layers) == keep and set(layers) <= set(range(30))
            assert all(set(layers) <= set(more) for more in nested), "each longer choice holds the shorter"
        nested.append(layers)


def test_what_each_arm_is() -> None:
    """Its student's start, its losses, what it trains; rates alone are others where they are shared."""
    kinds = {"ours": "attention", "radlads": "attention", "mambainllama": "mamba2", "mohawk": "random"}
    for arm, mixers in kinds.items():
        student = at_ten_million(arm).student
        assert isinstance(student, HybridLM) and student.mixers == mixers, arm
    for arm, window in {"window": 92, "ceiling": 92, "window_158": 158}.items():
        student = at_ten_million(arm).student
        assert isinstance(student, WindowLM) and (student.window, student.sinks) == (window, 4)
    both = at_ten_million("window_mamba").student
    assert isinstance(both, HybridLM) and (both.window, both.sinks, both.window_dropout) == (92, 4, 0)
    losses = {
        arm: [[type(loss) for loss in stage.losses] for stage in at_ten_million(arm).stages] for arm in ARMS
    }
    aligned = [[Mixer], [KL]]
    ours = ("ours", "window", "window_mamba", "window_mamba_59", "window_158", "radlads")
    assert all(losses[arm] == aligned for arm in ours) and losses["ceiling"] == [[KL]]
    assert losses["mohawk"] == [[MixingMatrix], [Mixer], [KL]]
    first, second = at_ten_million("mambainllama").stages
    assert [loss.weight for loss in first.losses] == [0.1, 1.0] and first.groups == ("mixers",)
    assert second.groups == ("all",) and [type(loss) for loss in second.losses] == [KL]
    flat = at_ten_million("radlads").stages[1]
    assert flat.lr == flat.min_lr == 1e-5 and flat.groups == ("all",)
    for arm in ARMS - {"ceiling"}:
        stages = at_ten_million(arm).stages
        assert all(loss.temperature == 1.0 for loss in stages[-1].losses) and stages[-1].groups == ("all",)
        shared = at_ten_million(arm, "shared")
        assert {stage.lr for stage in shared.stages} <= {2e-3, 4e-4}
        assert shared.stages[-1].lr == 4e-4 and (arm == "ours") == (shared == at_ten_million(arm))


def test_the_narrow_window_and_its_scan_have_the_numbers_of_the_rival() -> None:
    """Numbers a layer of SmolLM2-135M (docs/language.md): keys and values of 3 heads of 64, and a dt of each
    of the three; the states and their sums."""
    groups, size = 3, 64
    both, rival = (at_ten_million(arm).student for arm in ("window_mamba_59", "window"))
    mine = (both.window + both.sinks) * (2 * groups * size + groups) + groups * size * (size + 1)
    theirs = (rival.window + rival.sinks) * 2 * groups * size
    assert abs(mine - theirs) < groups * size
    align, distill = at_ten_million("window_mamba_59").stages
    assert (align.trainable, align.lr, distill.rates) == ("far", 1e-2, {"far": 30.0})


def test_the_wider_window_has_the_memory_of_window_and_scan() -> None:
    """Bytes a layer of SmolLM2-135M, in bfloat16 but for steps and states (docs/language.md)."""
    groups, size = 3, 64
    both, wider = (at_ten_million(arm).student for arm in ("window_mamba", "window_158"))
    token = 2 * groups * size * 2
    scan = groups * size * (size + 1) * 4
    wanted = (both.window + both.sinks) * (token + groups * 4) + scan
    assert wanted == 124_800 and 0 <= wanted - (wider.window + wider.sinks) * token < token


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_arm_runs_on_a_cpu(shared_data: Path, tmp_path: Path) -> None:
    """The study itself, over stories260K and some thousand tokens: two of five layers keep attention."""
    teacher = tmp_path / "stories260k"
    script = ROOT / "scripts" / "stories260k.py"
    command = [sys.executable, str(script), str(shared_data / "stories260k"), str(teacher)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    data: dict[str, Any] = yaml.safe_load(STUDY.read_text())
    data["output_dir"] = str(tmp_path / "arena")
    lengths = {name: 2048 * int(name[2:]) // 5 for name in data["axes"]["tokens"]["10M"]["let"]}
    data["axes"]["tokens"] = {"40k": {"let": lengths}}
    data["axes"]["attention"] = {
        "2": ["student.attention_layers=[1, 3]"],
        "5": ["student.attention_layers=[0, 1, 2, 3, 4]"],
    }
    data["cells"] = [
        {"attention": "2", "rates": "own", "seed": "s0", "arm": sorted(ARMS - {"ceiling"})},
        {"attention": "5", "rates": "own", "seed": "s0", "arm": "ceiling"},
    ]
    path = tmp_path / "arena.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    overrides = [
        f"config={ROOT / 'recipes' / 'configs' / 'llama_to_hybrid_debug.yaml'}",
        f"teacher.model={teacher}",
        f"task.data.train={shared_data / 'text' / 'tinystories_head.txt'}",
        f"task.cache={tmp_path / 'tokens'}",
        "task.fraction=0.2",
        "trainer.eval_every=0",
        "trainer.save_every=0",
        "trainer.log_every=1",
    ]
    assert studies.main([str(path), *overrides]) == 0
    for cell in studies.Study(data).cells:
        run = tmp_path / "arena" / ".".join(cell.values())
        found = json.loads((run / "results.json").read_text())["student"]["kl"]
        assert 0 <= found < 8, run.name
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {row["loss/mixing_matrix"] > 0 for row in rows if "loss/mixing_matrix" in row} == (
            {True} if cell["arm"] == "mohawk" else set()
        )
    table = (tmp_path / "arena" / "table.md").read_text()
    assert all(f"40k own {arm} |" in table for arm in ARMS)
