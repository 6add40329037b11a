"""Image-text and video-text retrieval: which caption belongs to a picture, which picture to a caption.

An image's rank is that of the first of its captions, and recall at K is the share of queries with one of
their own items among the first K, as CLIP_benchmark has it. Ties are worth what a random order of them would
be on average (`ranks.Ranks`); CLIP_benchmark's are in whatever order topk leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.task import Listing, Metric, Outcome, Pass, Runner, Sample
from ..errors import UserError
from .classification_exhibits import Answers, choose, groups
from .embedded import Embeddings, embedded
from .once import once
from .ranks import Floats, Ints, Ranks, overlap, search
from .retrieval_exhibits import Found, distribution, sample
from .twins import Twin, pairs_of, twin_scores
from .twins import metrics_for as metrics_of_twins

KS = (1, 5, 10)


def metrics_for(visual: str) -> tuple[Metric, ...]:
    """Of the retrieval of `visual`s: an image, a video. The keys are the same."""
    ways = (("i2t", f"{visual} to text"), ("t2i", f"text to {visual}"))
    recalls = [Metric(key=f"{way}_r{k}", label=f"{name} R@{k} %") for way, name in ways for k in KS]
    ranks = [
        Metric(key=f"{way}_{kind}_rank", label=f"{name} {kind} rank", form="{:,.1f}", better="down")
        for way, name in ways
        for kind in ("median", "mean")
    ]
    return (
        Metric(key="mean_recall", label="mean recall %", headline=True),
        *recalls,
        *ranks,
        Metric(key="overlap", label="overlap of first 10 %"),
        Metric(key="image_cosine", label=f"{visual} embedding cosine", form="{:.4f}"),
        Metric(key="text_cosine", label="text embedding cosine", form="{:.4f}"),
    )


@dataclass
class Tally:
    """Of the batches so far, one after the other: the numbers of their pictures, the picture of each of their
    captions, and the embeddings of both by model and tower."""

    index: list[Ints] = field(default_factory=list)
    groups: list[Ints] = field(default_factory=list)
    embeddings: dict[str, dict[str, list[Embeddings]]] = field(default_factory=dict)


@dataclass(frozen=True)
class RetrievalEvaluator:
    """Measures models with an image and a text tower on one split.

    batches:  this process's: each picture (or video) with all its captions, in the order of `captions`;
        `index` (N,) numbers of the pictures, `targets["group"]` (M,) that of each caption's picture. A
        picture without captions is in the gallery, and nobody's query
    captions: of a picture by its number
    pictures: of items by their number in the split's source, (N, H, W, 3) uint8: of a video, a frame
    visual:   what is looked for, in words
    twin:     the number of each item's twin, in a split of twins
    """

    METRICS: ClassVar[tuple[Metric, ...]] = metrics_for("image")

    split: str
    batches: Callable[[Pass], Iterator[Batch]]
    captions: Callable[[int], Sequence[str]]
    pictures: Callable[[Ints], npt.NDArray[np.uint8]]
    visual: str = "image"
    twin: Twin | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return metrics_for(self.visual) + (metrics_of_twins(self.visual) if self.twin else ())

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model without one of the towers."""
        index = batch.index.cpu().numpy()
        group = batch.targets["group"].cpu().numpy() if "group" in batch.targets else index[:0]
        assert len(np.unique(index)) == len(index) and np.isin(group, index).all(), "each picture once"
        tally.index.append(index)
        tally.groups.append(group)
        for name, runner in runners.items():
            found = embedded(name, runner, batch, ("image", "text") if len(group) else ("image",))
            found.setdefault("text", found["image"][:0])
            assert len(found["image"]) == len(index) and len(found["text"]) == len(group)
            kept = tally.embeddings.setdefault(name, {"image": [], "text": []})
            for tower, embeddings in found.items():
                kept[tower].append(embeddings)

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where there is no picture or no caption at all."""
        kept = [tally for tally in tallies if any(map(len, tally.index))]
        if not kept:
            raise UserError(f"the {self.split} split is empty; there is nothing to measure")
        index, group, chosen = _in_order(
            [part for tally in kept for part in tally.index],
            [part for tally in kept for part in tally.groups],
        )
        if not len(group):
            raise UserError(f"the {self.split} split has no captions; retrieval needs pictures with captions")
        outcomes = {}
        for name in kept[0].embeddings:
            image, text = (
                np.concatenate([part for tally in kept for part in tally.embeddings[name][tower]])[places]
                for tower, places in chosen.items()
            )
            outcomes[name] = self._outcome(index, group, image, text)
        return outcomes

    def _outcome(self, index: Ints, group: Ints, image: Embeddings, text: Embeddings) -> Outcome:
        """index (P,) ascending; group (M,) ascending, of index; image (P, E); text (M, E)."""
        asked, picture = np.unique(group, return_inverse=True)  # (A,), and each caption's place in it
        i2t = search(image[np.isin(index, asked)], asked, text, group)
        t2i = search(text, group, image, index)
        found = Found(i2t=i2t, t2i=t2i, image=image, text=text, index=index, group=group, asked=asked)

        def of_pictures(scores: Floats) -> Floats:
            """(M,) of captions as (A,) of their pictures: the sum over a picture's captions, over the mean
            number of captions, so that their mean is the captions' however they are shared out."""
            sums: Floats = np.bincount(picture, weights=scores, minlength=len(asked)).astype(np.float64)
            return sums * (len(asked) / len(group))

        items = {f"i2t_r{k}": 100 * i2t.found(k) for k in KS}
        items |= {f"t2i_r{k}": of_pictures(100 * t2i.found(k)) for k in KS}
        items = {"mean_recall": np.mean(list(items.values()), axis=0), **items}
        items |= {"i2t_mean_rank": i2t.expected(), "t2i_mean_rank": of_pictures(t2i.expected())}
        items |= twin_scores(found, self.twin) if self.twin else {}
        medians = {f"{way}_median_rank": _median(ranks) for way, ranks in (("i2t", i2t), ("t2i", t2i))}
        return Outcome(
            metrics={key: float(scores.mean()) for key, scores in items.items()} | medians,
            items=items,
            index=asked,
            cluster=pairs_of(asked, self.twin) if self.twin else None,
            exhibits=(self._distribution(found),),
            answers=found,
        )

    def _distribution(self, found: Found) -> Listing:
        sizes = f"{len(found.index):,} {self.visual}s and {len(found.group):,} captions of the {self.split}"
        return distribution(found, f"Ranks among {sizes} split, % of queries", self.visual)

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """The share of the first ten that both find, in %, as a mean over both ways; the mean cosine between
        the two models' embeddings of the same picture and of the same caption, where they are of one width.
        """
        one, other = a.answers, b.answers
        assert np.array_equal(one.index, other.index) and np.array_equal(one.group, other.group)
        shared = [overlap(one.i2t, other.i2t), overlap(one.t2i, other.t2i)]
        found = {"overlap": 100 * float(np.mean(shared))}
        if one.image.shape[1] != other.image.shape[1]:
            return found
        pairs = {"image_cosine": (one.image, other.image), "text_cosine": (one.text, other.text)}
        return found | {key: float(np.einsum("ne,ne->n", *pair).mean()) for key, pair in pairs.items()}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Pictures for which student and teacher find captions of different pictures, both err, both are
        right."""
        found = {name: outcome.answers for name, outcome in outcomes.items()}
        asked = next(iter(found.values())).asked
        answers = {
            name: Answers(asked, asked, each.group[each.i2t.top[:, 0]]) for name, each in found.items()
        }
        chosen = [(title, place) for title, all_ in choose(groups(answers), asked, count) for place in all_]
        if not chosen:
            return []
        pictures = self.pictures(asked[np.array([place for _, place in chosen])])
        return [
            sample(f"{self.visual} to text: {title}", place, found, self.captions, picture)
            for (title, place), picture in zip(chosen, pictures, strict=True)
        ]


def _in_order(index: Sequence[Ints], groups: Sequence[Ints]) -> tuple[Ints, Ints, dict[str, Ints]]:
    """(numbers of the pictures, the picture of each caption, both ascending; which embeddings these are, by
    tower) of all processes' batches.

    A picture that came twice counts once, with the captions of the batch where it came first; the captions of
    a picture stay in their order.
    """
    numbers, first = once(index)
    batch = np.repeat(np.arange(len(index)), [len(part) for part in index])[first]
    group = np.concatenate(groups)
    came = np.repeat(np.arange(len(groups)), [len(part) for part in groups])
    mine = np.flatnonzero(came == batch[np.searchsorted(numbers, group)])
    mine = mine[np.argsort(group[mine], kind="stable")]
    return numbers, group[mine], {"image": first, "text": mine}


def _median(ranks: Ranks) -> float:
    return float(np.median(ranks.expected()))
