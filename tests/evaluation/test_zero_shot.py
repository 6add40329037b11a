"""Zero-shot classification against a slow loop, open_clip's own classifier, and text of other lengths."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from embedding_runners import Embeds, class_batches, filled, pair_batch, tallies_of, unit
from torch import Tensor

from transmamba import adapt_teacher
from transmamba.core.batch import Batch
from transmamba.core.task import Evaluator, Matrix, Outcome, Pass
from transmamba.ecosystems import open_clip as ecosystem
from transmamba.ecosystems.origin import Origin
from transmamba.errors import UserError
from transmamba.evaluation import zero_shot
from transmamba.evaluation.retrieval import RetrievalEvaluator
from transmamba.evaluation.run import ModelRunner, measure
from transmamba.evaluation.zero_shot import (
    TEMPLATES,
    ZeroShotEvaluator,
    class_vectors,
    described,
    read_templates,
)

CPU = torch.device("cpu")
NAMES = ["cat", "dog", "{}", "car", "c{c}", "a bird", "fox"]
MANY = ("a photo of a {c}.", "{}", "an ugly {c}, {d}")


class Words:
    """Numbers every text that it meets, for `Embeds`; keeps what it was given."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        self.calls.append(list(texts))
        numbers = [self.known.setdefault(text, len(self.known)) for text in texts]
        return {"text": torch.tensor(numbers)[:, None]}


def evaluator_of(
    labels: Tensor, tokenize: Any, templates: Sequence[str] = MANY, names: Sequence[str] = NAMES
) -> ZeroShotEvaluator:
    return ZeroShotEvaluator("test", class_batches(labels), names, templates, tokenize, filled)


def labels_of(seed: int, count: int = 83, classes: int = len(NAMES)) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, classes, count))


def outcome_of(labels: Tensor, image: Tensor, text: Tensor, words: Words, batch_size: int = 9) -> Outcome:
    runners = {"student": Embeds(image, text)}
    return measure([evaluator_of(labels, words)], runners, Pass(batch_size=batch_size)).outcomes[0]["student"]


def slow_loop(image: Tensor, text: Tensor, known: Mapping[str, int], labels: Tensor) -> dict[str, float]:
    """Every item, class and template by itself, in float64."""
    vectors = []
    for name in NAMES:
        total = np.zeros(image.shape[1])
        for before, after in (("a photo of a ", "."), ("", ""), ("an ugly ", ", {d}")):
            vector = text[known[before + name + after]].double().numpy()
            total += vector / np.linalg.norm(vector)
        vectors.append(total / np.linalg.norm(total))
    top1, top5, classes = [], [], {}
    for vector, label in zip(image.double().numpy(), labels.tolist(), strict=True):
        ranked = sorted(range(len(NAMES)), key=lambda k: -float(vector @ vectors[k]))
        top1.append(ranked[0] == label)
        top5.append(label in ranked[:5])
        classes.setdefault(label, []).append(ranked[0] == label)
    return {
        "zero_shot_top1": 100 * float(np.mean(top1)),
        "zero_shot_top5": 100 * float(np.mean(top5)),
        "zero_shot_per_class": 100 * float(np.mean([np.mean(right) for right in classes.values()])),
    }


@pytest.mark.parametrize("texts", [1, 6, 256])
def test_it_equals_a_slow_loop(monkeypatch: pytest.MonkeyPatch, texts: int) -> None:
    """Embeddings of any length; however many texts are embedded at once."""
    monkeypatch.setattr(zero_shot, "_TEXTS", texts)
    for seed in range(3):
        labels, words = labels_of(seed), Words()
        text = 3 * torch.randn(21, 8, generator=torch.Generator().manual_seed(seed))
        image = unit(seed, len(labels), 8)
        found = outcome_of(labels, image, text, words)
        assert found.metrics == pytest.approx(slow_loop(image, text, words.known, labels))
        assert len(words.calls) == {1: 7, 6: 4, 256: 1}[texts]
        for key, items in found.items.items():
            assert items.shape == labels.shape and items.mean() == pytest.approx(found.metrics[key]), key


def test_the_classifier_is_made_once_by_each_process_and_stays_there() -> None:
    """After the first pictures, whose speed is the model's, and without an item of its own."""
    labels, words = labels_of(0), Words()
    image, text = unit(0, len(labels), 8), unit(1, 21, 8)
    whole = outcome_of(labels, image, text, words, batch_size=100)
    for world in (2, 3):
        runner = Embeds(image, text)
        tallies = tallies_of(evaluator_of(labels, words), {"student": runner}, world)
        assert sum(texts == 21 for _, texts in runner.passes) == world
        assert runner.passes[:2] == [(4, 0), (0, 21)]
        gathered = pickle.loads(pickle.dumps(tallies))
        assert all(not tally.weights for tally in gathered) and tallies[0].weights
        found = evaluator_of(labels, words).finish(gathered)["student"]
        assert found.metrics == whole.metrics
        assert all(np.array_equal(found.items[key], whole.items[key]) for key in whole.items)


def test_student_and_teacher() -> None:
    labels, words = labels_of(3), Words()
    image, text = unit(0, len(labels), 8), unit(1, 21, 8)
    runners = {"student": Embeds(image, text), "teacher": Embeds(unit(2, len(labels), 8), text)}
    measured = measure([evaluator_of(labels, words)], runners, Pass(batch_size=10))
    student, teacher = (measured.outcomes[0][name] for name in ("student", "teacher"))
    same = student.answers.answers.predicted == teacher.answers.answers.predicted
    assert measured.agreement() == {"zero_shot_agreement": pytest.approx(100 * same.mean())}
    known = {metric.key for metric in ZeroShotEvaluator.METRICS}
    assert student.metrics.keys() | measured.agreement().keys() == known
    matrix, *listings = student.exhibits
    assert isinstance(matrix, Matrix) and matrix.title.startswith("Zero-shot: confusions")
    assert len(listings) == 2
    samples = measured.samples(6)
    assert len(samples) == 6 and samples[0].group == "zero-shot: student and teacher differ"
    assert {sample.label for sample in samples} <= set(NAMES)


def test_what_cannot_be_measured() -> None:
    words = Words()
    with pytest.raises(UserError, match="the test split is empty"):
        outcome_of(labels_of(0, 0), unit(0, 1, 8), unit(1, 21, 8), words)
    with pytest.raises(UserError, match="teacher gives no text embeddings"):
        runners = {"teacher": Embeds(unit(0, 83, 8))}
        measure([evaluator_of(labels_of(0), words)], runners, Pass(batch_size=10))


def test_it_is_an_evaluator() -> None:
    evaluator = evaluator_of(labels_of(0), Words())
    assert isinstance(evaluator, Evaluator) and evaluator.metrics is ZeroShotEvaluator.METRICS
    assert [metric.key for metric in evaluator.metrics if metric.headline] == ["zero_shot_top1"]


# --- templates ---


def test_templates_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text(
        "\ufeffa photo of a {c}.\n\n  a {} in a field \nein Foto: {c}, größer\n", encoding="utf-8"
    )
    assert read_templates(path) == ("a photo of a {c}.", "a {} in a field", "ein Foto: {c}, größer")
    assert described("c{c}", read_templates(path)) == [
        "a photo of a c{c}.",
        "a c{c} in a field",
        "ein Foto: c{c}, größer",
    ]
    assert described("cat", TEMPLATES) == ["a photo of a cat."]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a {c}\na photo of a cat\n", "line 2: 'a photo of a cat' must have one {c}"),
        (b"a {c} and a {}\n", "line 1: 'a {c} and a {}' must have one {c}"),
        (b"a {name}\n", "line 1: 'a {name}' must have one {c}"),
        (b"\n \n", "no template there; write one a line"),
        (b"\xff\xfe{\x00", "no UTF-8 text"),
        (None, "No such file or directory; write a text file"),
    ],
)
def test_a_wrong_file_of_templates_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "templates.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_templates(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- a real model ---

WORDS, VOCABULARY = 12, 300


def clip() -> Any:
    """A random CLIP of open_clip, small."""
    image = dict(layers=2, width=32, head_width=8, patch_size=4, image_size=16)
    text = dict(layers=2, width=24, heads=3, context_length=WORDS, vocab_size=VOCABULARY)
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=24, vision_cfg=image, text_cfg=text).eval()
    config = dict(embed_dim=24, vision_cfg=image, text_cfg=text, custom_text=False)
    ecosystem.say_made_from(model, config, Origin())
    return model


def letters(texts: Sequence[str], length: int | None) -> Tensor:
    """A token a letter, the end last, padded with 0 to a length, or to the longest."""
    rows = [[1 + ord(letter) % (VOCABULARY - 2) for letter in text][: WORDS - 1] for text in texts]
    longest = length or max(len(row) + 1 for row in rows)
    return torch.tensor([[*row, VOCABULARY - 1, *[0] * (longest - len(row) - 1)] for row in rows])


def padded_to(length: int | None) -> Any:
    def tokenize(texts: Sequence[str]) -> Mapping[str, Tensor]:
        text = letters(texts, length)
        return {"text": text, "text_mask": text != 0}

    return tokenize


def with_pixels(batches: Any) -> Any:
    """The same batches, with pictures of noise that depends on the item alone."""

    def made(passing: Pass) -> Any:
        for batch in batches(passing):
            pixels = [
                torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(n))) for n in batch.index
            ]
            yield Batch(
                {**batch.inputs, "image": torch.stack(pixels)}, batch.targets, batch.index, batch.counts
            )

    return made


def test_the_classifier_is_that_of_open_clip() -> None:
    model, names = clip(), ["cat", "dog", "ox", "eel", "bat", "hen"]
    templates = ("{c}", "a {c}", "{c}s")
    labels = labels_of(0, 20, len(names))
    evaluator = ZeroShotEvaluator(
        "test", with_pixels(class_batches(labels)), names, templates, padded_to(WORDS), filled
    )
    wanted = open_clip.build_zero_shot_classifier(
        model,
        lambda texts: letters(texts, WORDS),
        names,
        [lambda name, template=template: template.format(c=name) for template in templates],
        num_classes_per_batch=4,
        device="cpu",
    )
    runner = ModelRunner(adapt_teacher(model), CPU, kind="teacher")
    found = class_vectors("teacher", runner, names, templates, evaluator.tokenize)
    torch.testing.assert_close(found, wanted.T, atol=1e-5, rtol=1e-4)
    (batch,) = evaluator.batches(Pass(batch_size=20))
    with torch.no_grad():
        logits = 100 * model.encode_image(batch.inputs["image"], normalize=True) @ wanted
    found = measure([evaluator], {"teacher": runner}, Pass(batch_size=8)).outcomes[0]["teacher"]
    assert np.array_equal(found.answers.answers.predicted, logits.argmax(dim=1).numpy())


def test_padded_and_unpadded_text_agree() -> None:
    """A real tower, in both evaluators: the same vectors, the same numbers."""
    runner = ModelRunner(adapt_teacher(clip()), CPU, kind="teacher")
    owners = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4])
    said = ["a", "two", "three", "a cat", "word", "words", "ox", "longest one"]
    found = []
    for length in (WORDS, None):

        def batches(passing: Pass, length: int | None = length) -> Any:
            for part in np.split(np.arange(5), range(passing.batch_size, 5, passing.batch_size)):
                batch = pair_batch(owners, part)
                texts = [said[m] for m in batch.inputs["text"][:, 0].tolist()]
                inputs = {**batch.inputs, **padded_to(length)(texts)}
                yield Batch(inputs, batch.targets, batch.index, batch.counts)

        def captions(number: int) -> list[str]:
            return [said[m] for m in torch.nonzero(owners == number)[:, 0].tolist()]

        labels = torch.tensor([0, 1, 2, 1, 0])
        evaluators: list[Evaluator] = [
            RetrievalEvaluator("test", with_pixels(batches), captions, filled),
            ZeroShotEvaluator(
                "test",
                with_pixels(class_batches(labels)),
                ["a", "b", "cc"],
                TEMPLATES,
                padded_to(length),
                filled,
            ),
        ]
        found.append(measure(evaluators, {"teacher": runner}, Pass(batch_size=2)))
    padded, unpadded = found
    assert padded.metrics("teacher") == pytest.approx(unpadded.metrics("teacher"))
    texts = [measured.outcomes[0]["teacher"].answers.text for measured in found]
    np.testing.assert_allclose(*texts, atol=1e-6)


def test_text_that_is_not_finite_is_said_to_be_of_no_item() -> None:
    """And pictures are counted by their own batches."""

    class Broken(torch.nn.Module):
        def run(self, inputs: Mapping[str, Tensor], captures: Mapping[str, Any]) -> Any:
            from transmamba.core.output import Output

            made = {"image": torch.ones(len(inputs["image"]), 2)} if "image" in inputs else {}
            if "text" in inputs:
                made["text"] = torch.full((len(inputs["text"]), 2), torch.nan)
            return Output(embeddings=made)

    runners = {"student": ModelRunner(Broken(), CPU)}
    with pytest.raises(UserError) as caught:
        measure([evaluator_of(labels_of(0), Words())], runners, Pass(batch_size=10))
    text = str(caught.value)
    assert text.startswith(
        "student: text embeddings are not finite in batch 1 (texts that belong to no item)"
    )
