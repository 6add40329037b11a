"""Retrieval against brute force: loops over similarities, and over every order of what is tied."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from embedding_runners import Embeds, filled, pair_batch, pair_batches, tallies_of, unit
from torch import Tensor

from transmamba.core.task import Evaluator, Listing, Outcome, Pass
from transmamba.errors import UserError
from transmamba.evaluation import ranks
from transmamba.evaluation.compare import paired_difference, paired_differences
from transmamba.evaluation.retrieval import RetrievalEvaluator
from transmamba.evaluation.run import measure
from transmamba.reporting.samples import packed, unpacked


def owners_of(seed: int, pictures: int, most: int = 4) -> Tensor:
    """One caption to `most` for each picture, in no order."""
    generator = np.random.default_rng(seed)
    owners = np.repeat(np.arange(pictures), generator.integers(1, most + 1, pictures))
    return torch.tensor(generator.permutation(owners))


def evaluator_of(owners: Tensor, pictures: int, shuffled: int | None = None) -> RetrievalEvaluator:
    def captions(number: int) -> list[str]:
        return [f"caption {m} of {number}" for m in torch.nonzero(owners == number)[:, 0].tolist()]

    return RetrievalEvaluator("test", pair_batches(owners, pictures, shuffled), captions, filled)


def outcome_of(
    image: Tensor, text: Tensor, owners: Tensor, batch_size: int = 5, shuffled: int | None = None
) -> Outcome:
    evaluator = evaluator_of(owners, len(image), shuffled)
    runners = {"student": Embeds(image, text)}
    return measure([evaluator], runners, Pass(batch_size=batch_size)).outcomes[0]["student"]


def first_rank(likeness: Any, own: Any, order: Any) -> int:
    """The rank of the first own item, where `order` decides between equals."""
    ranked = sorted(range(len(likeness)), key=lambda item: (-likeness[item], order[item]))
    return 1 + next(place for place, item in enumerate(ranked) if own[item])


def brute_force(image_: Tensor, text_: Tensor, owners_: Tensor, orders: bool) -> dict[str, float]:
    """Of a random order of ties: over every order of a whole gallery, where `orders`."""
    image, text, owners = image_.double().numpy(), text_.double().numpy(), owners_.numpy()
    likeness = np.array([[sum(a * b for a, b in zip(i, t, strict=True)) for t in text] for i in image])
    own = np.arange(len(image))[:, None] == owners[None]
    found: dict[str, float] = {}
    for way, scores, mine in (("i2t", likeness, own), ("t2i", likeness.T, own.T)):
        size = scores.shape[1]
        every = list(itertools.permutations(range(size))) if orders else [tuple(range(size))]
        ranks_ = np.array(
            [
                [first_rank(row, right, order) for order in every]
                for row, right in zip(scores, mine, strict=True)
                if right.any()
            ]
        )
        for k in (1, 5, 10):
            found[f"{way}_r{k}"] = 100 * float((ranks_ <= k).mean())
        found[f"{way}_mean_rank"] = float(ranks_.mean())
        found[f"{way}_median_rank"] = float(np.median(ranks_.mean(axis=1)))
    recalls = [found[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    return {"mean_recall": sum(recalls) / 6, **found}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_ranks_equal_brute_force(monkeypatch: pytest.MonkeyPatch, seed: int, block: int) -> None:
    """Several captions for a picture, not equally many, whatever fits into memory at once."""
    monkeypatch.setattr(ranks, "_BLOCK", block)
    owners = owners_of(seed, 23)
    image, text = unit(seed, 23, 6), unit(seed + 50, len(owners), 6)
    text = torch.nn.functional.normalize(text + 0.7 * image[owners], dim=-1)
    found = outcome_of(image, text, owners).metrics
    assert found == pytest.approx(brute_force(image, text, owners, orders=False))
    assert 20 < found["mean_recall"] < 95 and found["i2t_r1"] < found["i2t_r5"] < found["i2t_r10"]


@pytest.mark.parametrize("seed", range(6))
def test_ties_count_as_a_random_order_of_them(seed: int) -> None:
    """Embeddings of a few directions alone: most of the similarities are equal."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.tensor([0, 2, 1, 0, 2, 2, 0][: 5 + seed % 3])
    directions = torch.cat([torch.eye(2), -torch.eye(2)[:1]])
    image = directions[torch.randint(0, 3, (3,), generator=generator)]
    text = directions[torch.randint(0, 3, (len(owners),), generator=generator)]
    found = outcome_of(image, text, owners, batch_size=2).metrics
    assert found == pytest.approx(brute_force(image, text, owners, orders=True))


def test_a_model_that_embeds_everything_alike_is_at_chance() -> None:
    owners = torch.arange(40)
    found = outcome_of(torch.ones(40, 3), torch.ones(40, 3), owners).metrics
    assert [found[f"i2t_r{k}"] for k in (1, 5, 10)] == pytest.approx([100 / 40, 500 / 40, 1000 / 40])
    assert found["t2i_median_rank"] == found["t2i_mean_rank"] == pytest.approx(20.5)


def test_what_differs_by_rounding_alone_is_equal() -> None:
    """The same numbers in another order, all as far from a picture whose numbers are all the same."""
    one, generator = unit(1, 64), torch.Generator().manual_seed(0)
    text = torch.stack([one[torch.randperm(64, generator=generator)] for _ in range(50)])
    found = outcome_of(torch.full((50, 64), 1 / 8), text, torch.arange(50)).answers
    assert np.array_equal(found.i2t.above, np.zeros(50))
    assert np.array_equal(found.i2t.tied, np.full(50, 49))


def test_recall_is_that_of_clip_benchmark() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    owners = owners_of(3, 60)
    image, text = unit(3, 60, 8), unit(4, len(owners), 8)
    found, scores = outcome_of(image, text, owners).metrics, text @ image.T
    own = owners[:, None] == torch.arange(60)
    for k in (1, 5, 10):
        for way, table, right in (("t2i", scores, own), ("i2t", scores.T, own.T)):
            wanted = (theirs.recall_at_k(table, right, k) > 0).float().mean().item()
            assert found[f"{way}_r{k}"] == pytest.approx(100 * wanted, abs=0.1)


# --- items, and the split in pieces ---


def test_metrics_are_means_over_items() -> None:
    """Also where pictures have unequally many captions; a median is none."""
    owners = owners_of(0, 31)
    found = outcome_of(unit(0, 31, 4), unit(1, len(owners), 4), owners)
    assert found.index is not None and found.index.tolist() == list(range(31))
    assert found.items.keys() == {key for key in found.metrics if "median" not in key}
    for key, items in found.items.items():
        assert items.shape == (31,) and items.mean() == pytest.approx(found.metrics[key]), key
    other = outcome_of(unit(5, 31, 4), unit(6, len(owners), 4), owners)
    pair = (found.items["t2i_r5"], found.index, other.items["t2i_r5"], found.index)
    difference = paired_difference(*pair, draws=50)
    assert difference is not None and difference.items == 31
    assert difference.mean == pytest.approx(other.metrics["t2i_r5"] - found.metrics["t2i_r5"])


def test_the_item_of_a_picture_is_of_its_own_captions() -> None:
    """One picture, one whose two captions are found and not found: recall of the captions is 2/3."""
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = outcome_of(image, text, torch.tensor([0, 1, 1]))
    assert found.metrics["t2i_r1"] == pytest.approx(200 / 3)
    assert found.items["t2i_r1"] == pytest.approx([100 * 2 / 3, 100 * 2 / 3])
    assert found.items["i2t_r1"].tolist() == [50, 100]  # the first one's caption is tied with another's
    assert found.items["t2i_mean_rank"] == pytest.approx([2 / 3, 2 / 3 * 3])


def test_pictures_are_resampled_with_their_captions_in_a_gallery_that_stays() -> None:
    """Against recall counted anew over the queries that each draw has, several captions a picture."""
    pictures, each, draws = 40, 3, 200
    owners = torch.arange(pictures).repeat_interleave(each)
    tables, hits = {}, {}
    for n in (1, 2):  # captions about where their pictures are
        image, noise = unit(n, pictures, 4), unit(n + 50, len(owners), 4)
        tables[n] = image, torch.nn.functional.normalize(image[owners] + noise, dim=-1)
    for n, (image, text) in tables.items():
        scores, own = (text @ image.T).numpy(), (owners[:, None] == torch.arange(pictures)).numpy()
        first = scores.argsort(axis=1)[:, ::-1][:, :5]  # of all pictures, whoever asks
        best = np.where(own, scores, -np.inf).max(axis=0)
        i2t = (scores > best).sum(axis=0) < 5
        hits[n] = i2t, (first == owners.numpy()[:, None]).any(axis=1)
    again, means = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = again.integers(0, pictures, pictures)
        captions = np.concatenate([np.flatnonzero(owners.numpy() == picture) for picture in drawn])
        means.append([[100 * hits[n][0][drawn].mean(), 100 * hits[n][1][captions].mean()] for n in (1, 2)])
    teacher, student = np.moveaxis(np.array(means), 1, 0)
    outcomes = [outcome_of(*tables[n], owners).items for n in (1, 2)]
    found = paired_differences(*outcomes, draws=draws)
    for place, key in enumerate(("i2t_r5", "t2i_r5")):
        difference = np.quantile(student[:, place] - teacher[:, place], [0.025, 0.975])
        ratio = np.quantile(student[:, place] / teacher[:, place], [0.025, 0.975])
        assert (found[key].low, found[key].high) == pytest.approx(tuple(difference))
        assert (found[key].ratio_low, found[key].ratio_high) == pytest.approx(tuple(ratio), rel=0.01)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_together_are_one_process(world: int) -> None:
    """Processes meet equally often: a small share has its last batch halved, or an item again."""
    pictures = 5 if world == 7 else 22
    owners = owners_of(world, pictures)
    image, text = unit(0, pictures, 4), unit(1, len(owners), 4)
    whole, evaluator = outcome_of(image, text, owners, batch_size=100), evaluator_of(owners, pictures)
    runners = {"student": Embeds(image, text)}
    tallies = list(tallies_of(evaluator, runners, world))
    evaluator.add(tallies[1], runners, pair_batch(owners, [3, 0]))  # once more
    found = evaluator.finish(pickle.loads(pickle.dumps(tallies)))["student"]
    assert found.metrics == whole.metrics
    assert all(np.array_equal(found.items[key], whole.items[key]) for key in whole.items)
    assert np.array_equal(found.answers.i2t.top, whole.answers.i2t.top)
    assert found.exhibits == whole.exhibits


def test_the_order_within_batches_does_not_matter() -> None:
    owners = owners_of(1, 20)
    image, text = unit(0, 20, 4), unit(1, len(owners), 4)
    whole = outcome_of(image, text, owners)
    for batch_size, shuffled in ((20, 0), (3, 1)):
        again = outcome_of(image, text, owners, batch_size, shuffled)
        assert again.metrics == whole.metrics
        assert np.array_equal(again.answers.t2i.top, whole.answers.t2i.top)


def test_pictures_without_captions_are_in_the_gallery_alone() -> None:
    """Every caption is most like picture 1, of which nothing is said; a batch has no text at all."""
    owners = torch.tensor([0, 2])
    image = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    found = outcome_of(image, text, owners, batch_size=1)
    assert found.index is not None and found.index.tolist() == [0, 2]
    assert found.metrics["t2i_r1"] == 0 and found.items["t2i_mean_rank"].tolist() == [2, 3]
    assert found.items["i2t_mean_rank"].tolist() == [2, 1]


# --- two models ---


def test_agreement_equals_brute_force() -> None:
    owners = owners_of(2, 24)
    tables = [(unit(n, 24, 5), unit(n + 10, len(owners), 5)) for n in range(2)]
    runners = {name: Embeds(*table) for name, table in zip(("student", "teacher"), tables, strict=True)}
    measured = measure([evaluator_of(owners, 24)], runners, Pass(batch_size=7))
    shares = []
    (image_a, text_a), (image_b, text_b) = tables
    for a, b in ((image_a @ text_a.T, image_b @ text_b.T), (text_a @ image_a.T, text_b @ image_b.T)):
        tops = [[set(np.argsort(-row)[:10].tolist()) for row in scores.numpy()] for scores in (a, b)]
        shares.append(np.mean([len(x & y) / 10 for x, y in zip(*tops, strict=True)]))
    assert measured.agreement() == {
        "overlap": pytest.approx(100 * np.mean(shares)),
        "image_cosine": pytest.approx((image_a * image_b).sum(-1).mean().item(), abs=1e-6),
        "text_cosine": pytest.approx((text_a * text_b).sum(-1).mean().item(), abs=1e-6),
    }
    student = measured.outcomes[0]["student"]
    same = measured.evaluators[0].compare(student, student)
    assert same == {
        "overlap": 100.0,
        "image_cosine": pytest.approx(1),
        "text_cosine": pytest.approx(1),
    }
    assert set(measured.results()["agreement"]) <= {metric.key for metric in RetrievalEvaluator.METRICS}


def test_models_of_different_widths_agree_in_what_they_find() -> None:
    owners = torch.arange(6)
    widths = {"student": 3, "teacher": 5}
    runners = {name: Embeds(unit(0, 6, width), unit(1, 6, width)) for name, width in widths.items()}
    found = measure([evaluator_of(owners, 6)], runners, Pass(batch_size=6)).agreement()
    assert found == {"overlap": 100.0}  # of six, all are among the first ten


def test_of_equals_the_first_are_kept() -> None:
    found = outcome_of(torch.ones(15, 2), torch.ones(15, 2), torch.arange(15))
    assert np.array_equal(found.answers.t2i.top, np.tile(np.arange(10), (15, 1)))


def test_embeddings_that_are_not_finite_are_no_ranks() -> None:
    image, text = unit(0, 6, 3), unit(1, 6, 3)
    image[2, 1] = torch.nan
    runners = {"student": Embeds(image, text), "teacher": Embeds(unit(0, 6, 3), text)}
    measured = measure([evaluator_of(torch.arange(6), 6)], runners, Pass(batch_size=4))
    assert all(np.isnan(value) for value in measured.metrics("student").values())
    assert all(np.isfinite(value) for value in measured.metrics("teacher").values())
    assert np.isnan(measured.agreement()["overlap"]) and np.isnan(measured.agreement()["image_cosine"])


# --- what a report shows ---


def test_samples_say_what_was_found_instead() -> None:
    owners = torch.tensor([0, 1, 2, 3, 3])
    good, poor = torch.eye(4), torch.eye(4)[[0, 2, 1, 3]]
    text = torch.eye(4)[owners]
    runners = {"student": Embeds(poor, text), "teacher": Embeds(good, text)}
    measured = measure([evaluator_of(owners, 4)], runners, Pass(batch_size=3))
    samples = {sample.text: sample for sample in measured.samples(4)}
    assert len(samples) == 4
    wrong = samples["caption 1 of 1"]
    assert wrong.group == "image to text: student and teacher differ"
    said = {answer.who: answer for answer in wrong.answers}
    assert said["student"].text.startswith("caption 2 of 2 (its own: rank") and said["student"].right is False
    assert said["teacher"].text == "caption 1 of 1" and said["teacher"].right
    assert wrong.picture is not None and wrong.picture[0, 0, 0] == 1
    assert samples["caption 3 of 3\ncaption 4 of 3"].group == "image to text: both right"
    exhibits = {name: outcome.exhibits for name, outcome in measured.outcomes[0].items()}
    kept, shown = unpacked(packed(list(samples.values()), exhibits))
    assert [each.text for each in kept] == list(samples)
    assert shown["teacher"][0].title == exhibits["teacher"][0].title


def test_the_distribution_of_ranks_adds_up() -> None:
    owners = owners_of(0, 30)
    (listing,) = outcome_of(unit(0, 30, 4), unit(1, len(owners), 4), owners).exhibits
    assert isinstance(listing, Listing)
    assert (
        listing.title == f"Ranks among 30 images and {len(owners)} captions of the test split, % of queries"
    )
    assert [row[0] for row in listing.rows][:3] == ["1", "above 1 to 5", "above 5 to 10"]
    for column in (1, 2):
        assert sum(float(row[column]) for row in listing.rows) == pytest.approx(100, abs=0.05)


# --- what cannot be measured ---


def test_an_empty_split_is_said() -> None:
    runners = {"student": Embeds(unit(0, 3, 2), unit(1, 3, 2))}
    with pytest.raises(UserError, match="the test split is empty"):
        measure([evaluator_of(torch.zeros(0), 0)], runners, Pass(batch_size=2))
    with pytest.raises(UserError, match="the test split has no captions"):
        measure([evaluator_of(torch.zeros(0), 3)], runners, Pass(batch_size=2))


def test_a_model_without_a_text_tower_is_refused() -> None:
    runners = {"student": Embeds(unit(0, 3, 2))}
    with pytest.raises(UserError, match="student gives no text embeddings") as caught:
        measure([evaluator_of(torch.arange(3), 3)], runners, Pass(batch_size=2))
    assert "\n" not in str(caught.value)


def test_it_is_an_evaluator() -> None:
    evaluator = evaluator_of(torch.arange(3), 3)
    assert isinstance(evaluator, Evaluator) and evaluator.metrics == RetrievalEvaluator.METRICS
    assert [metric.key for metric in evaluator.metrics if metric.headline] == ["mean_recall"]
    video = RetrievalEvaluator("test", evaluator.batches, evaluator.captions, filled, visual="video")
    assert [metric.key for metric in video.metrics] == [metric.key for metric in evaluator.metrics]
    assert video.metrics[1].label == "video to text R@1 %"


@pytest.mark.parametrize("wordings", [1, 3])
def test_twins_apart_equal_a_slow_loop(wordings: int) -> None:
    """Items 2 k and 2 k + 1; a caption beside that of the twin in the same words; equals are worth a half."""
    image, owners = unit(0, 10, 6), torch.arange(10).repeat_interleave(wordings)
    text = unit(1, 10 * wordings, 6)
    text[: 2 * wordings] = text[0]  # of the first two all captions are one
    image[4], text[4 * wordings] = image[5], text[5 * wordings]
    evaluator = dataclasses.replace(evaluator_of(owners, 10, shuffled=3), twin=lambda number: number ^ 1)
    measured = measure([evaluator], {"student": Embeds(image, text)}, Pass(batch_size=4))
    outcome = measured.outcomes[0]["student"]
    likeness = image.double() @ text.double().T
    for number in range(10):
        ways: dict[str, list[float]] = {"twin_i2t": [], "twin_t2i": []}
        for word in range(wordings):
            own, other = (n * wordings + word for n in (number, number ^ 1))
            right = likeness[number, own]
            for way, wrong in (
                ("twin_i2t", likeness[number, other]),
                ("twin_t2i", likeness[number ^ 1, own]),
            ):
                lead = (right - wrong).item()
                ways[way].append(50.0 if abs(lead) < 1e-7 else 100.0 * (lead > 0))
        for way, scores in ways.items():
            assert outcome.items[way][number] == pytest.approx(np.mean(scores)), (way, number)
    assert outcome.items["twin_i2t"][0] == 50 and outcome.items["twin_t2i"][4] == 50
    assert outcome.metrics["twin_i2t"] == pytest.approx(outcome.items["twin_i2t"].mean())
    assert outcome.cluster is not None and outcome.cluster.tolist() == [n - n % 2 for n in outcome.index]
    assert {metric.key for metric in evaluator.metrics} >= {"twin_i2t", "twin_t2i"}
    assert "twin_i2t" not in outcome_of(image, text, owners).metrics
