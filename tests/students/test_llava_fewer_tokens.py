"""A LLaVA whose decoder reads fewer tokens of a picture: the means of cells of its patches; rivals of
cross-Mamba and another row's question, in its student."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import torch
import yaml
from harness import run_quietly
from llavas import ALONE, MARK, SIDE, VISION, llava, made_by, make, moved, relative, seen, together
from small_llava import llava_folder
from torch import Tensor

from transmamba import UserError, load_student, load_teacher, save_student
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.core.preprocessing import PicturesAndText
from transmamba.ecosystems.fewer_tokens import with_tokens
from transmamba.layers.cell_means import CellMeans
from transmamba.runs.recipe import Recipe
from transmamba.students.llava.model import LlavaStudent
from transmamba.teachers.llava import Llava
from transmamba.teachers.load import adapt_teacher

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402

CROSS = dict(num_heads=2, state_size=4)


@pytest.mark.parametrize("grid", ((4, 4), (5, 5), (7, 6)), ids=str)
@pytest.mark.parametrize("side", (1, 2, 3))
def test_tokens_are_means_of_their_cells(grid: tuple[int, int], side: int) -> None:
    """By hand; of a grid that does not divide, cells share patches."""
    rows, columns = grid
    x = torch.randn(2, rows * columns, 3, dtype=torch.float64)
    means = CellMeans.of(rows, columns, side * side, "key")
    assert means is not None
    made = means(x)
    assert made.shape == (2, side * side, 3)
    for i in range(side):
        for j in range(side):
            above, below = math.floor(i * rows / side), math.ceil((i + 1) * rows / side)
            left, right = math.floor(j * columns / side), math.ceil((j + 1) * columns / side)
            cell = [x[:, row * columns + k] for row in range(above, below) for k in range(left, right)]
            torch.testing.assert_close(made[:, i * side + j], sum(cell) / len(cell), rtol=1e-12, atol=1e-12)


def test_other_numbers_are_refused() -> None:
    assert CellMeans.of(4, 4, None, "key") is None and CellMeans.of(4, 4, 16, "key") is None
    for tokens in (-4, 0, 3, 25):
        with pytest.raises(UserError) as error:
            CellMeans.of(4, 4, tokens, "key")
        wanted = f"key is {tokens}, and a picture has 4 x 4 patches; write a square number, 1 to 16"
        assert str(error.value) == wanted
    model = make("CLIP, all tokens of the last layer")
    with pytest.raises(UserError, match="image_tokens is 1, but this connector reads the class token too"):
        with_tokens(model, 1)


def pooled(tokens: int = 1, name: str = "CLIP, Llama") -> Any:
    return adapt_teacher(with_tokens(make(name), tokens))  # which holds the view against the module


@pytest.mark.parametrize(
    ("name", "image"), (("CLIP, Llama", "kept"), ("SigLIP, Qwen2", "kept"), ("CLIP, Llama", "vim"))
)
@pytest.mark.parametrize(("patch", "tokens"), ((8, 1), (4, 4)), ids=("one of 4", "4 of 16"))
def test_a_kept_student_is_its_teacher_and_its_class_the_student(
    name: str, image: str, patch: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VISION, "patch_size", patch)
    teacher, inputs = pooled(tokens, name), together(tokens)
    student = llava(teacher, image={"kind": image})
    assert student.tokens == tokens and student.config.model_type == "transmamba_llava"
    mask = inputs["text_mask"]
    taught = teacher.view.run(inputs).logits()
    folded = teacher.fold().view.run(inputs).logits()
    assert relative(folded[mask], taught[mask]) < 1e-4, "means are of what is linear"
    if image == "kept":
        assert relative(made_by(student, inputs)[mask], taught[mask]) < 1e-5
    stock = moved(student).stock()
    made = made_by(student, inputs)
    assert relative(made_by(stock, inputs)[mask], made[mask]) < 1e-5
    student.means = None
    with pytest.raises(UserError, match=f"row 0 has {tokens} image tokens, its 1 pictures make {4 * tokens}"):
        student.run(inputs)
    with pytest.raises(ValueError, match=f"image tokens, their 3 pictures make {3 * tokens}"):
        made_by(stock, together(2))


def test_the_connector_reads_means_of_what_cross_mamba_made() -> None:
    student, inputs = moved(llava(pooled(1), cross=CROSS)), together(1)
    read: list[Tensor] = []
    crossed: list[Tensor] = []
    student.multi_modal_projector.register_forward_hook(lambda _, given, __: read.append(given[0]))
    assert student.cross is not None
    student.cross.modules_at[0].register_forward_hook(lambda _, __, made: crossed.append(made))
    made_by(student, inputs)
    assert crossed[0].shape[1] == 4 and read[0].shape[1] == 1
    by_hand = sum(crossed[0][:, k] for k in range(4)) / 4
    assert relative(read[0][:, 0], by_hand) < 1e-6


COUNTED = """
made = processor(text="<image> who", images=torch.zeros(3, 16, 16), return_tensors="pt")
assert int((made["input_ids"] == model.config.image_token_id).sum()) == 1, made
"""


def test_it_is_saved_and_read_again_in_a_process_without_us(tmp_path: Path) -> None:
    """The teacher of a recipe, task places from it, and a rival with another row's question."""
    part = configs.parse(
        Llava, dict(model=str(llava_folder(tmp_path / "teacher")), image_tokens=1), "teacher"
    )
    teacher = part.build()
    cross = {**CROSS, "mode": "attention", "prompt": "shuffled"}
    student, folder = moved(llava(teacher, cross=cross)), tmp_path / "student"
    assert isinstance(student.reads, PicturesAndText) and student.reads.places == 1
    save_student(student, folder)
    mark = student.config.image_token_id
    text = torch.tensor([[5, mark, 9, 11, 13], [mark, 8, 7, 6, 4]])
    image = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    prompt = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0]]).bool()
    torch.save(dict(input_ids=text, pixel_values=image, prompt_mask=prompt), tmp_path / "given.pt")
    done = fresh_process.run(ALONE + COUNTED, tmp_path / "given.pt", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    given = {"text": text, "image": image, "prompt_mask": prompt}
    wanted = made_by(student, given)
    assert relative(torch.load(folder / "logits.pt"), wanted) < 1e-5
    again = load_student(folder)
    assert isinstance(again, LlavaStudent) and again.reads == student.reads and again.tokens == 1
    assert torch.equal(made_by(again, given), wanted)
    assert load_teacher(str(tmp_path / "teacher")).preprocessing.places == 4


def test_a_teacher_of_fewer_tokens_writes_as_its_view_reads(tmp_path: Path) -> None:
    teacher = Llava(model=str(llava_folder(tmp_path)), image_tokens=1).build()
    mark = teacher.preprocessing.image_token
    text = torch.tensor([[5, mark, 9, 11]])
    inputs = {"text": text, "text_mask": torch.ones_like(text, dtype=torch.bool)}
    inputs["image"] = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits = teacher.view.run(inputs).logits
    assert logits is not None
    assert teacher.generate(inputs, 1)[0, 0] == logits()[0, -1].argmax()


@pytest.mark.parametrize("options", ({}, dict(every=1, image={"kind": "vim"})), ids=("once", "every layer"))
@pytest.mark.parametrize("mode", ("film", "attention"))
def test_a_rival_begins_as_nothing_and_reads_the_prompt_alone(mode: str, options: dict[str, Any]) -> None:
    cross = {**CROSS, "mode": mode, **{name: v for name, v in options.items() if name == "every"}}
    student = llava(make(), cross=cross, image=options.get("image", {}))
    inputs, mask = together(), together()["text_mask"]
    made = made_by(student, inputs)
    rival, student.cross = student.cross, None
    assert torch.equal(made, made_by(student, inputs))
    student.cross = rival
    made = made_by(moved(student), inputs)
    stock = student.stock()
    assert relative(made_by(stock, inputs, prompt_mask=inputs["prompt_mask"])[mask], made[mask]) < 1e-5
    features, prompt, text = seen(student, inputs), inputs["prompt_mask"], inputs["text"]
    answers = torch.where(prompt | (text == MARK), text, (text + 11) % MARK)
    assert torch.equal(seen(student, {**inputs, "text": answers}), features)
    asked = torch.where(prompt, (text + 11) % MARK, text)
    changed = (seen(student, {**inputs, "text": asked}) - features).abs().amax(dim=(1, 2))
    assert (changed > 1e-3).all()


def test_a_shuffled_prompt_is_that_of_the_row_before() -> None:
    """Pictures lie in rows 0, 2, 2; they read the words of rows 2, 1, 1, and with their own are the student's
    that is not shuffled."""
    student, inputs = moved(llava(make(), cross={**CROSS, "prompt": "shuffled"})), together()
    features, text, prompt = seen(student, inputs), inputs["text"], inputs["prompt_mask"]
    for row, wanted in ((0, [False] * 3), (1, [False, True, True]), (2, [True, False, False])):
        asked = text.clone()
        asked[row] = torch.where(prompt[row], (text[row] + 11) % MARK, text[row])
        changed = (seen(student, {**inputs, "text": asked}) != features).flatten(1).any(dim=1)
        assert changed.tolist() == wanted, row
    stock, mask = student.stock(), inputs["text_mask"]
    made = made_by(student, inputs)
    assert relative(made_by(stock, inputs, prompt_mask=prompt)[mask], made[mask]) < 1e-5
    student.language_model.config.eos_token_id = student.config.text_config.eos_token_id = None
    student.generate(inputs, 3)
    assert student.cross is not None
    student.cross.shuffled = False
    assert (seen(student, inputs) != features).flatten(1).any(dim=1).all()


def test_a_row_alone_has_no_other_s_prompt() -> None:
    student = moved(llava(make(), cross={**CROSS, "prompt": "shuffled"}))
    inputs = {name: value[:1] for name, value in together().items()}
    made = seen(student, inputs)
    student.cross = None
    assert torch.equal(seen(student, inputs), made), "mode state leaves such a picture as it is"


def test_a_cell_of_the_study_trains_and_is_measured_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The recipe of recipes/studies/questions_fusion.yaml, with a LLaVA of 4 patches: from answers alone, one
    token a picture, another row's question in training and evaluation alike."""
    study = yaml.safe_load((ROOT / "recipes" / "studies" / "questions_fusion.yaml").read_text())
    cell = studies.Study(study).run_of({"arm": "shuffled", "tokens": "1", "seed": "s0"})
    small = (
        f"output_dir={tmp_path / 'run'}",
        f"teacher.model={llava_folder(tmp_path / 'teacher', context=512)}",
        f"task.data={{name: scenes, side: {SIDE}, count_train: 24, count_test: 5}}",
        "task.lookup=0",
        "stages.0.steps=2",
        "trainer={global_batch: 4, eval_batch_size: 4, workers: 0, precision: no}",  # one row is left over
    )
    asked = [each for each in cell.overrides if not each.startswith("config=")]
    recipe = configs.load(Recipe, ROOT / cell.config, [*asked, *small])
    assert (recipe.task.data.fewest, recipe.task.data.most) == (8, 10)
    results = run_quietly(recipe)
    assert set(results) >= {"student", "teacher"} and "accuracy" in results["student"]
    again = load_student(tmp_path / "run" / "student")
    assert isinstance(again, LlavaStudent) and again.tokens == 1 and again.reads.places == 1
    assert again.cross is not None and again.cross.shuffled
    assert main(["evaluate", str(tmp_path / "run"), "--task", "questions", "--device", "cpu", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["student"]
    assert found["nats_per_token"] == pytest.approx(results["student"]["nats_per_token"], rel=1e-5)


def test_it_is_measured_beside_a_teacher_that_reads_all_tokens(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each reads the questions with as many tokens of a picture as it knows: as each does alone."""
    folder = llava_folder(tmp_path / "teacher", context=300)
    student = moved(llava(Llava(model=str(folder), image_tokens=1).build(), decoder={"kind": "hybrid"}))
    save_student(student, tmp_path / "student")
    data = ("--data", "scenes", f"side={SIDE}", "count_train=8", "count_test=6")
    words = ("--task", "questions", "--device", "cpu", "--json", *data, "task.lookup=0")

    def measured(*more: str) -> Any:
        assert main(["evaluate", *more, *words]) == 0
        return json.loads(capfd.readouterr().out)

    both = measured(str(tmp_path / "student"), "--teacher", str(folder))
    for name, path in (("student", tmp_path / "student"), ("teacher", folder)):
        alone = measured(str(path))["student"]
        kept = [key for key in alone if key not in ("peak_memory_mb", "samples_per_second")]
        assert {key: both[name][key] for key in kept} == {key: alone[key] for key in kept}
    assert "same_answer" in both["agreement"] and both["difference"]["accuracy"]["items"] == 6
    assert "kl" not in both["student"], "whose tokens stand at other places"
