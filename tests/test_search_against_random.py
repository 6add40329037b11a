"""scripts/search_against_random.py: what it searches, the study that it writes, and all of it on a Vim."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import harness
import pytest
import yaml

from transmamba.config import load as configs
from transmamba.ecosystems.find import save_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import search_against_random as against  # noqa: E402
import study_ranks  # noqa: E402
from study_choice import Choice  # noqa: E402
from study_file import Study  # noqa: E402


def images() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "studies" / "peft_images.yaml").read_text())
    return data


def asked(root: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{**dict(output=str(root), single=list(against.SINGLES), seeds=3, trials=4), **changes}
    )


def test_what_is_searched_sees_held_out_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = against.recipe_of(Study(images()), "count", "lora_x 2%")
    assert recipe["task"]["validation"] == 0.2 and recipe["task"]["final_split"] == "validation"
    assert recipe["task"]["data"]["data"]["question"] == "count"
    assert recipe["stages"][0]["steps"] == 150 and recipe["trainer"]["eval_every"] == 50
    assert recipe["stages"][0]["lr"] == 1e-2 and recipe["adapter"]["whole"] == ["head"]


def test_a_size_of_its_own_may_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is searched is the first row's that has a recipe; each search has a recipe's file of its own."""
    monkeypatch.chdir(ROOT)
    seen: list[tuple[Path, Any]] = []

    def called(words: list[str], devices: str = "", heard: bool = False) -> str:
        if "search-peft" not in words:
            raise against.Failed(7)
        path = Path(next(word for word in words if word.startswith("--config=")).partition("=")[2])
        output = next(word for word in words if word.startswith("--output=")).partition("=")[2]
        Path(output).mkdir()
        (Path(output) / "best.yaml").write_text(yaml.safe_dump({"adapter": {"methods": ["conv1d"]}}))
        seen.append((path, yaml.safe_load(path.read_text())))
        return '{"trials": {"fixed": 2}, "methods": [], "score": 1.0, "parameters": 1}'

    monkeypatch.setattr(against, "called", called)
    words = ["--single", "lora_x r=48", "--single", "lora_x 2%", "--output", str(tmp_path)]
    assert against.main(["recipes/studies/peft_images.yaml", *words]) == 7
    names = [f"{task}.{sampler}" for task in ("count", "mnist") for sampler in against.SAMPLERS]
    assert [path.name for path, _ in seen] == [f"{name}.yaml" for name in names]
    assert [Path(recipe["output_dir"]).name for _, recipe in seen] == [f"{name}.run" for name in names]
    wanted = against.recipe_of(Study(images()), "count", "lora_x 2%")
    assert seen[0][1] == {**wanted, "output_dir": str(tmp_path / "count.tpe.run")}


def test_the_study_of_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that no search saw; whose rate is chosen, on which tasks; the adapters as they were found."""
    monkeypatch.chdir(ROOT)
    for number, name in enumerate(("count.tpe", "count.random", "mnist.tpe", "mnist.random"), 2):
        (tmp_path / name).mkdir()
        found = {"methods": [{"name": "lora_b", "r": number, "rate": 0.5}], "whole": ["head"], "layers": []}
        (tmp_path / name / "best.yaml").write_text(yaml.safe_dump({"adapter": found}))
    data = images()
    made = Study(against.found_study(data, Study(data), ["count", "mnist"], asked(tmp_path)))
    study_ranks.check(made)
    choice = Choice.of(made)
    tested = [cell for cell in made.cells if cell["part"] == "test"]
    assert {cell["task"] for cell in tested} == {
        *("emoji", "figures", "exercises", "position", "rotation", "size")
    }
    assert {cell["task"] for cell in choice.before(tested)} == {"count", "mnist"}
    assert {cell["seed"] for cell in choice.before(tested)} == {"s0"}
    rates: dict[str, set[str]] = {}
    for cell in tested:
        rates.setdefault(cell["arm"], set()).add(cell["rate"])
    assert rates.pop("mnist_tpe") == rates.pop("count_random") == {"middle"}
    assert rates["lora_x_2%"] == rates["lora_x_r=48"] == {"slow", "middle", "fast"}
    for arm, methods, rate in (
        ("mnist_tpe", [{"name": "lora_b", "r": 4, "rate": 0.5}], 1e-2),
        ("lora_x_r=48", [{"name": "lora_x", "r": 48}], 1e-2),
        ("conv1d_own", ["conv1d"], 1e-2),
    ):
        cell = next(c for c in tested if c["arm"] == arm and c["rate"] == "middle" and c["task"] == "size")
        recipe, _ = made.resolved(made.run_of(cell))
        made.check(made.run_of(cell))
        assert recipe["adapter"]["methods"] == methods and recipe["adapter"]["whole"] == ["head"]
        assert recipe["stages"][0]["lr"] == rate and recipe["stages"][0]["steps"] == 300
        assert recipe["task"]["validation"] == 0.0
    claims = {claim["claim"]: claim["than"] for claim in made.report["ranks"]["claims"]}
    assert claims["the search on mnist found better than random search with as many trials"] == [
        "mnist_random"
    ]
    assert (
        len(claims) == 4 and len(claims["the search on count found better than the best single method"]) == 5
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--searched", "count,letters"], "'letters' is no task of the study"),
        (["--single", "lora_w 2%"], "'lora_w' is no method of the study"),
        (["--single", "lora_x 3%"], "write METHOD SHARE, such as lora_x 2%"),
        (["--single", "lora_x r=48"], "--single 'lora_x r=48': one names a share of the study"),
        (["--trials", "5"], "write an even number"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert against.main(["recipes/studies/peft_images.yaml", *words]) == 2
    assert message in capsys.readouterr().err
    assert against.main(["recipes/studies/moe_mamba.yaml"]) == 2
    assert "a study of adapters is meant" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_and_again(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small Vim; the second time nothing is left to be done."""
    recipe = harness.tiny_recipe(tmp_path)
    save_model(harness.tiny_student(), tmp_path / "student")
    changes: dict[str, Any] = dict(
        student=dict(name="saved", model=str(tmp_path / "student")),
        adapter=dict(methods=["conv1d"]),
        init=None,
        stages=[dict(name="tune", losses=["cross_entropy"], steps=3, lr=1e-2)],
        trainer=dict(global_batch=8, eval_batch_size=16),
        teacher=None,
    )
    recipe = harness.tiny_recipe(tmp_path, **changes)
    configs.save_yaml(recipe, tmp_path / "tiny.yaml")
    rates = dict(slow="1.0e-3", middle="1.0e-2", fast="1.0e-1")
    study = dict(
        output_dir=str(tmp_path / "study"),
        common=[f"config={tmp_path}/tiny.yaml", dict(leaves="numbers", trainer=dict(save_every=None))],
        axes=dict(
            part=dict(held_out=["task.validation=0.3", "task.final_split=validation"], test=[]),
            task={f"t{k}": [f"task.data.num_test={11 + k}"] for k in range(3)},
            method={
                "lora_x": dict(let={**rates, "a2": "{methods: [{name: lora_x, r: 2}]}"}),
                "conv1d": dict(let={**rates, "own": "{methods: [conv1d]}"}),
            },
            share={"2%": ["adapter=${a2}"], "own": ["adapter=${own}"]},
            rate={name: [f"stages.0.lr=${{{name}}}"] for name in rates},
            seed=dict(s0=["seed=0"], s1=["seed=1"]),
        ),
        report=dict(
            metric="top1",
            better="up",
            rows=["method", "share"],
            columns="task",
            ranks=dict(groups=dict(all=["t0", "t1", "t2"])),
        ),
    )
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    options = f"--output {tmp_path}/out --searched t0 --trials 4 --methods lora_x,conv1d,a --seeds 1"
    words = [str(path), *options.split(), "--budget", "", "--single", "lora_x 2%", "--single", "conv1d own"]
    assert against.main(words) == 0
    said = capsys.readouterr().out
    assert "t0.tpe: " in said and "t0.random: " in said and said.count("of 2 + 2 trials") == 2
    verdicts = [line for line in said.splitlines() if line.startswith("- **")]
    assert len(verdicts) == 2 and "not run yet" not in said and "t0_tpe against t0_random: " in verdicts[0]
    assert {path.name for path in (tmp_path / "out" / "found").glob("test.*.s0")}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "found").glob("*/results.json")}
    assert against.main(words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("- **")] == verdicts
    assert times == {path: path.stat().st_mtime_ns for path in times}
