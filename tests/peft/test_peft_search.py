"""The two-step search: what it chooses from, that it goes on exactly, that it sees no test split."""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from optuna.trial import FixedTrial, TrialState

import transmamba
import transmamba.runs.search_peft as searching
import transmamba.runs.search_trial as trying
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.config.registry import METHODS
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.peft.search import space
from transmamba.peft.search.study import front
from transmamba.runs import pipeline
from transmamba.runs.recipe import Recipe
from transmamba.runs.search_peft import Search, search_peft
from transmamba.training.interrupted import Interrupted

AMONG = ("lora_x", "lora_b", "conv1d", "cls_token", "prompt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("search")
    harness.tiny_recipe(folder)
    save_model(harness.tiny_student(), folder / "student")
    gc.freeze()  # accelerate collects garbage behind every trial, and all that was imported is none
    yield folder
    gc.unfreeze()


def recipe(place: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = dict(
        student=dict(name="saved", model=str(place / "student")),
        adapter=dict(methods=["conv1d"]),
        init=None,
        stages=[dict(name="tune", losses=["kl"], steps=2, lr=3e-3)],
        trainer=dict(global_batch=8, eval_every=1, eval_batch_size=16),
    )
    return harness.tiny_recipe(place, **{**values, **changes})


def tried(folder: Path) -> list[Any]:
    """Of both steps: what was chosen, and what came of it."""
    plan = [searching.Steps(folder, step, better="up", trials=0) for step in ("step 1", "step 2")]
    return [(t.params, t.value, t.state.name) for each in plan for t in each.finished]


def test_a_search(place: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Known sets first, the budget kept, one method left out at most; the test split is never opened."""
    asked = recipe(place)
    reader, opened = type(asked.task.data), []
    build = reader.build

    def noted(self: Any, split: str) -> Any:
        opened.append(split)
        return build(self, split)

    monkeypatch.setattr(reader, "build", noted)
    search, folder = Search(trials=5, methods=AMONG, budget="1500", seed=1), tmp_path / "search"
    found = search_peft(asked, search, folder)
    assert set(opened) == {"train"}
    assert found["trials"] == {"step 1": 5, "step 2": 5} and found["parameters"] <= 1500
    first = [params for params, _, _ in tried(folder)[:3]]
    on = [{name for name, yes in params.items() if yes} for params in first]
    assert on == [{"conv1d"}, {"lora_x"}, {"lora_x", "lora_b", "cls_token"}]  # of the recipe, of the paper
    assert [path.name for path in folder.glob("trial-*")] == []
    best = configs.load(Recipe, folder / "best.yaml")
    assert best.task == asked.task and best.stages == asked.stages and best.adapter is not None
    assert [configs.dump(method) for method in best.adapter.methods] == found["methods"]
    page = (folder / "search.html").read_text()
    assert "<svg" in page and f"{found['parameters']:,}" in page and "over the budget" in page
    said = capsys.readouterr().err
    assert "step 1 of 2" in said and "step 2 of 2" in said and "best" in said
    # the same again: nothing is left to be tried
    before = tried(folder)
    assert search_peft(asked, search, folder, quiet=True) == found and tried(folder) == before


def test_what_a_search_of_the_same_seed_tries_is_the_same_also_where_it_was_stopped(
    place: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """In the middle of a known set, and of one that was drawn."""
    asked, search = recipe(place), Search(trials=4, methods=AMONG, seed=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    search_peft(asked, search, whole, quiet=True)
    inner = searching.score
    for stopped in (1, 4):
        calls = itertools.count()

        def stops(*arguments: Any, at: int = stopped, calls: Any = calls) -> float:
            if next(calls) == at:
                raise Interrupted("SIGTERM", 0)
            return inner(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(searching, "score", stops)
            search_peft(asked, search, cut, quiet=True)
    assert len(tried(cut)) < len(tried(whole))
    search_peft(asked, search, cut, quiet=True)
    assert tried(cut) == tried(whole)


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    asked, search = recipe(place), Search(trials=4, methods=AMONG, seed=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    search_peft(asked, search, whole, quiet=True)
    process = harness.start(search_peft, asked, search, cut)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (cut / "trial-2" / "metrics.jsonl").is_file():
        time.sleep(0.005)
    assert harness.kill(process)
    assert len(tried(cut)) < len(tried(whole))
    assert [path.name for path in cut.glob("trial-*")] == ["trial-2"]
    search_peft(asked, search, cut, quiet=True)
    assert tried(cut) == tried(whole) and not list(cut.glob("trial-*"))


@pytest.mark.slow
def test_several_workers_share_the_trials(place: Path, tmp_path: Path) -> None:
    search = Search(trials=4, methods=AMONG)
    found = search_peft(recipe(place), search, tmp_path / "search", workers=2, quiet=True)
    assert all(4 <= count <= 5 for count in found["trials"].values())


def test_what_is_refused_untrained_does_not_count(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Where the parts are put together, and at a run's beginning; it is asked once."""
    inner = {"assemble": trying.assemble, "begin": pipeline.begin_adapter}
    asked: list[list[str]] = []

    def refuses(recipe: Recipe) -> None:
        asked.append([method.name for method in recipe.adapter.methods])  # type: ignore[union-attr]
        if "lora_x" in asked[-1]:
            raise UserError("not on this student")

    def assemble(recipe: Recipe, *rest: Any, **more: Any) -> Any:
        refuses(recipe)
        return inner["assemble"](recipe, *rest, **more)

    def begin(one: Any, *rest: Any) -> str:
        refuses(one.parts.recipe)
        return str(inner["begin"](one, *rest))

    for where, name, stand_in in ((trying, "assemble", assemble), (pipeline, "begin_adapter", begin)):
        asked.clear()
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(where, name, stand_in)
            search = Search(trials=3, methods=("lora_x", "conv1d", "a"), seed=1)
            found = search_peft(recipe(place), search, folder, quiet=True)
        assert found["trials"] == {"step 1": 3, "step 2": 3}
        steps = searching.Steps(folder, "step 1", better="up", trials=0)
        refused = [t for t in steps.finished if t.user_attrs.get("why") == "not on this student"]
        assert refused and all(t.user_attrs["free"] for t in refused)
        sets = [tuple(each) for each in asked if "lora_x" in each]
        assert len(sets) == len(set(sets)), "the same set is not put together twice"


def test_a_search_on_a_student_that_is_merged(tmp_path: Path, capsys: Any) -> None:
    """What could not be saved with it is no part of the search, and said by name; every trial is trained."""
    from small_llava import SIDE, llava_folder

    llava = llava_folder(tmp_path / "llava", context=512)
    student, _ = transmamba.convert(str(llava), "llava", decoder={"kind": "hybrid"})
    save_model(student, tmp_path / "student")
    values = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(
            name="questions",
            data=dict(name="scenes", side=SIDE, count_train=24, count_test=4),
            writing="never",
        ),
        teacher=dict(name="llava", model=str(llava)),
        student=dict(name="saved", model=str(tmp_path / "student")),
        init=None,
        stages=[dict(losses=["kl"], steps=1, lr=1e-2)],
        trainer=dict(global_batch=4, eval_every=0),
    )
    asked = configs.parse(Recipe, values, "questions")
    search_peft(asked, Search(trials=2), tmp_path / "search")
    said = capsys.readouterr().err
    for name in ("affix", "state_offset_h", "parallel_adapter", "initial_state"):
        assert f"{name} is not searched: adapter: {name} cannot be merged" in said
    assert "cls_token is not searched: " in said and "lora_x is not searched" not in said
    for step in ("step 1", "step 2"):
        steps = searching.Steps(tmp_path / "search", step, better="up", trials=0)
        assert not [t.user_attrs["why"] for t in steps.finished if "why" in t.user_attrs and step == "step 1"]
        assert len(steps.trained) == 2 and all(t.value is not None for t in steps.trained)
    with pytest.raises(UserError, match="affix cannot be merged"):
        search_peft(asked, Search(trials=2, methods=("lora_x", "affix")), tmp_path / "named", quiet=True)


def test_what_killed_trials_left_is_taken_away(place: Path, tmp_path: Path) -> None:
    asked, search, folder = recipe(place), Search(trials=2, methods=AMONG), tmp_path / "search"
    found = search_peft(asked, search, folder, quiet=True)
    (folder / "trial-7" / "checkpoints").mkdir(parents=True)
    assert search_peft(asked, search, folder, quiet=True) == found
    assert [path.name for path in folder.glob("trial-*")] == []


def test_parameters_are_counted_as_they_are_trained(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, adapter=dict(methods=["a"], whole=["head"], layers=[0, 2]))
    accelerator = searching.make_accelerator(asked)
    plan = searching._plan(asked, Search(), tmp_path, accelerator)
    assert len(plan.names) == len(space.SIZES)
    for methods in (["a", "prompt"], ["lora_x", "lora_embed"], ["additional_scan", "cls_token", "affix"]):
        mine = searching.with_methods(asked, [space.smallest(name) for name in methods])
        made: Any = searching.assemble(mine, accelerator, quiet=True).student
        assert plan.parameters(mine) == made.tuned.coverage().trained


def test_the_spaces_are_what_methods_take() -> None:
    """Every choice at both ends is a valid method; step 1's set is a choice of step 2."""
    for name, size in space.SIZES.items():
        least = dict(space.smallest(name))
        METHODS[least.pop("name")](**least)
        as_first = space.as_first([name])
        again = space.second(FixedTrial(as_first), [name])
        assert again[0]["name"] == name
        for end in ("low", "high"):
            ends = {**as_first}
            if size is not None:
                ends[f"{name}.{size.option}"] = getattr(size, end)
            (part,) = space.second(FixedTrial(ends), [name])
            METHODS[part.pop("name")](**part)
    assert space.first(FixedTrial({"a": False, "d": True}), ["a", "d"]) == [{"name": "d"}]
    chosen = {**space.as_first(["a", "d"]), "remove": "a"}
    assert space.names_of(space.second(FixedTrial(chosen), ["a", "d"])) == ["d"]


def test_the_front_is_what_nothing_smaller_beats() -> None:
    class Trial:
        def __init__(self, number: int, parameters: int, value: float, state: Any = None) -> None:
            self.number, self.value, self.user_attrs = number, value, {"parameters": parameters}
            self.state = state or TrialState.COMPLETE

    trials: Any = [
        Trial(0, 10, 5.0),
        Trial(1, 20, 4.0),
        Trial(2, 30, 6.0),
        Trial(3, 10, 4.5),
        Trial(4, 40, 6.0),
        Trial(5, 5, 9.0, TrialState.PRUNED),  # what it had come to when it was given up
    ]
    assert [trial.number for trial in front(trials, "up")] == [0, 2]
    assert [trial.number for trial in front(trials, "down")] == [3, 1]


def test_a_score_that_is_no_number_ends_its_trial_and_not_the_search(tmp_path: Path) -> None:
    steps = searching.Steps(tmp_path, "step 1", better="up", trials=3, sampler="random")
    scores = iter([float("nan"), 0.5, 0.25])

    def objective(trial: Any) -> float:
        trial.set_user_attr("parameters", 1)
        return next(scores)

    steps.work(objective, lambda: None)
    assert [trial.state.name for trial in steps.trained] == ["PRUNED", "COMPLETE", "COMPLETE"]


def test_mistakes(place: Path, tmp_path: Path, capsys: Any) -> None:
    for changes, message in (
        (dict(trials=0), "trials: 0; write at least 1"),
        (dict(methods=("lora_w",)), "'lora_w' is not searched; did you mean"),
        (dict(budget="0%"), "budget: '0%'; write a number of parameters"),
        (dict(budget="1.5"), "budget: '1.5'; write a number of parameters"),
    ):
        with pytest.raises(UserError, match=message):
            configs.parse(Search, changes, "search-peft")
    folder = tmp_path / "search"
    with pytest.raises(UserError, match="no trial could be scored within the budget; the first one: "):
        search_peft(recipe(place), Search(trials=2, methods=AMONG, budget="3"), folder, quiet=True)
    with pytest.raises(UserError, match="holds another search"):
        search_peft(recipe(place), Search(trials=2, methods=AMONG), folder, quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    with pytest.raises(UserError, match="holds something that is no search"):
        search_peft(recipe(place), Search(trials=2), tmp_path / "full", quiet=True)
    with pytest.raises(UserError, match="student vim begins anew"):
        fresh = dict(name="vim", model="vim_micro_patch2_8", kwargs=dict(embed_dim=12, depth=1))
        search_peft(
            recipe(place, student=fresh, adapter=None), Search(trials=2), tmp_path / "new", quiet=True
        )
    assert not (tmp_path / "new").exists() and (folder / "search.json").is_file()


def test_the_command(place: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.yaml"
    configs.save_yaml(recipe(place), path)
    words = ["search-peft", "--config", str(path), "--trials", "2", "--methods", "a,bias", "--json"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"] == {"step 1": 2, "step 2": 2} and found["methods"]
    assert main([*words, "--output", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "--workers 0: write at least 1" in capsys.readouterr().err
