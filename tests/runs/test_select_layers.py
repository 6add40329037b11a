"""Layers put back one at a time: what a swap scores, which order follows, and what reads it."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

sys.path += [str(Path(__file__).parents[1] / room) for room in ("students", "evaluation")]
from hybrids import hybrid, llama, make, moved
from language_runners import text_batch
from small_language import texts_file, tokenizer_folder

from transmamba import ConfigError, SubcloneConfig, UserError, adapt_teacher, load_student, select_layers
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.core.batch import Batch
from transmamba.data.text.plain import Text
from transmamba.runs.layer_order import Score, ordered, spread
from transmamba.runs.layer_scores import Scores, repeated
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.students.hybrid_lm.names import HybridLM
from transmamba.students.hybrid_lm.selected import FORMAT
from transmamba.students.hybrid_lm.swap import Swap
from transmamba.subcloning.checkpoint import convert_checkpoint
from transmamba.tasks.language import LanguageConfig

TEACHERS = {
    "Llama": llama,
    "heads beyond the teacher's": lambda: llama(hidden_size=48, head_dim=16),
    "Qwen2": lambda: make("Qwen2 (QKV biases)"),
}


def built(model: Any, student: HybridStudent, *layers: int, **options: Any) -> HybridStudent:
    """The hybrid made anew, with all of the student's tensors but its mixers' in these layers."""
    fresh, mine = hybrid(model, *layers, **options), student.state_dict()
    theirs = fresh.state_dict()
    fresh.load_state_dict({name: mine.get(name, tensor) for name, tensor in theirs.items()})
    return fresh.double()


def kl_of(teacher: Any, student: HybridStudent, text: Tensor, mask: Tensor, asked: Tensor) -> Tensor:
    """Of the asked tokens of one row (L,), (n,) in float64; a token after the mask's end is not there."""
    with torch.no_grad():
        row = text[mask][None]
        logs = [torch.log_softmax(each, -1)[0] for each in (teacher(row).logits, student(row))]
    return (logs[0].exp() * (logs[0] - logs[1])).sum(-1)[asked[mask]]


@pytest.mark.parametrize("name", TEACHERS)
def test_a_swap_scores_as_the_hybrid_made_anew(name: str) -> None:
    """Whose mixers, norms and MLPs have left their start. Rows of unlike lengths, each read alone."""
    model = TEACHERS[name]()
    student = moved(hybrid(model))
    before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
    batch = text_batch(torch.arange(4), 44, packed=False)
    scores = Scores(
        Swap(student, adapt_teacher(model).view),
        adapt_teacher(model),
        [batch],
        recall=True,
        device=torch.device("cpu"),
    )
    sets = [(), (0,), (1,), (2,), (0, 2)]
    found, again = scores(sets), repeated(batch)
    model = model.double()
    for layers, score in zip(sets, found, strict=True):
        made = built(model, student, *layers)
        wanted = []
        for each in (batch, again):
            text, asked = each.inputs["text"], each.targets["tokens"] >= 0
            mask = each.inputs.get("text_mask", torch.ones_like(asked))
            rows = [kl_of(model, made, text[n], mask[n], asked[n]) for n in range(len(text))]
            wanted.append(float(torch.cat(rows).mean()))
        assert [score.kl, score.recall_kl] == pytest.approx(wanted, rel=2e-4)
    assert len({round(score.kl, 4) for score in found}) == len(sets)
    after = student.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert student.attention_layers == () and scores.words["text"] == int(
        (batch.targets["tokens"] >= 0).sum()
    )


def test_all_attention_is_the_teacher() -> None:
    """Folded, too, whose norms are the student's own."""
    for fold in (False, True):
        model = llama()
        teacher = adapt_teacher(model).fold() if fold else adapt_teacher(model)
        student = hybrid(model, init=SubcloneConfig(fold=fold, importance="uniform"))
        swap = Swap(student, teacher.view)
        batch = text_batch(torch.arange(3), 24, packed=True)
        scores = Scores(swap, teacher, [batch], recall=True, device=torch.device("cpu"))
        none, every = scores([(), (0, 1, 2)])
        assert none.kl > 1e-2 and abs(every.kl) < 1e-5 and abs(every.recall_kl) < 1e-5


def test_a_span_comes_again() -> None:
    text = torch.arange(20).view(2, 10)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 4:] = False
    short = torch.zeros(1, 10, dtype=torch.bool)
    batch = Batch({"text": text, "text_mask": mask}, {}, torch.arange(2), {"samples": 2})
    made = repeated(batch)
    assert made.inputs["text"].tolist() == [[0, 1, 2, 3, 4] * 2, [*[10, 11, 12, 13] * 2, 0, 0]]
    assert made.inputs["text_mask"].sum(1).tolist() == [10, 8]
    assert made.targets["tokens"].tolist() == [
        [-100] * 5 + [1, 2, 3, 4, -100],
        [-100] * 4 + [11, 12, 13] + [-100] * 3,
    ]
    assert made.counts == {"samples": 2, "tokens": 18, "answers": 7}
    assert "text_mask" not in repeated(Batch({"text": text}, {}, torch.arange(2), {"samples": 2})).inputs
    none = Batch({"text": text[:1], "text_mask": short}, {}, torch.arange(1), {"samples": 1})
    assert len(repeated(none)) == 0


class Said:
    """Scores by a function of sets; what was asked for."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.calls = loss, list[int]()

    def __call__(self, sets: Sequence[tuple[int, ...]]) -> list[Score]:
        self.calls.append(len(sets))
        assert all(tuple(sorted(layers)) == layers for layers in sets)
        return [Score(kl=self.loss(layers), recall_kl=0.0, recalled=0.0) for layers in sets]


GAINS = (0.3, 0.9, -0.1, 0.8, 0.4, 0.8)


def test_greedy_finds_the_best_pair_where_gains_add_up() -> None:
    said = Said(lambda layers: 5 - sum(GAINS[k] for k in layers))
    found = ordered(said, range(6), 4, 1.0, "greedy")
    assert found.order == (1, 3, 5, 4) and said.calls == [7, 5, 4, 3]
    for count in (2, 3, 4):
        best = min(itertools.combinations(range(6), count), key=said.loss)
        assert set(best) == set(found.order[:count])
        assert found.nested[count - 1].kl == pytest.approx(said.loss(best))


def test_greedy_counts_once_what_two_layers_bring_alike() -> None:
    """Layers that cover things: the second best alone brings nothing beside the best."""
    covers = {0: {1, 2, 3, 4}, 1: {1, 2, 3}, 2: {5}, 3: {5, 6}}
    said = Said(lambda layers: 10.0 - len(set().union(*(covers[k] for k in layers))))
    found = ordered(said, range(4), 3, 1.0, "greedy")
    assert found.order[:2] == (0, 3) and [score.kl for score in found.nested] == [6, 4, 4]
    assert {k: score.kl for k, score in found.single.items()} == {0: 6, 1: 7, 2: 9, 3: 8}


def test_single_takes_neighbours_to_bring_the_same() -> None:
    """Values beside layer 1: 0.9; 0.3 - 0.15, -0.1 - 0.05, 0.8 - 0.2, 0.4 - 0.05, 0.8 - 0.05; then by 5."""
    said = Said(lambda layers: 5 - sum(GAINS[k] for k in layers))
    found = ordered(said, range(6), 4, 1.0, "single")
    assert found.order == (1, 5, 3, 4) and said.calls == [7, 3]
    assert [score.kl for score in found.nested] == pytest.approx([4.1, 3.3, 2.5, 2.1])
    assert spread({0: -0.4, 1: -0.3, 5: -0.5}, 3) == (1, 5, 0)
    # the neighbour's 0.9 is 0.45, the far one's 0.5 is 0.484, its 0.4 is 0.388
    assert spread({0: 1.0, 1: 0.9, 5: 0.5}, 2) == (0, 5) and spread({0: 1.0, 1: 0.9, 5: 0.4}, 2) == (0, 1)


def test_recall_weighs_as_it_is_told() -> None:
    def measure(sets: Sequence[tuple[int, ...]]) -> list[Score]:
        return [Score(kl=float(1 in s) / -2, recall_kl=float(0 in s) / -4, recalled=0.0) for s in sets]

    orders = [ordered(measure, range(2), 1, weight, "greedy").order for weight in (0.0, 1.9, 2.1)]
    assert orders == [(1,), (1,), (0,)]


# --- folders, the command, and recipes ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN, as a run leaves it: config.yaml and a student without attention."""
    folder = tmp_path_factory.mktemp("select")
    llama(vocab_size=320, max_position_embeddings=64, num_hidden_layers=4).save_pretrained(folder / "teacher")
    tokenizer_folder(folder / "teacher")
    convert_checkpoint(str(folder / "teacher"), folder / "run" / "student", student="hybrid_lm")
    student = load_student(folder / "run" / "student")
    torch.manual_seed(0)
    moved(student).save_pretrained(folder / "run" / "student")  # type: ignore[arg-type, operator]
    data = {"name": "text", "train": texts_file(folder / "texts.jsonl"), "test": str(folder / "texts.jsonl")}
    said = {
        "task": {"name": "language", "data": data, "block": 24, "cache": str(folder / "cache")},
        "teacher": {"name": "causal_lm", "model": str(folder / "teacher")},
        "student": {"name": "hybrid_lm"},
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(said))
    return folder / "run"


def test_the_command_writes_what_a_recipe_reads(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "found" / "layers.json"
    words = ["select-layers", str(run), "--keep", "3,1", "-o", str(out), "--tokens", "200", "--device", "cpu"]
    assert main(words) == 0
    shown, told = capsys.readouterr()
    found = json.loads(out.read_text())
    assert found["chosen"]["3"] == sorted(found["order"]) and f"keep 1: {found['chosen']['1']}" in shown
    assert "chosen on the test split" in told and f"written: {out}" in told
    assert (found["teacher"]["layers"], found["options"]["method"]) == (4, "greedy")
    losses = [score["kl"] + score["recall_kl"] for score in found["single"].values()]
    assert found["order"][0] == min(range(4), key=losses.__getitem__)
    assert found["single"]["2"]["gain"] == pytest.approx(
        found["none"]["kl"] + found["none"]["recall_kl"] - losses[2]
    )
    for keep in (1, 3):  # as `convert` and recipes build it
        asked = {"file": str(out), "keep": keep}
        folder = run.parent / f"kept-{keep}"
        convert_checkpoint(
            str(run.parent / "teacher"), folder, student="hybrid_lm", options={"attention_layers": asked}
        )
        made: Any = load_student(folder)
        assert list(made.attention_layers) == found["chosen"][str(keep)]
        config = configs.parse(
            HybridLM, {"attention_layers": asked}, "student"
        )  # and a run's folder keeps it
        plain = {key: value for key, value in configs.dump(config).items() if key != "name"}
        assert plain["attention_layers"] == asked and configs.parse(HybridLM, plain, "again") == config
    assert main(words) == 2 and "exists; write another file, or --overwrite" in capsys.readouterr().err
    again = select_layers(run, [3, 1], tokens=200, device="cpu").as_dict()
    assert json.loads(json.dumps(again)) == found, "the same each time"


def test_a_student_is_measured_with_a_teacher_and_texts_in_hand(run: Path) -> None:
    file = texts_file(run.parent / "others.jsonl")
    task = LanguageConfig(data=Text(train=file, test=file), block=16, cache=str(run.parent / "cache"))
    student = load_student(run)
    given = dict(teacher=run.parent / "teacher", task=task, split="train", device="cpu", method="single")
    found = select_layers(student, [2], **given, recall_weight=0)  # type: ignore[arg-type]
    assert found.about["data"]["words"]["recall"] == 0 == found.none.recall_kl
    assert len(found.single) == 4 and len(found.nested) == 2 and math.isfinite(found.nested[1].kl)


def test_what_does_not_fit_is_told_in_a_line(run: Path, tmp_path: Path) -> None:
    whole, teacher = str(run), run.parent / "teacher"
    for given, options, says in (
        (whole, dict(keep=[4]), r"keep has 4, but the student has 4 layers; write fewer"),
        (whole, dict(keep=[0, 2]), r"keep is \[0, 2\]; write numbers of layers"),
        (whole, dict(keep=[1], tokens=0), r"tokens is 0; write at least 1"),
        (whole, dict(keep=[1], recall_weight=-1.0), r"recall_weight is -1.0; write a number"),
        (whole, dict(keep=[1], method="all"), r"method is 'all'; write greedy or single"),
        (whole, dict(keep=[1], precision="int8"), r"precision is 'int8'; write no, bf16 or fp16"),
        (whole, dict(keep=[1], split="dev"), r"split 'dev': write train, validation or test"),
        (teacher, dict(keep=[1]), r"no run there that says its teacher; name the teacher"),
        (hybrid(llama()), dict(keep=[1], teacher=teacher), r"no run there that says its data"),
    ):
        with pytest.raises(UserError, match=says) as said:
            select_layers(given, **options, device="cpu")  # type: ignore[arg-type]
        assert "\n" not in str(said.value)
    view = adapt_teacher(llama()).view
    with pytest.raises(UserError, match=r"the student keeps attention in layers 0, 2; layers are selected"):
        Swap(hybrid(llama(), 0, 2), view)
    with pytest.raises(UserError, match="the student is 48 wide, the teacher 32"):
        Swap(hybrid(llama(hidden_size=48)), view)
    with pytest.raises(UserError, match="no row of these texts has 8 tokens to repeat"):
        batch = text_batch(torch.arange(2), 6, packed=True)
        Scores(Swap(hybrid(llama()), view), None, [batch], recall=True, device=torch.device("cpu"))
    assert main(["select-layers", whole, "--keep", "1,x", "-o", str(tmp_path / "out")]) == 2


# --- the student's key ---


def layers_file(path: Path, **changes: Any) -> str:
    teacher = dict(layers=3, width=32, heads=4, kv_heads=2, vocabulary=97)
    found = {"format": FORMAT, "teacher": teacher, "order": [2, 0]} | changes
    path.write_text(json.dumps(found))
    return str(path)


def test_a_file_that_is_none_or_another_teacher_s_is_refused(tmp_path: Path) -> None:
    good = layers_file(tmp_path / "good.json")
    other = layers_file(tmp_path / "other.json", teacher=dict(layers=30, width=576))
    assert hybrid_with({"file": good, "keep": 1}).attention_layers == (2,)
    assert hybrid_with({"file": good, "keep": 2}).attention_layers == (0, 2)
    (tmp_path / "text").write_text("no")
    begin = r"student\.attention_layers"
    for file, keep, says in (
        (good, 3, rf"{begin}\.keep is 3, but .* has 2 layers in order"),
        (other, 1, rf"{begin}: .*layers 30, width 576.*, this one has layers 3, width 32"),
        (str(tmp_path / "none"), 1, rf"{begin}\.file is .*No such file"),
        (str(tmp_path / "text"), 1, rf"{begin}\.file is .*: no JSON"),
        (layers_file(tmp_path / "a", format="x"), 1, rf"{begin}\.file is .*: not of '{FORMAT}'"),
        (layers_file(tmp_path / "b", order=[1, 1]), 1, rf"{begin}\.file is .*: not of"),
        (layers_file(tmp_path / "c", order=["1"]), 1, rf"{begin}\.file is .*: not of"),
    ):
        with pytest.raises(UserError, match=says) as said:
            hybrid_with({"file": file, "keep": keep})
        assert "\n" not in str(said.value)


def hybrid_with(asked: Any, **options: Any) -> HybridStudent:
    from transmamba import convert

    student, _ = convert(adapt_teacher(llama()), "hybrid_lm", attention_layers=asked, **options)
    assert isinstance(student, HybridStudent)
    return student


def test_published_patterns_have_names() -> None:
    assert hybrid_with("every_2nd_from_1").attention_layers == (1,)
    assert hybrid_with("every_4th_from_0").attention_layers == (0,)
    # of the layers that a shallower student takes: the teacher's 0 and 2
    assert hybrid_with("every_2nd_from_1", depth=2).attention_layers == (1,)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("every_3rd", r"attention_layers: .*every_2nd_from_1.*every_4th_from_0"),
        (3, "attention_layers: "),
        ({"file": "x"}, "attention_layers.keep: required, but missing"),
        ({"file": "x", "keep": 0}, "attention_layers.keep: 0; write a number of layers"),
        ({"file": "x", "keep": 1, "sum": 2}, "attention_layers.sum: unknown key"),
        ([1, 1], r"attention_layers: \[1, 1\]; write the teacher's layers, each once"),
    ],
)
def test_a_wrong_value_is_told_in_a_line(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as said:
        configs.parse(HybridLM, {"attention_layers": value}, "student")
    assert len(said.value.problems) == 1
