"""What a classifier's answers are shown by: its confusions, its accuracy by class, items to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.task import Answer, Listing, Matrix, Sample

Ints = npt.NDArray[np.int64]
_MOST_CONFUSIONS = 12


@dataclass(frozen=True)
class Answers:
    """(N,) each: the items' numbers in their source, the right classes, one model's."""

    index: Ints
    labels: Ints
    predicted: Ints


def exhibits(answers: Answers, names: Sequence[str], split: str) -> tuple[Matrix | Listing, ...]:
    """Confusions as a matrix and the most frequent ones as a list, accuracy by class."""
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (answers.labels, answers.predicted), 1)
    return _matrix(counts, names), _confusions(counts, names, split), _by_class(counts, names, split)


def _matrix(counts: Ints, names: Sequence[str]) -> Matrix:
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Matrix("Confusions, % of a label's images", shares, names, names, "label", "answer")


def _confusions(counts: Ints, names: Sequence[str], split: str) -> Listing:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = np.stack(np.unravel_index(order, wrong.shape), axis=1)
    rows = [(names[i], names[j], f"{wrong[i, j]:,}") for i, j in pairs if wrong[i, j]]
    title = f"Most frequent confusions, of {counts.sum():,} {split} images"
    return Listing(title, ("label", "answer", "images"), rows)


def _by_class(counts: Ints, names: Sequence[str], split: str) -> Listing:
    """The hardest class first; one that the split lacks is left out."""
    total, right = counts.sum(axis=1), np.diag(counts)
    accuracy = 100 * right / np.maximum(total, 1)
    order = [k for k in np.argsort(accuracy, kind="stable") if total[k]]
    rows = [(names[k], f"{total[k]:,}", f"{accuracy[k]:.2f}") for k in order]
    return Listing(f"Accuracy by class, {split} images", ("class", "images", "top-1 %"), rows)


def groups(answers: Mapping[str, Answers]) -> dict[str, Ints]:
    """Places (not numbers) of items by what student and teacher, or a single model, made of them."""
    first = next(iter(answers.values()))
    right = {name: given.predicted == given.labels for name, given in answers.items()}
    if not {"student", "teacher"} <= answers.keys():
        (name, *_) = answers
        parts = {f"{name} wrong": ~right[name], f"{name} right": right[name]}
    else:
        differ = answers["student"].predicted != answers["teacher"].predicted
        parts = {
            "student and teacher differ": differ,
            "both wrong": ~differ & ~right["student"],
            "both right": ~differ & right["student"],
        }
    assert all(len(given.labels) == len(first.labels) for given in answers.values()), "measured together"
    return {title: np.flatnonzero(part) for title, part in parts.items()}


def choose(parts: Mapping[str, Ints], labels: Ints, count: int) -> list[tuple[str, list[int]]]:
    """At most `count` places: half of the first group, the rest of the others; what a group lacks, others
    fill."""
    titles = list(parts)
    wanted = dict.fromkeys(titles, 0)
    shares = [0.5, *[0.5 / (len(titles) - 1)] * (len(titles) - 1)]
    for title, share in zip(titles, shares, strict=True):
        wanted[title] = min(len(parts[title]), int(count * share))
    for title in titles:
        wanted[title] += min(len(parts[title]) - wanted[title], count - sum(wanted.values()))
    return [(title, across_classes(parts[title], labels, wanted[title])) for title in titles]


def across_classes(places: Ints, labels: Ints, count: int) -> list[int]:
    """`count` of the places, of as many classes as there are: splits are often in the order of their
    classes, and their first items are all of one."""
    taken: list[int] = []
    seen: dict[int, int] = {}
    rounds: dict[int, list[int]] = {}
    for place in places.tolist():
        label = int(labels[place])
        seen[label] = seen.get(label, 0) + 1
        rounds.setdefault(seen[label], []).append(place)
    for number in sorted(rounds):
        places_left = sorted(rounds[number], key=lambda place: (labels[place], place))
        left = count - len(taken)
        if len(places_left) > left:  # not of the first classes alone
            spread = np.linspace(0, len(places_left) - 1, max(left, 0)).round().astype(int)
            places_left = [places_left[i] for i in spread]
        taken += places_left
    return taken


def sample(
    title: str,
    place: int,
    answers: Mapping[str, Answers],
    names: Sequence[str],
    picture: npt.NDArray[np.uint8] | None,
) -> Sample:
    """The item at a place, with each model's answer."""
    label = int(next(iter(answers.values())).labels[place])
    said = [(name, int(given.predicted[place])) for name, given in answers.items()]
    return Sample(
        group=title,
        label=names[label],
        answers=tuple(Answer(name, names[k], k == label) for name, k in said),
        picture=picture,
    )
