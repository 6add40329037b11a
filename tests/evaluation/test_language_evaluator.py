"""Perplexity, KL and agreement against a slow loop over words in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from language_runners import Says, text_batch
from scipy.special import log_softmax

import transmamba.evaluation.words as words
from transmamba.core.batch import Batch
from transmamba.core.task import Evaluator, Pass
from transmamba.data.stream import in_order
from transmamba.errors import UserError
from transmamba.evaluation.language import EDGES, LanguageEvaluator
from transmamba.evaluation.run import measure

LENGTH, BLOCKS = 90, 7


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHUNK", 50)


def evaluator_of(packed: bool, blocks: int = BLOCKS) -> LanguageEvaluator:
    def read(passing: Pass) -> Iterator[Batch]:
        for part in in_order(np.arange(blocks), passing.batch_size, passing.rank, passing.world):
            yield text_batch(torch.from_numpy(np.asarray(part)), LENGTH, packed=packed)

    return LanguageEvaluator("valid", read, text=lambda n: f"block {n}")


def measured(
    evaluator: LanguageEvaluator, models: dict[str, Any], world: int = 1, batch_size: int = 3
) -> Any:
    """As `measure` finds it in `world` processes."""
    tallies = []
    for rank in range(world):
        found: list[Any] = []
        passing = Pass(batch_size=batch_size, rank=rank, world=world)
        with pytest.raises(StopIteration):
            measure([evaluator], models, passing, lambda mine, found=found: _stop(found, mine))
        tallies.append(found[0][0])
    return evaluator.finish(tallies)


def _stop(found: list[Any], mine: Any) -> list[Any]:
    found.append(mine)
    raise StopIteration


def slow(models: dict[str, Says], packed: bool, name: str) -> dict[str, list[tuple[int, int, float]]]:
    """(block, place in its document, score) of every word that is asked for."""
    scores: dict[str, list[tuple[int, int, float]]] = {"nats": [], "kl": [], "same": []}
    for block in range(BLOCKS):
        batch = text_batch(torch.tensor([block]), LENGTH, packed=packed)
        place, before = -1, None
        for at in range(LENGTH):
            document = int(batch.inputs["text_segment"][0, at]) if packed else 0
            place, before = (place + 1 if document == before else 0), document
            wanted = int(batch.targets["tokens"][0, at])
            if wanted == -100:
                continue
            word = int(batch.inputs["text"][0, at])
            log, theirs = (log_softmax(models[n].table[word].double().numpy()) for n in (name, "teacher"))
            scores["nats"].append((block, place, -log[wanted]))
            scores["kl"].append((block, place, float((np.exp(theirs) * (theirs - log)).sum())))
            scores["same"].append((block, place, 100.0 * (log.argmax() == theirs.argmax())))
    return scores


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_metrics_are_those_of_a_slow_loop(packed: bool, world: int) -> None:
    models = {"student": Says(1), "teacher": Says(2)}
    outcomes = measured(evaluator_of(packed), models, world)
    for name, outcome in outcomes.items():
        expected = slow(models, packed, name)
        means = {kind: np.mean([score for *_, score in found]) for kind, found in expected.items()}
        wanted = {
            "perplexity": math.exp(means["nats"]),
            "nats_per_token": means["nats"],
            "kl": means["kl"],
            "top1_agreement": means["same"],
        }
        assert outcome.metrics == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert outcome.index.tolist() == list(range(BLOCKS))
        for key, kind in (("nats_per_token", "nats"), ("kl", "kl"), ("top1_agreement", "same")):
            assert outcome.items[key].mean() == pytest.approx(outcome.metrics[key], rel=1e-9, abs=1e-9)
            sums = [sum(score for b, _, score in expected[kind] if b == block) for block in range(BLOCKS)]
            share = len(expected[kind]) / BLOCKS
            np.testing.assert_allclose(outcome.items[key], np.array(sums) / share, rtol=1e-4, atol=1e-5)
    assert outcomes["teacher"].metrics["kl"] == 0 and outcomes["teacher"].metrics["top1_agreement"] == 100
    assert outcomes["student"].metrics["kl"] > 0.5, "the two are not alike"


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_kl_by_place_in_the_document(packed: bool) -> None:
    models = {"student": Says(1), "teacher": Says(2)}
    (table,) = measured(evaluator_of(packed), models)["student"].exhibits
    expected = slow(models, packed, "student")["kl"]
    lines = []
    for name, low, high in (("0 to 63", 0, EDGES[0]), ("64 to 255", EDGES[0], EDGES[1])):
        mine = [score for _, place, score in expected if low <= place < high]
        lines.append((name, str(len(mine)), f"{np.mean(mine):.4f}"))
    assert [(row[0], row[1], row[3]) for row in table.rows] == lines


def test_one_model_alone_has_perplexity_alone() -> None:
    evaluator = evaluator_of(True)
    outcome = measured(evaluator, {"student": Says(1)})["student"]
    assert set(outcome.metrics) == {"perplexity", "nats_per_token"} and set(outcome.items) == {
        "nats_per_token"
    }
    assert evaluator.samples({"student": outcome}, 3) == []


def test_student_and_teacher_are_compared_block_by_block() -> None:
    found = measure([evaluator_of(True)], {"student": Says(1), "teacher": Says(2)}, Pass(batch_size=4))
    differences = found.differences()
    assert differences.keys() == {"nats_per_token", "kl", "top1_agreement"}
    kl = differences["kl"]
    assert kl.items == BLOCKS and kl.low < kl.mean < kl.high
    assert kl.mean == pytest.approx(found.metrics("student")["kl"]) and kl.ratio is None
    samples = found.samples(2)
    assert [sample.text for sample in samples] != [] and samples[0].text.startswith("block ")
    assert [answer.who for answer in samples[0].answers] == ["student", "teacher"]
    far = [float(sample.answers[0].text.split("KL ")[1]) for sample in samples]
    assert far == sorted(far, reverse=True)


def test_every_process_calls_the_head_as_often() -> None:
    """However its rows and words differ: one that gathers a spread head's weights waits for the others."""
    calls = []
    for rank in range(2):
        evaluator, model = evaluator_of(False, blocks=9), Says(1)
        passing = Pass(batch_size=4, rank=rank, world=2)
        measure([evaluator], {"student": model}, passing, lambda mine: [mine])
        calls.append(model.calls)
    assert len(calls[0]) == len(calls[1]) and calls[0] != calls[1]
    assert max(map(max, calls)) <= 50


def test_an_item_that_two_processes_had_counts_once() -> None:
    evaluator = evaluator_of(True, blocks=3)
    models = {"student": Says(1), "teacher": Says(2)}
    alone = measured(evaluator, models)["student"]
    among = measured(evaluator, models, world=5)["student"]
    assert among.metrics == pytest.approx(alone.metrics, rel=1e-6)


def test_vocabularies_of_two_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="student 11 and teacher 12 words"):
        measure([evaluator_of(True)], {"student": Says(1), "teacher": Says(2, words=12)}, Pass(batch_size=4))


def test_nothing_to_measure_is_said() -> None:
    with pytest.raises(UserError, match="the valid split has no words to predict"):
        measure([evaluator_of(True, blocks=0)], {"student": Says(1)}, Pass(batch_size=4))


def test_it_is_an_evaluator() -> None:
    assert isinstance(evaluator_of(True), Evaluator)


@pytest.mark.parametrize(("world", "calls"), [(1, 1), (2, 5)])
def test_rows_of_unlike_lengths_call_a_head_equally_often_on_all_processes(world: int, calls: int) -> None:
    """5 calls are 2 rows of 125 tokens, 50 at a time; alone a process calls as it needs."""
    for length in (6, 24):
        evaluator = LanguageEvaluator("test", lambda passing: iter(()), longest=125)
        list(evaluator.batches(Pass(batch_size=2, world=world)))
        model, tally = Says(0), evaluator.start()
        evaluator.add(tally, {"student": model}, text_batch(torch.arange(2), length, packed=False))
        assert len(model.calls) == calls
