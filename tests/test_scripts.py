"""scripts/: what they make of the files of a run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from transmamba.config import load as configs
from transmamba.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PARTS = ("teacher", "student", "scratch", "kl")


def leave(folder: Path, right: int, of: int = 100, minutes: float = 1.0, trained_on: int = 30) -> Path:
    """What a finished part leaves: right on its first images."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = np.where(np.arange(of) < right, 100.0, 0.0)
    np.savez(folder / "items.npz", index=np.arange(of), **{"student/top1": scores})
    np.save(folder / "train_indices.npy", np.arange(trained_on))
    results = {"student": {"top1": 100 * right / of, "minutes": minutes}}
    results |= {} if folder.name == "teacher" else {"agreement": {"agreement": 90.0}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_folds_are_pooled_by_who_was_right_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    crossval = script("digits_crossval")
    for part, right in zip(PARTS, (300, 297, 288, 294), strict=True):
        leave(tmp_path / part, right, of=300)
    found = crossval.correct_in(tmp_path)
    assert found["student"].tolist() == [True] * 297 + [False] * 3
    summary = crossval.summarise(found)
    assert summary["images"] == 300
    assert summary["top1"] == pytest.approx({"teacher": 100.0, "student": 99.0, "scratch": 96.0, "kl": 98.0})
    gap = summary["student_minus_scratch"]
    assert gap["mean"] == pytest.approx(3.0) and 0 < gap["low"] < 3 < gap["high"]
    assert summary["student_minus_teacher"]["mean"] == pytest.approx(-1.0)
    assert "student - scratch" in crossval.table(summary)


@pytest.mark.parametrize(
    ("teacher", "student", "scratch", "broken"),
    [
        (98, 95, 80, []),
        (95, 95, 80, ["the teacher is right on 95.00 %, less than 96 %"]),
        (98, 81, 80, ["the student is not surely ahead of from scratch (+0.00 to +3.00 points)"]),
        (98, 80, 95, ["the student is not surely ahead of from scratch (-22.00 to -8.00 points)"]),
    ],
)
def test_what_the_demo_promises(
    tmp_path: Path, teacher: int, student: int, scratch: int, broken: list[str]
) -> None:
    right = dict(zip(PARTS, (teacher, student, scratch, 90), strict=True))
    folders = {part: leave(tmp_path / part, count) for part, count in right.items()}
    assert script("demo").broken_promises(folders) == broken


def test_the_demo_says_what_was_gained(tmp_path: Path) -> None:
    demo = script("demo")
    folders = {
        part: leave(tmp_path / part, right) for part, right in zip(PARTS, (98, 95, 80, 90), strict=True)
    }
    first, second, third, fourth = demo.sentence(folders).splitlines()
    assert first.startswith("With 3 images a class (30 in all)") and "95.0 % of 100 test images" in first
    assert "80.0 %, so the student gained +15.0 points (95 % interval +" in second
    assert "90.0 %, so the student gained +5.0 points" in third and fourth.endswith("98.0 %.")
    lines = demo.table(folders).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["teacher", "student", "scratch", "KL"]
    assert lines[0].split()[0] == "model" and "agreement %" in lines[0] and "minutes" in lines[0]


def test_a_finished_demo_is_printed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that are missing are announced and run; nothing is, where all are there."""
    demo, ran = script("demo"), []
    right = dict(zip(PARTS, (98, 95, 80, 90), strict=True))

    def run(recipe: Any, *, title: str) -> None:
        if not (Path(recipe.output_dir) / "results.json").is_file():
            part = next(key for key, part in demo.PARTS.items() if part.title == title)
            leave(Path(recipe.output_dir), right[part])
            ran.append(title)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo, "write_comparison", lambda folders, page: page)
    assert demo.demonstrate() == 0
    first = capsys.readouterr()
    assert ran == ["teacher", "student", "scratch", "KL alone"]
    assert [f"{number} of 4: {title}" in first.err for number, title in enumerate(ran, 1)] == [True] * 4
    assert demo.demonstrate() == 0 and len(ran) == 4
    second = capsys.readouterr()
    assert second.out == first.out and "finished before" in second.err and "1 of 4" not in second.err


def test_a_demo_begun_anew_keeps_no_old_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its first part, it has none of the others left."""
    demo = script("demo")
    monkeypatch.chdir(tmp_path)
    folders = []
    for part in demo.PARTS.values():
        recipe = demo.load_recipe(part.config)
        folders.append(leave(tmp_path / recipe.output_dir, 90))
        configs.save_yaml(recipe, folders[-1] / "config.yaml")

    def stopped(recipe: Any, *, title: str) -> None:
        raise demo.Interrupted("SIGINT", 130)

    monkeypatch.setattr(demo, "run", stopped)
    assert demo.demonstrate(overwrite=True) == 130
    assert not [folder for folder in folders if (folder / "results.json").exists()]


def test_timm_s_names_are_sorted_out() -> None:
    known, refused = script("timm_teachers").sorted_out(["deit_tiny_*_224", "test_vit*"])
    assert {"deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "test_vit", "test_vit3"} <= set(known)
    assert any(
        "relative position biases" in why and names == ["test_vit_relpos"] for why, names in refused.items()
    )


def test_the_blind_answerer_says_how_right_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = script("blind_answerer")
    words = ["scenes", "count_train=200", "count_test=90", "types=[size, exist]", "--asked", "80"]
    monkeypatch.setattr("sys.argv", ["blind_answerer.py", *words])
    assert blind.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("200 training questions known, 80 asked, ")
    rows = {line[:24].strip(): line[24:].split() for line in lines[2:]}
    assert rows.keys() == {"all", "open", "true or false", "type size", "type exist"}
    assert rows["all"][0] == "80" and 20 < float(rows["all"][1]) < 80
    monkeypatch.setattr("sys.argv", ["blind_answerer.py", "scene"])
    assert blind.main() == 2 and "did you mean 'scenes'" in capsys.readouterr().err


def test_a_model_of_the_first_layers_is_those_layers(tmp_path: Path) -> None:
    """Its hidden states are the whole model's behind that layer, normed."""
    import torch
    from small_language import tokenizer_folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, made = tokenizer_folder(tmp_path / "whole"), tmp_path / "made"
    words = len(AutoTokenizer.from_pretrained(source))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    whole = LlamaForCausalLM(LlamaConfig(vocab_size=words, **sizes)).eval()
    whole.save_pretrained(source)
    cut = script("first_layers")
    cut.write(str(source), made, 2, True)
    text = torch.arange(10)[None]
    with torch.no_grad():
        wanted = whole.model.norm(whole(text, output_hidden_states=True).hidden_states[2])
        found = AutoModelForCausalLM.from_pretrained(made).eval().model(text).last_hidden_state
    assert torch.equal(found, wanted)
    assert AutoTokenizer.from_pretrained(source).chat_template
    assert not AutoTokenizer.from_pretrained(made).chat_template
    with pytest.raises(UserError, match="--layers is 4; the model has 3"):
        cut.write(str(source), tmp_path / "more", 4, False)
    with pytest.raises(UserError, match=r"config\.json is there and no empty folder"):
        cut.write(str(source), source / "config.json", 1, False)
    with pytest.raises(UserError, match=r"nowhere.*write a folder or an id"):
        cut.write(str(tmp_path / "nowhere"), tmp_path / "more", 1, False)
    with pytest.raises(UserError, match=r"Linear has no model\.layers"):
        cut.first(torch.nn.Linear(1, 1), 1)
