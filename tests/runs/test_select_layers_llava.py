"""Attention put back into a LLaVA's decoder one layer at a time: what that scores on answers, and what reads
the order."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "students"))
from hybrids import hybrid, llama
from llavas import MARK, batch, llava, made_by, make, moved, together
from small_language import llama_folder, texts_file
from small_llava import SIDE, llava_folder

from transmamba import SubcloneConfig, UserError, adapt_teacher, load_student, select_layers
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.config.registry import STUDENTS, TASKS
from transmamba.data.text.plain import Text
from transmamba.runs.layer_scores import Scores
from transmamba.students.hybrid_lm.swap import Swappable
from transmamba.students.llava.model import LlavaStudent
from transmamba.subcloning.checkpoint import convert_checkpoint
from transmamba.tasks.language import LanguageConfig

PURE: dict[str, Any] = {"kind": "hybrid"}
CROSS = dict(num_heads=2, state_size=4)
# teacher, what else the student is made of
STUDENTS_MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "its tower kept": ("CLIP, Llama", {}),
    "a vim": ("SigLIP, Qwen2", dict(image={"kind": "vim"})),
    "cross-Mamba": ("CLIP, Llama", dict(cross=CROSS)),
    "cross-Mamba in an ssd_vit": ("CLIP, Llama", dict(image={"kind": "ssd_vit"}, cross=CROSS | {"every": 2})),
}


def scores_of(student: LlavaStudent, teacher: Any, *data: Any) -> Scores:
    return Scores(
        student.swap(teacher.view), teacher, data, recall=False, what="answers", device=torch.device("cpu")
    )


def built(model: Any, student: LlavaStudent, layers: tuple[int, ...], parts: dict[str, Any]) -> LlavaStudent:
    """The student made anew with attention in these layers, with all tensors of the other but its mixers'."""
    fresh = llava(model, decoder={**PURE, "attention_layers": list(layers)}, **parts)
    mine, theirs = student.state_dict(), fresh.state_dict()
    fresh.load_state_dict({name: mine.get(name, tensor) for name, tensor in theirs.items()})
    return fresh.double()


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row without its padding, in float64."""
    mask, seen = inputs["text_mask"][row], inputs["image"][inputs["image_row"] == row]
    found = {name: inputs[name][row][mask][None] for name in ("text", "prompt_mask")}
    return {**found, **({"image": seen.double()} if len(seen) else {})}


@pytest.mark.parametrize("name", STUDENTS_MADE)
def test_a_swap_scores_as_the_llava_made_anew(name: str) -> None:
    """On the words of the answers alone, of rows with none, one and two pictures; the teacher is
    transformers' own model, each row read alone."""
    theirs, parts = STUDENTS_MADE[name]
    model = make(theirs, num_hidden_layers=3)
    student = moved(llava(model, decoder=PURE, **parts))
    before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
    several = [together(left=False), together()]
    several[1]["image"] = several[1]["image"].flip(0)
    data = [batch(inputs) for inputs in several]
    scores = scores_of(student, adapt_teacher(model), *data)
    sets = [(), (0,), (1,), (2,), (0, 2)]
    found = scores(sets)
    model, rows = model.double(), []
    for inputs, read, row in [(*pair, row) for pair in zip(several, data, strict=True) for row in range(3)]:
        given, asked = alone(inputs, row), read.targets["tokens"][row][inputs["text_mask"][row]] >= 0
        plain = {name: given[name] for name in given if name != "prompt_mask"}
        rows.append((given, asked, torch.log_softmax(made_by(model, plain), -1)[0]))
    for layers, score in zip(sets, found, strict=True):
        made, each = built(model, student, layers, parts), []
        for given, asked, teacher in rows:
            mine = torch.log_softmax(made_by(made, given), -1)[0]
            each.append((teacher.exp() * (teacher - mine)).sum(-1)[asked])
        assert score.kl == pytest.approx(float(torch.cat(each).mean()), rel=2e-4)
        assert (score.recall_kl, score.recalled) == (0, 0)
    assert len({round(score.kl, 5) for score in found}) == len(sets)
    assert scores.words == {"answers": 12, "recall": 0}
    after = student.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("cross", [None, CROSS])
def test_all_attention_is_the_teacher(fold: bool, cross: Any) -> None:
    """Its tower kept; cross-Mamba says nothing at its start."""
    model = make(num_hidden_layers=3)
    teacher = adapt_teacher(model).fold() if fold else adapt_teacher(model)
    init = SubcloneConfig(fold=fold, importance="uniform")
    student = llava(model, decoder=PURE, cross=cross, init=init)
    none, every = scores_of(student, teacher, batch(together(left=False)))([(), (0, 1, 2)])
    assert none.kl > 1e-2 and abs(every.kl) < 1e-5


def test_pictures_and_teacher_are_read_once_whatever_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(num_hidden_layers=3)
    student, teacher = llava(model, decoder=PURE, image={"kind": "vim"}).train(), adapt_teacher(model)
    calls: list[str] = []

    def counted(owner: Any, method: str, name: str) -> None:
        whole = getattr(owner, method)

        def call(*given: Any, **more: Any) -> Any:
            calls.append(name)
            return whole(*given, **more)

        monkeypatch.setattr(owner, method, call)

    counted(student.vision_tower, "run", "pictures")
    counted(student.language_model, "read", "decoder")
    counted(type(teacher), "__call__", "teacher")
    scores_of(student, teacher, batch(together(left=False)))([(), (0,), (1,), (2,)])
    assert [calls.count(name) for name in ("pictures", "teacher", "decoder")] == [1, 1, 4]
    assert student.training and student.vision_tower.training


def test_what_goes_on_from_spliced_words_is_the_whole() -> None:
    student, inputs = moved(llava(make(), decoder=PURE)), together()
    opened = student.spliced(inputs)
    assert opened.keys() == {"text", "text_mask", "prompt_mask", "words"}
    assert torch.equal(made_by(student, opened), made_by(student, inputs))
    at = inputs["text"] != MARK
    assert torch.equal(opened["words"][at], student.language_model.embed(inputs["text"])[at])


# --- folders, the command, and recipes ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN, as a run leaves it: config.yaml and a LLaVA without attention in its decoder."""
    folder = tmp_path_factory.mktemp("select")
    teacher = llava_folder(folder / "teacher", context=256, layers=4)
    options = {"decoder": PURE}
    convert_checkpoint(str(teacher), folder / "run" / "student", student="llava", options=options)
    student: Any = load_student(folder / "run" / "student")
    moved(student).save_pretrained(folder / "run" / "student")
    data = dict(name="scenes", side=SIDE, count_train=40, count_test=20, types=["exist", "count"])
    said = {
        "task": {"name": "questions", "data": data, "validation": 0.5, "final_split": "test", "lookup": 0},
        "teacher": {"name": "llava", "model": str(teacher)},
        "student": {"name": "llava", **options},
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(said))
    return folder / "run"


def test_the_command_writes_what_a_llava_reads(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, teacher = run.parent / "layers.json", run.parent / "teacher"
    words = ["select-layers", str(run), "--keep", "1,2", "-o", str(out), "--questions", "12"]
    assert main([*words, "--device", "cpu"]) == 0
    shown, told = capsys.readouterr()
    found = json.loads(out.read_text())
    assert f"keep 2: {found['chosen']['2']}" in shown and "recall" not in shown and "test split" not in told
    assert found["data"]["split"] == "validation" and found["data"]["words"]["recall"] == 0
    assert 12 <= found["data"]["words"]["answers"] <= 12 * 16, "prompts are read, not predicted"
    assert found["options"] | {"precision": "no"} == {
        "method": "greedy",
        "recall_weight": 0.0,
        "questions": 12,
        "precision": "no",
    }
    losses = [found["single"][str(layer)]["kl"] for layer in range(4)]
    assert found["order"][0] == losses.index(min(losses))
    assert found["teacher"] == {
        "source": str(teacher),
        **dict(layers=4, width=32, heads=4, kv_heads=2, vocabulary=found["teacher"]["vocabulary"]),
    }
    for keep in (1, 2):  # as `convert` and recipes build it
        asked = {"kind": "hybrid", "attention_layers": {"file": str(out), "keep": keep}}
        folder = run.parent / f"kept-{keep}"
        convert_checkpoint(str(teacher), folder, student="llava", options={"decoder": asked})
        made: Any = load_student(folder)
        assert list(made.language_model.attention_layers) == found["chosen"][str(keep)]
        config = configs.parse(STUDENTS["llava"], {"decoder": asked}, "student")
        again = {key: value for key, value in configs.dump(config).items() if key != "name"}
        assert configs.parse(STUDENTS["llava"], again, "again") == config
    again = select_layers(run, [1, 2], questions=12, device="cpu").as_dict()
    assert json.loads(json.dumps(again)) == found, "the same each time"
    other = llava_folder(run.parent / "other", context=256)
    with pytest.raises(
        UserError, match=r"^student\.decoder\.attention_layers: .*layers 4.*this one has layers 2"
    ) as said:
        convert_checkpoint(str(other), run.parent / "none", student="llava", options={"decoder": asked})
    assert "\n" not in str(said.value)


def test_questions_may_be_asked_of_another_reader(run: Path) -> None:
    words = ["select-layers", str(run), "--keep", "1", "--task", "questions", "--data", "scenes", "--json"]
    more = [f"side={SIDE}", "count_train=8", "count_test=6", "--questions", "3", "--method", "single"]
    assert main([*words, *more, "-o", str(run.parent / "others.json"), "--device", "cpu"]) == 0
    found = json.loads((run.parent / "others.json").read_text())
    assert found["data"]["split"] == "test" and "count_test=6" in found["data"]["task"]


def blind(**values: Any) -> Any:
    data = dict(name="scenes", side=SIDE, count_train=8, count_test=6)
    return configs.parse(TASKS["questions"], {"data": data, "pictures": "none", **values}, "task")


def test_a_language_model_is_put_in_order_on_questions_without_pictures(tmp_path: Path) -> None:
    teacher = llama_folder(tmp_path / "teacher", context=256)
    convert_checkpoint(str(teacher), tmp_path / "student", student="hybrid_lm")
    given = dict(teacher=teacher, task=blind(), questions=4, device="cpu")
    found = select_layers(tmp_path / "student", [1], **given)  # type: ignore[arg-type]
    assert found.about["data"]["words"]["answers"] >= 4 and found.none.kl > 0
    assert found.about["options"]["recall_weight"] == 0


def test_what_does_not_fit_is_told_in_a_line(run: Path, tmp_path: Path) -> None:
    pictures = configs.parse(TASKS["image_classification"], {"data": {"name": "digits"}}, "task")
    file = texts_file(tmp_path / "texts.jsonl")
    texts = LanguageConfig(data=Text(train=file, test=file), block=16)
    for options, says in (
        (dict(keep=[4]), r"keep has 4, but the student has 4 layers; write fewer"),
        (dict(questions=0), r"questions is 0; write at least 1"),
        (
            dict(tokens=100),
            r"tokens is 100, but data of the task questions are counted in questions; write questions",
        ),
        (dict(recall_weight=1.0), r"recall_weight is 1, but spans are repeated of texts alone.*leave it out"),
        (dict(split="dev"), r"split 'dev': write train, validation or test"),
        (
            dict(task=texts, questions=3),
            r"questions is 3, but data of the task language are counted in tokens",
        ),
        (dict(task=pictures), r"on texts or on questions .*, not on image_classification"),
        (dict(task=texts), r"the task language needs a causal language model"),
    ):
        told(says, run, **{"keep": [1], **options})
    told(r"is a Linear; layers are selected of a hybrid_lm or a llava", nn.Linear(1, 1), keep=[1], run=run)


def told(says: str, student: Any, run: Path | None = None, **options: Any) -> None:
    if run is not None:
        options |= {"teacher": run.parent / "teacher", "task": blind()}
    with pytest.raises(UserError, match=says) as said:
        select_layers(student, **options, device="cpu")
    assert "\n" not in str(said.value)


def test_a_task_that_is_not_the_run_s_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["select-layers", str(run), "--keep", "1", "--task", "language", "-o", str(run.parent / "x.json")]
    assert main(words) == 2
    assert "was trained on the task questions; leave --task out" in capsys.readouterr().err


def test_another_student_or_teacher_is_refused() -> None:
    view = adapt_teacher(make()).view
    assert isinstance(llava(make()), Swappable) and isinstance(hybrid(llama()), Swappable)
    none = r"\(student\.decoder: {kind: hybrid, attention_layers: \[\]}\)"
    for decoder, layers in ((PURE | {"attention_layers": [1]}, "1"), ({"kind": "kept"}, "0, 1")):
        with pytest.raises(UserError, match=rf"keeps attention in layers {layers}; .* {none}"):
            llava(make(), decoder=decoder).swap(view)
    pure = llava(make(), decoder=PURE)
    with pytest.raises(UserError, match="student llava needs a LLaVA of transformers as its teacher"):
        pure.swap(adapt_teacher(llama()).view)
    with pytest.raises(UserError, match="the student is 32 wide, the teacher 48"):
        pure.swap(adapt_teacher(make(hidden_size=48)).view)
    with pytest.raises(
        UserError, match="this teacher is a LLaVA; its decoder becomes a hybrid in the student"
    ):
        hybrid(llama()).swap(view)
