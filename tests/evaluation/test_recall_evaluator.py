"""Recall against generation: a slow loop writes token by token what the evaluator finds under teacher
forcing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from copying_runner import Copies
from small_language import reading, write_jsonl

import transmamba.evaluation.words as words
from transmamba.config.registry import BENCHMARKS
from transmamba.core.task import Evaluator, Pass
from transmamba.core.text import LanguageTokenizer
from transmamba.data.text.recall import Recalled
from transmamba.evaluation.recall import RecallEvaluator
from transmamba.evaluation.run import measure

LENGTHS = (200, 320)


@pytest.fixture
def tokenizer(tmp_path: Path) -> LanguageTokenizer:
    return reading(tmp_path / "tokenizer").text


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHUNK", 7)


def items(name: str, tokenizer: LanguageTokenizer, tmp_path: Path) -> list[Recalled]:
    options = {}
    if name != "key_value":
        rows = [{"text": f"Sentence {k} is {k * k} and no {k + 1}. Then {k}."} for k in range(60)]
        options["path"] = write_jsonl(tmp_path / "t.jsonl", rows)
    found: list[Recalled] = BENCHMARKS[name](lengths=LENGTHS, items=5, **options).build(tokenizer)
    return found


def generated(model: Copies, item: Recalled) -> list[int]:
    ids = item.ids[: item.start]
    for _ in item.ids[item.start :]:
        ids = [*ids, model.next_token(ids)]
    return ids[item.start :]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", ["needle", "key_value"])
def test_exact_match_is_that_of_greedy_generation(
    name: str, world: int, tokenizer: LanguageTokenizer, tmp_path: Path
) -> None:
    found = items(name, tokenizer, tmp_path)
    evaluator = RecallEvaluator(name, found, tokenizer)
    models = {
        "student": Copies(tokenizer.vocabulary, 6, forgets=130),
        "teacher": Copies(tokenizer.vocabulary, 6),
    }
    tallies = []
    for rank in range(world):
        tallies.append(evaluator.start())
        for batch in evaluator.batches(Pass(batch_size=3, rank=rank, world=world)):
            evaluator.add(tallies[-1], models, batch)
    outcomes = evaluator.finish(tallies)
    for who, model in models.items():
        right = [100.0 * (generated(model, item) == item.ids[item.start :]) for item in found]
        by_length = np.array(right).reshape(5, 2)
        metrics = outcomes[who].metrics
        for k, length in enumerate(LENGTHS):
            assert metrics[f"{name}_{length}_acc"] == by_length[:, k].mean()
            assert outcomes[who].items[f"{name}_{length}_acc"].tolist() == by_length[:, k].tolist()
        assert metrics[f"{name}_acc"] == by_length.mean() and len(metrics) == 3
    assert outcomes["student"].metrics[f"{name}_acc"] < outcomes["teacher"].metrics[f"{name}_acc"]
    assert isinstance(evaluator, Evaluator)


def test_of_a_span_every_token_counts(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    found = items("repeated_span", tokenizer, tmp_path)
    evaluator = RecallEvaluator("repeated_span", found, tokenizer)
    model = Copies(tokenizer.vocabulary, 2)
    metrics = measure([evaluator], {"student": model}, Pass(batch_size=4)).metrics("student")
    shares = []
    for item in found:
        places = range(item.start, len(item.ids))
        shares.append(np.mean([100.0 * (model.next_token(item.ids[:k]) == item.ids[k]) for k in places]))
    assert metrics["repeated_span_acc"] == pytest.approx(np.mean(shares))
    for k, length in enumerate(LENGTHS):
        assert metrics[f"repeated_span_{length}_acc"] == pytest.approx(np.mean(shares[k::2]))
    assert 0 < metrics["repeated_span_acc"] < 100 and len(set(shares)) > 3


def test_models_are_compared_item_by_item(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    evaluator = RecallEvaluator("needle", items("needle", tokenizer, tmp_path), tokenizer)
    runners = {
        name: Copies(tokenizer.vocabulary, 6, forgets)
        for name, forgets in (("student", 100), ("teacher", None))
    }
    measured = measure([evaluator], runners, Pass(batch_size=4))
    apart = measured.differences()
    assert apart.keys() == {metric.key for metric in evaluator.metrics}
    for key, difference in apart.items():
        means = [measured.metrics(name)[key] for name in ("student", "teacher")]
        assert difference.items == 5 and difference.mean == pytest.approx(means[0] - means[1])
    sample = measured.samples(2)[0]
    assert "secret code" in sample.text and sample.label.strip().isdigit()
    assert [answer.who for answer in sample.answers] == ["student", "teacher"]
    assert sample.answers[1].right and not sample.answers[0].right
