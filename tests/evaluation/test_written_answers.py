"""Answers in writing: how they are gathered and judged, and what students and teachers write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_language import PLAIN_TEMPLATE, TEXTS, llama_folder, texts_file, write_jsonl
from torch import Tensor

import transmamba
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.core.batch import Batch
from transmamba.core.task import Evaluator, Pass
from transmamba.data.text.generated import Asked
from transmamba.ecosystems.generation import left_padded
from transmamba.ecosystems.language_tokenizer import HuggingFaceTokenizer
from transmamba.errors import ConfigError, UserError
from transmamba.evaluation.generation import GenerationEvaluator
from transmamba.evaluation.run import measure

TOKENS = 8


class Letters:
    """A letter is its number; 0 stands for no letter."""

    prefix, context, chats = (ord("^"),), None, False

    def encode(self, texts: Any) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    def words(self, ids: Any) -> str:
        return "".join(chr(word) for word in ids if word)

    def render(self, messages: Any, *, prompt: bool = False) -> str:
        assert prompt and [message.role for message in messages] == ["user"]
        return f"<{messages[0].content}>"


class Chat(Letters):
    prefix, chats = (), True


class Says:
    """Answers with a function of the prompt."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer, self.asked, self.sizes = answer, list[str](), list[int]()

    def generate(self, batch: Batch, limit: int) -> Tensor:
        assert limit == TOKENS
        text, mask = batch.inputs["text"], batch.inputs["text_mask"]
        assert bool((mask.long().diff(dim=1) >= 0).all()), "padding lies before"
        rows = ["".join(map(chr, row[real].tolist())) for row, real in zip(text, mask, strict=True)]
        self.asked += rows
        self.sizes.append(text.shape[1])
        answers = [[ord(letter) for letter in self.answer(row)][:limit] for row in rows]
        return torch.tensor([row + [0] * (limit - len(row)) for row in answers])

    def logits(self, batch: Batch) -> Any:
        raise NotImplementedError

    embed = logits


def asked(count: int) -> list[Asked]:
    """Question k is k letters long; two parts: whether the answer is its length, and whether it has no z."""

    def judge(length: int) -> Callable[[str], tuple[bool, ...]]:
        return lambda text: (text == str(length), "z" not in text)

    lengths = [1 + (7 * k) % count for k in range(count)]
    return [Asked("q" * n, str(n), judge(n), ("length", "no z")) for n in lengths]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("tokenizer", [Letters(), Chat()], ids=["plain", "chat"])
def test_every_question_is_asked_once_and_judged_by_its_own_answer(tokenizer: Any, world: int) -> None:
    evaluator = GenerationEvaluator("toy", asked(10), tokenizer, TOKENS, in_parts=True, stops=("\nq",))
    assert isinstance(evaluator, Evaluator)
    outcomes, runners = answered(evaluator, world)
    around = "<{}>" if tokenizer.chats else "^{}"
    assert set(runners["student"].asked) == {around.format("q" * n) for n in range(1, 11)}
    assert runners["student"].sizes == sorted(runners["student"].sizes, reverse=True) or world > 1
    right = {"student": [n % 3 > 0 for n in range(1, 11)], "teacher": [True] * 10}
    for name, wanted in right.items():
        by_number = [wanted[len(question.prompt) - 1] for question in evaluator.questions]
        found = outcomes[name]
        assert found.items["toy_prompt_acc"].tolist() == [100.0 * each for each in by_number]
        assert found.metrics["toy_prompt_acc"] == pytest.approx(100 * np.mean(wanted))
        # of a wrong answer one of two parts is right
        assert found.metrics["toy_instruction_acc"] == pytest.approx(50 + 50 * np.mean(wanted))
    (listing,) = outcomes["student"].exhibits
    assert listing.rows == [("length", "10", "70.0"), ("no z", "10", "100.0")]
    (sample, *more) = evaluator.samples(outcomes, 2)
    assert len(more) == 1 and [answer.right for answer in sample.answers] == [False, True]
    assert len(sample.label) and sample.text == "q" * int(sample.label) and int(sample.label) % 3 == 0


def answered(evaluator: GenerationEvaluator, world: int) -> Any:
    """The student is wrong of every third length; both write on and on."""

    def count(prompt: str) -> int:
        return prompt.count("q")

    runners = {
        "student": Says(lambda prompt: f"{count(prompt) if count(prompt) % 3 else 'x'}\nqzz"),
        "teacher": Says(lambda prompt: f"{count(prompt)}\nqz"),
    }
    tallies, batches = [], []
    for rank in range(world):
        tally = evaluator.start()
        mine = list(evaluator.batches(Pass(batch_size=2, rank=rank, world=world)))
        batches.append(len(mine))
        for batch in mine:
            evaluator.add(tally, runners, batch)
        tallies.append(tally)
    assert len(set(batches)) == 1, "every process has equally many"
    return evaluator.finish(tallies), runners


def test_single_parts_have_one_metric() -> None:
    one = [Asked("q", "1", lambda text: (text == "1",))]
    evaluator = GenerationEvaluator("toy", one, Letters(), TOKENS)
    outcomes, _ = answered(evaluator, 1)
    assert outcomes["teacher"].metrics == {"toy_acc": 0.0} and not outcomes["teacher"].exhibits
    assert [metric.key for metric in evaluator.metrics] == ["toy_acc"]


# --- with models ---


@pytest.fixture(scope="module", params=["template", "none"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = PLAIN_TEMPLATE if request.param == "template" else None
    return llama_folder(tmp_path_factory.mktemp("teacher"), template=template, bos=True, context=128)


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    made, _ = transmamba.convert(str(teacher), "hybrid_lm", attention_layers=[0])
    transmamba.save_student(made, folder)
    return folder


QUESTIONS = [
    {"question": f"{text.split()[0]} " * n, "answer": f"#### {n}"} for n, text in enumerate(TEXTS, 1)
]


@torch.no_grad()
def slowly(model: Any, ids: list[int], limit: int) -> list[int]:
    text, new = list(ids), list[int]()
    while len(new) < limit and 2 not in new:
        new.append(
            int(model(input_ids=torch.tensor([[*text, *new]]), use_cache=False).logits[0, -1].argmax())
        )
    return new


def values_of(folder: Path, **options: Any) -> dict[str, Any]:
    data = dict(name="text", test=texts_file(folder / "test.jsonl"))
    asked = write_jsonl(folder / "maths.jsonl", QUESTIONS)
    maths = dict(name="gsm8k", path=asked, tokens=TOKENS)
    return {"data": data, "block": 16, "cache": str(folder / "cache"), "generated": [maths], **options}


def test_student_and_teacher_write_what_their_library_s_models_write(
    teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    kept: dict[str, Any] = {}
    finish = GenerationEvaluator.finish

    def keeping(self: Any, tallies: Any) -> Any:
        kept.update(finish(self, tallies))
        return kept

    monkeypatch.setattr(GenerationEvaluator, "finish", keeping)
    task = configs.parse(TASKS["language"], values_of(tmp_path), "task")
    results = transmamba.evaluate(student, task, teacher=str(teacher), batch_size=3, device="cpu")
    assert {"gsm8k_acc", "perplexity", "kl"} <= results["student"].keys()
    assert "gsm8k_acc" in results["difference"]
    words = HuggingFaceTokenizer(str(teacher))
    prompts = [f"Question: {row['question']}\nAnswer:" for row in QUESTIONS]
    shown = [f"user: {text}\nassistant: " for text in prompts] if words.chats else prompts
    rows = words.encode(shown)
    if not words.chats:
        rows = [[1, *ids] for ids in rows]
    for name, folder in (("student", student), ("teacher", teacher)):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        wanted = [words.words(slowly(model, ids, TOKENS)).partition("\nQuestion:")[0] for ids in rows]
        assert kept[name].answers.said == wanted, name
        assert len(set(wanted)) > 1


def test_a_teacher_in_hand_writes_and_stays_as_it_is(teacher: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher).train()
    inputs = left_padded([[5, 6, 7], [9]])
    held = transmamba.adapt_teacher(model)
    made = held.generate(inputs, 5)
    assert made.tolist() == transmamba.load_teacher(teacher).generate(inputs, 5).tolist()
    assert made[0].tolist()[: len(slowly(model.eval(), [5, 6, 7], 5))] == slowly(model, [5, 6, 7], 5)
    held.writer = None
    with pytest.raises(UserError, match="cannot generate"):
        held.generate(inputs, 5)


def test_writing_is_not_on_the_clock(teacher: Path) -> None:
    from transmamba.evaluation.run import ModelRunner

    maths = [Asked("one", "1", lambda text: (True,)), Asked("one two", "2", lambda text: (True,))]
    evaluator = GenerationEvaluator("toy", maths, HuggingFaceTokenizer(str(teacher)), 3)
    runner = ModelRunner(transmamba.load_teacher(teacher), torch.device("cpu"), kind="teacher")
    measured = measure([evaluator], {"teacher": runner}, Pass(batch_size=1))
    assert measured.metrics("teacher") == {"toy_acc": 100.0}
    assert measured.costs["teacher"].samples_per_second == 0.0


def test_the_command_measures_them(
    teacher: Path, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = values_of(tmp_path)
    data = f"--task language --data text test={values['data']['test']} task.block=16".split()
    maths = [f"task.generated.0.{key}={value}" for key, value in values["generated"][0].items()]
    words = ["evaluate", str(student), *data, f"task.cache={values['cache']}", *maths, "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    assert "gsm8k_acc" in json.loads(capfd.readouterr().out)["student"]
    assert main([*words, "task.generated.0.tokens=128"]) == 2
    assert "generated.0: gsm8k: a question of" in capfd.readouterr().err
    assert main([*words, "task.generated.0.name=gsm9k"]) == 2
    assert "did you mean 'gsm8k'" in capfd.readouterr().err
    assert main([*words, "--split", "train"]) == 2


def test_a_benchmark_is_named_once_and_measured_with_the_final_split(teacher: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path)
    twice = {**values, "generated": values["generated"] * 2}
    with pytest.raises(ConfigError, match="gsm8k twice"):
        configs.parse(TASKS["language"], twice, "task")
    values["data"]["train"] = values["data"]["test"]
    both = {**values, "validation": 0.4, "final_split": "test"}
    task = configs.parse(TASKS["language"], both, "task").build(
        transmamba.load_teacher(teacher).preprocessing
    )
    keys = [[each.split for each in task.evaluators(split)] for split in ("validation", "test")]
    assert keys == [["validation"], ["test", "gsm8k"]]
    assert "gsm8k_acc" in [metric.key for metric in task.metrics]
