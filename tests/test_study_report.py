"""scripts/study_report.py: what it collects, merges and tells, and that its intervals are what they claim."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
MODULES = ("study_report", "study_cell", "study_differences", "study_bars", "study_page", "study_figures")
IMAGES = 400
PAGE = "# A study\n\nBefore.\n\n<!-- generated: begin -->\nold\n<!-- generated: end -->\n\nAfter.\n"
PLACE = ("transfer", "vim")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """scripts("study_page"): the module of that name beside the script."""
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def differences(scripts: Callable[[str], Any]) -> Any:
    return scripts("study_differences")


class Fake:
    """A study of fake run folders: finish(arm="full", fraction="50%", seed="s0", right=0.9)."""

    def __init__(self, folder: Path, script: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.runs, self.out = folder / "study.yaml", folder / "runs", folder / "docs" / "study"
        self.page = folder / "docs" / "study.md"
        self.page.parent.mkdir()
        self.page.write_text(PAGE)
        self.script, self.capsys = script, capsys
        labels = {
            "setting": ["transfer"],
            "student": ["vim"],
            "arm": ["scratch", "scratch_long", "kl", "cab", "full", "full_half", "mixer"],
            "fraction": ["100%", "25%", "50%"],
            "seed": ["s0", "s1"],
        }
        self.axes = {axis: {label: [] for label in names} for axis, names in labels.items()}
        self.write()

    def write(self, **changes: Any) -> None:
        study = {
            "output_dir": str(self.runs),
            "axes": self.axes,
            "report": {"compare": [["mixer", "kl"], ["full", "kl"]]},
        }
        self.path.write_text(yaml.safe_dump(study | changes, sort_keys=False, allow_unicode=True))

    def finish(
        self,
        arm: str,
        fraction: str,
        seed: str,
        right: int,
        shift: int = 0,
        minutes: float = 2.0,
        watched: float | None = None,
        steps: int = 30,
        setting: str = "transfer",
        teacher: float = 99.25,
    ) -> Path:
        """A finished run, right on `right` of 400 images, which begin at image `shift`, and with `watched`
        percent on the validation split."""
        folder = self.runs / f"{setting}.vim.{arm}.{fraction}.{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        labels = np.arange(IMAGES) % 10
        predicted = (labels + 1) % 10
        hits = (np.arange(right) + shift) % IMAGES
        predicted[hits] = labels[hits]
        np.savez(folder / "samples.npz", labels=labels, student_pred=predicted, teacher_pred=labels)
        np.save(folder / "train_indices.npy", np.arange(int(fraction[:-1])))
        student = {"top1": 100 * right / IMAGES, "nll": 0.5, "ece": 1.0, "params": 7, "minutes": minutes}
        results = {"student": student, "teacher": {"top1": teacher}, "agreement": 80.0}
        (folder / "results.json").write_text(json.dumps(results))
        rows = [
            {"step": step, "samples": 8 * step, "samples_per_second": 100.0 + step, "seconds": 1.0}
            for step in (steps // 3, 2 * steps // 3, steps)
        ]
        rows.insert(2, {"step": 2 * steps // 3, "eval/top1": right / 8})
        rows.append(
            {"step": steps, "samples": 8 * steps, "eval/top1": right / 4 if watched is None else watched}
        )
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / "config.yaml").write_text("task: {validation: 0.1}\n")
        (folder / "environment.json").write_text(json.dumps({"commit": "abc", "device": "a GPU"}))
        return folder

    def finish_a_dozen(self) -> None:
        for seed, more in (("s0", 0), ("s1", 4)):
            self.finish("scratch", "100%", seed, 320 + more)
            self.finish("scratch_long", "100%", seed, 332 + more, steps=60)
            self.finish("full", "50%", seed, 340 + more, minutes=4.0)
            self.finish("full", "25%", seed, 328 + more)
            self.finish("kl", "50%", seed, 240 + more)
            self.finish("mixer", "50%", seed, 244 + more)

    def call(self, *words: Any) -> tuple[int, str, str]:
        self.capsys.readouterr()
        return self.script.main([*map(str, words)]), *self.capsys.readouterr()

    def collect(self) -> tuple[int, str, str]:
        return self.call("collect", self.path, self.out)

    def render(self) -> tuple[int, str, str]:
        return self.call("render", self.out, self.page)

    def cells(self) -> dict[str, Any]:
        cells = json.loads((self.out / "cells.json").read_text())["cells"]
        return {".".join(cell["labels"].values()): cell for cell in cells}


@pytest.fixture
def fake(tmp_path: Path, scripts: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> Fake:
    return Fake(tmp_path, scripts("study_report"), capsys)


# --- collect ---


def test_a_cell_holds_what_its_run_tells(fake: Fake) -> None:
    fake.finish("full", "50%", "s0", 340)
    code, out, err = fake.collect()
    assert code == 0 and err == ""
    assert "1 cells (1 new, 0 same, 0 replaced, 0 left out, 41 not finished)" in out
    (cell,) = fake.cells().values()
    assert cell["labels"] == dict(setting="transfer", student="vim", arm="full", fraction="50%", seed="s0")
    expected = dict(top1=85.0, nll=0.5, teacher_top1=99.25, agreement=80.0, minutes=2.0, params=7)
    expected |= dict(steps=30, images_seen=240, train_images=50, test_images=400, validation=0.1)
    expected |= dict(samples_per_second=120.0, commit="abc", device="a GPU", packages=None)
    assert {key: cell[key] for key in expected} == expected
    assert cell["curve"] == [[160, 42.5], [240, 85.0]]
    with np.load(fake.out / "correct.npz") as file:
        right = np.unpackbits(file["transfer.vim.full.50%.s0"], count=400)
    assert right[:340].all() and not right[340:].any()


def test_a_line_a_cell_and_the_same_bytes_each_time(fake: Fake) -> None:
    fake.finish_a_dozen()
    fake.collect()
    first = {path.name: path.read_bytes() for path in fake.out.iterdir()}
    assert first["cells.json"].count(b'"top1"') == first["cells.json"].count(b'\n{"agreement"') == 12
    assert "12 same" in fake.collect()[1]
    assert {path.name: path.read_bytes() for path in fake.out.iterdir()} == first
    shutil.rmtree(fake.out)
    fake.collect()
    assert {path.name: path.read_bytes() for path in fake.out.iterdir()} == first


def test_it_adds_to_what_is_there(fake: Fake) -> None:
    """A cell whose folder is gone stays; another answer replaces the old one, and is said."""
    fake.finish("full", "50%", "s0", 340)
    fake.collect()
    shutil.rmtree(fake.runs)
    fake.finish("full", "50%", "s1", 300)
    code, out, err = fake.collect()
    assert (code, err) == (0, "") and "2 cells (1 new" in out
    assert [cell["top1"] for cell in fake.cells().values()] == [85.0, 75.0]

    fake.finish("full", "50%", "s1", 304)
    code, out, err = fake.collect()
    assert err == "replaced: transfer.vim.full.50%.s1, top-1 75.00 before, 76.00 now\n"
    assert "1 replaced" in out
    fake.finish("full", "50%", "s1", 304, shift=8)  # the same figures of other images
    assert fake.collect()[2] == "replaced: transfer.vim.full.50%.s1, another answer on some image\n"
    assert [cell["top1"] for cell in fake.cells().values()] == [85.0, 76.0]


def test_cells_of_an_arm_that_the_study_no_longer_has_stay(fake: Fake) -> None:
    fake.finish_a_dozen()
    fake.collect()
    del fake.axes["arm"]["mixer"]
    fake.write(report={})
    fake.collect()
    header = json.loads((fake.out / "cells.json").read_text())
    assert header["axes"]["arm"][-1] == "mixer" and len(header["cells"]) == 12


def test_a_damaged_cell_is_left_out_and_said(fake: Fake) -> None:
    fake.finish_a_dozen()
    folder = fake.runs / "transfer.vim.kl.50%.s0"
    (folder / "samples.npz").write_bytes(b"torn")
    other = fake.runs / "transfer.vim.kl.50%.s1"
    results = json.loads((other / "results.json").read_text())
    results["student"]["top1"] += 1
    (other / "results.json").write_text(json.dumps(results))
    code, out, err = fake.collect()
    assert code == 0 and "10 cells" in out and "2 left out" in out
    assert len(err.splitlines()) == 2 and "cannot be read" in err and "62.00 in results.json, 61.00" in err
    cells = math.prod(len(labels) for labels in fake.axes.values())
    assert f"{cells - 12} not finished" in out, "what is damaged is not missing"


# --- render ---


def entries(text: str, start: str) -> list[str]:
    """The cells of the one table row that starts so."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [part.strip() for part in row.strip("|").split("|")]


def test_the_page(fake: Fake) -> None:
    fake.finish_a_dozen()
    fake.collect()
    shutil.rmtree(fake.runs)  # from the collected files alone
    code, _, err = fake.render()
    assert (code, err) == (0, "")
    text = fake.page.read_text()
    assert text.startswith(PAGE[: PAGE.index("old")]) and text.endswith(
        PAGE[PAGE.index("<!-- generated: end") :]
    )
    assert "old" not in text.split("<!-- generated: begin -->")[1].split()
    assert "12 cells have finished." in text and "Commits: abc (12)." in text

    assert entries(text, "arm") == ["arm", "25%", "50%", "100%", "teacher", "minutes a run"]
    assert entries(text, "*training images*")[1:4] == ["25", "50", "100"]
    full = ["`full`", "82.50 ± 0.71 (2)", "85.50 ± 0.71 (2)", "-", "99.25", "2.0 to 4.0"]
    assert entries(text, "`full` |") == full
    assert entries(text, "`scratch` |")[3] == "80.50 ± 0.71 (2)"
    assert "`cab` |" not in text

    # 8 images of 400 that only `full` gets right; both sides have the same two seeds, one image better each
    at_50 = entries(text, "`full` − `scratch_long` | 50% − 100%")
    assert at_50[2] == "+2.00" and at_50[4:] == ["2", "counts"]
    low, high = map(float, at_50[3].split(" to "))
    assert 0 < low < 2 < high < 4
    assert entries(text, "`full` − `kl`")[1:3] == ["50%", "+25.00"]  # once, though compared twice
    assert entries(text, "`mixer` − `kl`")[2] == "+1.00"
    assert text.count("`full` − `scratch` |") == 2, "with equal steps; they have no fraction in common"
    assert entries(text, "`full` − `scratch` | 50% − 100%")[2] == "+5.00"


def test_the_bars(fake: Fake) -> None:
    fake.finish_a_dozen()
    for seed in ("s0", "s1"):
        fake.finish("cab", "25%", seed, 300)
        fake.finish("cab", "50%", seed, 344)
        fake.finish("full_half", "100%", seed, 320, steps=15)
    fake.collect()
    fake.render()
    lines = [line for line in fake.page.read_text().splitlines() if line.startswith("- transfer, vim: ")]
    bars = [line.removeprefix("- transfer, vim: ").split(": **") for line in lines]
    names = [name for name, _ in bars]
    gate, at_50, at_25, kl, cab, half, twice = [verdict for _, verdict in bars]
    assert names[0].startswith("gate: the teacher at least 2 points above") and gate == "met, it is +15.75**"
    assert names[1] == "`full` at 50% at least as good as the best from scratch (`scratch_long`) at 100%"
    assert at_50.startswith("met by 2.00 (95 % interval +")
    assert at_25.startswith("missed by 1.00 at 25% (95 % interval -")
    assert names[3] == "`full` above `kl` at every fraction up to 50%"
    assert kl.startswith("not run at 25%; elsewhere ahead by 25.00 or more (")
    assert cab.startswith("missed by 0.50 at 50% (")
    assert half.startswith("missed by 3.50 at 100% ("), "beside scratch_long, the better of two"
    assert half.endswith("; not run at 25%, 50%**")
    assert twice.startswith("missed by 0.50 at 100% ("), "beside scratch, of twice its steps"
    assert twice.endswith("; not run at 25%, 50%**")


def test_a_form_of_the_full_method_stands_beside_twice_its_steps(fake: Fake) -> None:
    fake.axes["arm"]["full_long"] = []
    fake.write()
    fake.finish_a_dozen()
    for arm, right, steps in (("full_half", 330, 15), ("full", 330, 30), ("full_long", 340, 60)):
        fake.finish(arm, "100%", "s0", right, steps=steps)
    fake.collect()
    fake.render()
    text = fake.page.read_text()
    assert entries(text, "`full_half` − `scratch` |")[2] == "+2.00"
    assert entries(text, "`full` − `scratch_long` | 100% |")[2] == "-1.00"
    assert "`full_long` −" not in text, "nothing from scratch took 120 steps"
    (line,) = [line for line in text.splitlines() if "with twice its steps" in line]
    assert "missed by 1.00 at 100% (`full`)" in line
    assert entries(text, "`full` − `scratch` | 50% − 100%")[2] == "+5.00", "equal steps"


def test_settings_that_differ_in_the_teacher_share_what_is_from_scratch(fake: Fake) -> None:
    fake.axes["setting"]["transfer_strong"] = []
    fake.write(report={"scratch_of": {"transfer_strong": "transfer"}})
    fake.finish_a_dozen()
    for seed in ("s0", "s1"):
        fake.finish("full", "100%", seed, 344, setting="transfer_strong", teacher=84.5)
    fake.collect()
    fake.render()
    text = fake.page.read_text().split("## transfer_strong, vim")[1]
    assert entries(text, "`full` − `scratch_long`")[2] == "+2.50"
    assert entries(text, "`scratch_long`")[1:5] == ["-", "-", "83.50 ± 0.71 (2)", "-"]
    assert "`kl`" not in text
    gates = [line for line in fake.page.read_text().splitlines() if ": gate: " in line]
    assert [line.rsplit(": ", 1)[1] for line in gates] == ["**met, it is +15.75**", "**missed, it is +1.00**"]
    np.save(fake.runs / "transfer_strong.vim.full.100%.s0" / "train_indices.npy", np.arange(7))
    fake.collect()
    code, _, err = fake.render()
    assert code == 2 and "differ in their images at 100%" in err
    fake.write(report={"scratch_of": {"transfer_strong": "transfr"}})
    code, _, err = fake.collect()
    assert code == 2 and "unknown setting 'transfr'; did you mean 'transfer'?" in err


def test_the_baseline_is_chosen_on_the_validation_split(fake: Fake) -> None:
    for seed in ("s0", "s1"):
        fake.finish("scratch", "100%", seed, 320, watched=81)
        fake.finish("scratch_long", "100%", seed, 332, watched=79)
        fake.finish("full", "50%", seed, 340)
    fake.collect()
    fake.render()
    text = fake.page.read_text()
    assert "the best from scratch (`scratch`) at 100%: **met by 5.00" in text
    assert "`full` − `scratch_long`" not in text


def test_a_gate_takes_the_teacher_of_another_share_where_its_own_did_not_run(fake: Fake) -> None:
    fake.finish_a_dozen()
    for path in fake.runs.glob("*.scratch*/results.json"):
        path.write_text(json.dumps({"student": json.loads(path.read_text())["student"]}))
    fake.collect()
    fake.render()
    (line,) = [line for line in fake.page.read_text().splitlines() if ": gate: " in line]
    assert line.endswith("**met, it is +15.75**")


def test_what_cells_need_is_told(fake: Fake) -> None:
    fake.finish_a_dozen()
    fake.write(first={"teacher": [], "head.${seed}": [], "absent": [], "damaged": []})
    for name in ("teacher", "damaged"):
        shutil.copytree(fake.runs / "transfer.vim.full.50%.s0", fake.runs / name)
    (fake.runs / "damaged/results.json").write_text('{"student": {"top1": 80.0}}')
    _, out, err = fake.collect()
    assert "1 left out" in out and len(err.splitlines()) == 1 and "damaged: cannot be read" in err
    assert "minutes" in err
    (fake.runs / "teacher/metrics.jsonl").write_text("{}\n")
    (fake.runs / "damaged/results.json").write_text("{")
    fake.collect()
    fake.render()
    kept = entries(fake.page.read_text(), "`teacher` |")
    shutil.move(fake.runs / "teacher", fake.runs / "away")
    fake.collect()
    fake.render()
    assert entries(fake.page.read_text(), "`teacher` |") == kept, "what was collected once stays"
    shutil.move(fake.runs / "away", fake.runs / "teacher")
    assert entries(fake.page.read_text(), "`teacher` |")[1] == "-", "it does not say how many images it saw"
    shutil.copy(fake.runs / "transfer.vim.full.50%.s0/metrics.jsonl", fake.runs / "teacher")
    fake.collect()
    shutil.rmtree(fake.runs)
    fake.render()
    assert entries(fake.page.read_text(), "`teacher` |") == ["`teacher`", "240", "85.00", "7", "4.0", "abc"]
    assert "`absent`" not in fake.page.read_text() and "`damaged`" not in fake.page.read_text()


def test_the_baseline_is_chosen_on_one_split_alone(fake: Fake) -> None:
    """Where one of the arms held no images out, by the test set for all, not each by its own."""
    for seed in ("s0", "s1"):
        fake.finish("scratch", "100%", seed, 320, watched=99)
        folder = fake.finish("scratch_long", "100%", seed, 332, watched=10)
        fake.finish("full", "50%", seed, 340)
        (folder / "config.yaml").write_text("task: {}\n")
    fake.collect()
    fake.render()
    assert "the best from scratch (`scratch_long`) at 100%" in fake.page.read_text()


def test_bars_that_did_not_run_say_so(fake: Fake) -> None:
    fake.finish("mixer", "50%", "s0", 300)
    fake.collect()
    fake.render()
    text = fake.page.read_text()
    assert text.count("**not run**") == 7
    assert "No two arms to compare have both run." in text


def test_figures(fake: Fake) -> None:
    from PIL import Image

    fake.finish_a_dozen()
    fake.collect()
    fake.render()
    text = fake.page.read_text()
    for name in ("transfer-vim-fraction.png", "transfer-vim-images.png"):
        assert f"](study/{name})" in text
        with Image.open(fake.out / name) as image:
            assert min(image.size) > 400 and len(image.convert("RGB").getcolors(1 << 20) or []) > 20
    first = {path.name: path.read_bytes() for path in fake.out.iterdir()}
    fake.render()
    assert {path.name: path.read_bytes() for path in fake.out.iterdir()} == first
    assert fake.page.read_text() == text


def test_a_mean_curve_goes_as_far_as_all_do(scripts: Callable[[str], Any]) -> None:
    one = np.array([[0, 10.0], [100, 20.0], [200, 30.0]])
    two = np.array([[50, 25.0], [100, 40.0]])
    x, y = scripts("study_page").mean_curve([one, two])
    assert x.tolist() == [50, 100] and y.tolist() == [20.0, 30.0]


def test_arms_look_different(scripts: Callable[[str], Any]) -> None:
    """And alike in every figure, whichever arms are in it."""
    style_of, arms = scripts("study_figures").style_of, ["full", *(f"arm{index}" for index in range(17))]
    assert len({tuple(map(str, style_of(arm, arms).values())) for arm in arms}) == len(arms)


# --- mistakes ---


def test_mistakes_are_one_line(fake: Fake) -> None:
    def refused(call: Callable[[], tuple[int, str, str]], *words: str) -> None:
        code, out, err = call()
        assert code == 2 and out == "" and len(err.splitlines()) == 1, err
        assert all(word in err for word in words), err

    refused(fake.collect, "no finished cell")
    refused(fake.render, "cannot be read", "collect a study")
    fake.finish_a_dozen()
    fake.collect()
    fake.page.write_text("no marker")
    refused(fake.render, "study.md", "0 times '<!-- generated: begin -->'")
    fake.page.write_text("<!-- generated: end --> <!-- generated: begin -->")
    refused(fake.render, "stands before")
    fake.page.unlink()
    refused(fake.render, "study.md", "No such file")

    fake.write(axes=fake.axes | {"colour": {"red": []}})
    refused(fake.collect, "unknown axis 'colour'")
    fake.write(axes={axis: labels for axis, labels in fake.axes.items() if axis != "seed"})
    refused(fake.collect, "no axis 'seed'")
    fake.write(axes=fake.axes | {"fraction": {"half": []}})
    refused(fake.collect, "fraction 'half'")
    fake.write(axes=fake.axes | {"seed": None})
    refused(fake.collect, "axis seed", "label: overrides")
    fake.write(output_dir=3)
    refused(fake.collect, "output_dir is 3", "a folder")
    fake.write(report={"scratch_of": ["transfer"]})
    refused(fake.collect, "report.scratch_of", "write {setting: setting}")
    fake.write(report={"compare": [["full", "bothways"]]})
    refused(fake.collect, "unknown arm 'bothways'")
    fake.write(axes={axis: labels for axis, labels in fake.axes.items() if axis != "setting"})
    refused(fake.collect, "has axes setting, student")
    refused(lambda: fake.call("collect", fake.path.with_name("absent.yaml"), fake.out), "absent.yaml")


def test_arms_tested_on_other_images_are_not_compared(fake: Fake) -> None:
    fake.finish_a_dozen()
    path = fake.runs / "transfer.vim.kl.50%.s0" / "samples.npz"
    with np.load(path) as samples:
        arrays = {key: np.roll(samples[key], 1) for key in samples.files}
    np.savez(path, **arrays)
    fake.collect()
    code, _, err = fake.render()
    assert code == 2 and "were tested on other images" in err


# --- the bootstrap ---


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_is_the_plain_loop_s(differences: Any, paired: bool) -> None:
    """The same draws, one image and one seed at a time."""
    generator = np.random.default_rng(3)
    a, b = generator.random((3, 17)) < 0.7, generator.random((3 if paired else 2, 17)) < 0.5
    draws = 50
    both = differences.resampled_accuracies(np.concatenate([a, b]), draws, seed=5, chunk=7)
    low, high = differences.interval(both[:, :3], both[:, 3:], paired, seed=5)

    images = np.random.default_rng(5)
    drawn_images = [[int(images.integers(0, 17)) for _ in range(17)] for _ in range(draws)]
    seeds = np.random.default_rng([5, 1])
    drawn_a = [[int(seeds.integers(0, 3)) for _ in range(3)] for _ in range(draws)]
    drawn_b = drawn_a if paired else [[int(seeds.integers(0, 2)) for _ in range(2)] for _ in range(draws)]
    gaps = []
    for chosen, of_a, of_b in zip(drawn_images, drawn_a, drawn_b, strict=True):
        right_a = sum(bool(a[seed][image]) for seed in of_a for image in chosen) / (len(of_a) * 17)
        right_b = sum(bool(b[seed][image]) for seed in of_b for image in chosen) / (len(of_b) * 17)
        gaps.append(100 * (right_a - right_b))
    assert (low, high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))


def test_paired_seeds_share_what_makes_them_good(differences: Any) -> None:
    """Seeds differ much, the arms by a constant: only the pairs know it."""
    top1 = np.repeat(np.array([[60.0, 70.0, 80.0, 90.0]]), 2000, axis=0)
    assert differences.interval(top1 + 1, top1, paired=True) == pytest.approx((1, 1))
    low, high = differences.interval(top1 + 1, top1, paired=False)
    assert low < -10 and high > 10


def test_coverage(differences: Any) -> None:
    """Of 300 pairs of arms that differ by 5 points in truth, about 95 % have an interval with 5 in it.

    Each run has its own quality, each image its own difficulty: neither resampling alone would do.
    """
    generator = np.random.default_rng(0)
    inside = seeds_alone = images_alone = 0
    for _ in range(300):
        quality = generator.normal(0, 0.04, (2, 12, 1))
        # the arms disagree in which images are hard, so images are a source of chance for the difference too
        difficulty = generator.normal(0, 0.2, (2, 1, 120))
        chance = np.clip(np.array([0.55, 0.5])[:, None, None] + quality + difficulty, 0, 1)
        right = generator.random((2, 12, 120)) < chance
        both = differences.resampled_accuracies(right.reshape(24, 120), draws=400)
        low, high = differences.interval(both[:, :12], both[:, 12:], paired=False)
        inside += low <= 5 <= high
        means = np.repeat(100 * right.mean(2).reshape(1, 24), 400, axis=0)
        low, high = differences.interval(means[:, :12], means[:, 12:], paired=False)
        seeds_alone += low <= 5 <= high
        low, high = np.quantile(both[:, :12].mean(1) - both[:, 12:].mean(1), [0.025, 0.975])
        images_alone += low <= 5 <= high
    assert 0.92 <= inside / 300 <= 0.985
    assert seeds_alone < inside and images_alone < inside


def test_one_seed_does_not_count(differences: Any) -> None:
    group = ("full", "50%")
    for seeds, word in (((2, 2), "counts"), ((2, 1), "one seed"), ((1, 1), "one seed")):
        assert differences.Difference(group, group, 2.0, 1.0, 3.0, seeds).verdict == word
    assert differences.Difference(group, group, 2.0, -1.0, 3.0, (5, 5)).verdict == ""


# --- the page in the repository ---


def test_the_committed_page_is_a_fresh_render(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    """Its text byte for byte; its figures by name, since their bytes depend on matplotlib's version."""
    collected, page = ROOT / "docs" / "study", ROOT / "docs" / "study_data_efficiency.md"
    if not collected.is_dir():
        pytest.skip("docs/study does not exist: no study has been collected")
    shutil.copytree(collected, tmp_path / "study", ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(page, tmp_path / page.name)
    assert scripts("study_report").main(["render", str(tmp_path / "study"), str(tmp_path / page.name)]) == 0
    assert (tmp_path / page.name).read_text() == page.read_text(), f"render {page.name} again"
    drawn = {path.name for path in (tmp_path / "study").glob("*.png")}
    assert drawn == {path.name for path in collected.glob("*.png")}
