"""Pictures or videos and captions: any pair reader, a model's own preprocessing, a resumable stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from ..config.load import Part
from ..config.registry import PAIRS, READERS, TASKS
from ..core.batch import Batch
from ..core.frames import as_images
from ..core.preprocessing import Preprocessing, of_pictures
from ..core.task import Evaluator, Metric, Pass, Steps
from ..core.text import Tokenizer
from ..data.hashing import permutation
from ..data.images.augment import Augment
from ..data.images.batches import shown
from ..data.images.decoding import refusals
from ..data.pairs.bad import Forgiving, check_limit
from ..data.pairs.batches import EvalPairs, TrainPairs
from ..data.pairs.shuffled import ShuffledFrames
from ..data.pairs.source import PairSource, video_source
from ..data.pairs.truncated import say_truncated
from ..data.stream import in_order, load, train_stream
from ..data.subset import check_fraction, check_held_out, held_out_of, trained_and_held_out
from ..errors import UserError, refuse_all
from ..views.heads import Embedder
from .labelled_sets import LabelledSets, ZeroShot
from .splits import open_first, source_of

if TYPE_CHECKING:
    from .pair_evaluators import PairEvaluators

Indices = npt.NDArray[np.int64]

# captions that are looked at to say how many are cut
_LOOKED_AT = 1000


@TASKS.register("image_text")
@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Pictures of `data`, each with its captions, or with none; or videos, for a reader of those: a video's
    embedding is the mean of its frames', but for a student that scans all frames at once.

    data:          a pair reader, of pictures or of videos
    captions:      whether training reads them; without, a tower learns from pictures alone
    fraction:      share of the training pictures that is used
    fraction_seed: which pictures that share takes; with one seed, a smaller share lies within a larger one
    validation:    share of the training pictures held out as evaluation split `validation`, instead of `test`
    final_split:   what results.json is measured on, once: by default the split that training is watched on
    split_seed:    which pictures the validation split takes
    augment:       random changes to training pictures
    bad_limit:     how many training pictures may fail to decode, a share or a number: another takes the place
                   of each
    zero_shot:     data sets on which the final split's models also classify, from the classes' names alone
    shuffle_frames: with the final split, measure again with each video's frames in an order that follows from
                   its number: the control that tells whether a model sees their order
    probe:         a reader of images with classes, on which a linear classifier of the embeddings is fitted
                   (its train split) and measured (test), with the final split too

    A split without any caption has no retrieval: there the embeddings of student and teacher are compared.
    """

    data: Annotated[Any, Part(PAIRS)]
    captions: bool = True
    fraction: float = 1.0
    fraction_seed: int = 0
    validation: float = 0.0
    final_split: Literal["validation", "test"] | None = None
    split_seed: int = 0
    augment: Augment = field(default_factory=Augment)
    bad_limit: float | int = 0.01
    zero_shot: tuple[ZeroShot, ...] = ()
    shuffle_frames: bool = False
    probe: Annotated[Any, Part(READERS)] | None = None

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        check_limit(self.bad_limit)
        check_held_out(self.validation, self.final_split)
        names = [each.name for each in self.zero_shot]
        twice = sorted({name for name in names if names.count(name) > 1})
        refuse_all([f"zero_shot has two named {name!r}; give each a name of its own" for name in twice])

    def build(self, preprocessing: Preprocessing) -> ImageText:
        """Reads the data. Raises UserError as the readers do, but for the training data: where they cannot be
        had, that is said when they are asked for, and a model is evaluated without them."""
        return ImageText(self, preprocessing)

    def build_training(self, preprocessing: Preprocessing) -> ImageText:
        """The same without evaluation splits and what else is measured; the training data must be there."""
        return ImageText(replace(self, zero_shot=(), probe=None, shuffle_frames=False), preprocessing, False)


class ImageText:
    """The data of one run, as one model sees it. A `core.task.Task`.

    preprocessing: the model's
    watched:       'validation' if a share of the training data is held out, 'test' otherwise
    final:         the split that the finished model is measured on
    measured:      whether it will be: else its evaluation splits are not opened
    train_indices: (num_train,) int64, the pictures trained on, by number in the training source
    """

    num_classes = None

    def __init__(self, config: ImageTextConfig, preprocessing: Preprocessing, measured: bool = True) -> None:
        self.config, self.preprocessing, self.measured = config, of_pictures(preprocessing), measured
        self.watched = "validation" if config.validation else "test"
        self.final = config.final_split or self.watched
        self._sources: dict[str, PairSource] = {}
        self._captioned: dict[str, bool] = {}
        open_first(self._source, config, (self.watched, self.final), measured)
        if config.shuffle_frames and video_source(self._source(self.final)) is None:
            raise UserError("shuffle_frames is for videos, and data has pictures; leave it out")
        self.labelled = LabelledSets(config.zero_shot, config.probe, preprocessing)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What training batches have for towers to read; a video's frames are images."""
        return ("image", "text") if self.config.captions else ("image",)

    @property
    def targets(self) -> tuple[str, ...]:
        """What else training batches have: whose picture each caption is."""
        return ("group",) if self.config.captions else ()

    @property
    def train_indices(self) -> Indices:
        return self._chosen[0]

    @property
    def num_train(self) -> int:
        return len(self.train_indices)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        first: list[Metric] = []
        last: list[Metric] = []
        for split in dict.fromkeys((self.watched, self.final)):
            (first if self._has_captions(split) else last).extend(self._measured(split).metrics)
        return tuple({metric.key: metric for metric in (*first, *self.labelled.metrics, *last)}.values())

    def check(self, model: Any, who: str) -> None:
        """Raises UserError for a teacher that embeds no pictures, or no texts where captions are read."""
        view = getattr(model, "view", None)
        if view is not None:
            towers = {name for name, head in view.heads.items() if isinstance(head, Embedder)}
            towers |= set(view.opaque)
            for tower in ("image", "text") if self._reads_texts else ("image",):
                if tower not in towers:
                    raise UserError(
                        f"{who} embeds no {tower}; the task image_text compares pictures with texts: choose "
                        "a CLIP or a SigLIP"
                    )
        if self._reads_texts:
            self._tokenizer()

    @property
    def _reads_texts(self) -> bool:
        """In training or in measurements."""
        splits = (self.watched, self.final) if self.measured else ()
        return self.config.captions or bool(self.config.zero_shot) or any(map(self._has_captions, splits))

    def indices(self, split: str) -> Indices:
        """Numbers of the pictures of 'train' (those trained on), 'validation' or 'test' in their source."""
        if split == "train":
            return self.train_indices
        if split == "validation":
            return held_out_of(self._chosen[1] if self.config.validation else ())
        return np.arange(len(self._source(split)), dtype=np.int64)

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """A rank's micro-batches, from step `start_step` on."""
        return train_stream(self.train_source(steps.seed), self.num_train, steps)

    def train_source(self, seed: int) -> TrainPairs:
        """What makes a batch of (epoch, position) pairs, with the changes that `seed` draws. Raises UserError
        where captions are to be read and there are none."""
        self._check_captions()
        tokenizer = self._tokenizer() if self.config.captions else None
        augment = self.config.augment
        return TrainPairs(self._forgiving(), self.train_indices, self.preprocessing, tokenizer, augment, seed)

    def _forgiving(self) -> Forgiving:
        """The training pictures, one that is bad replaced by another of them."""
        return Forgiving(self._source("train"), self.config.bad_limit, self.train_indices)

    def eval_batches(self, split: str, passing: Pass, shuffled: bool = False) -> Iterator[Batch]:
        """Pictures `indices(split)[rank::world]` in order, each once, with all their captions, if the split
        has any; `shuffled`: videos with their frames in another order."""
        parts = in_order(self.indices(split), passing.batch_size, passing.rank, passing.world)
        tokenizer = self._tokenizer() if self._has_captions(split) else None
        source = self._source(split)
        videos = video_source(source) if shuffled else None
        seen = source if videos is None else ShuffledFrames(videos)
        return load(
            EvalPairs(seen, self.preprocessing, tokenizer), parts, passing.batch_size, workers=passing.workers
        )

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed random choice of training pictures (all if there are fewer), as evaluation sees them,
        without their captions; of videos the frames of so many that they are about `samples` pictures."""
        source = self._source("train")
        videos = video_source(source)
        frames = 1 if videos is None else videos.num_frames
        samples, batch_size = -(-samples // frames), max(1, batch_size // frames)
        chosen = self.train_indices[permutation(self.num_train, self.config.split_seed)[:samples]]
        pairs = EvalPairs(self._forgiving(), self.preprocessing, None)
        batches = load(pairs, in_order(chosen, batch_size), batch_size)
        return batches if videos is None else map(as_images, batches)

    def change(self, batch: Batch, seed: int) -> Batch:
        return batch

    def evaluators(self, split: str) -> tuple[Evaluator, ...]:
        """Of pairs retrieval, of pictures alone how alike two models are; with the final split, what is
        measured on other data."""
        self.indices(split)  # refuses a split that there is not
        others = self.labelled.evaluators(self.preprocessing.text) if split == self.final else ()
        own = self._measured(split).all()
        return (*own, *others) if self._has_captions(split) else (*others, *own)

    def _measured(self, split: str) -> PairEvaluators:
        from .pair_evaluators import PairEvaluators

        return PairEvaluators(
            split=split,
            source=self._source(split),
            indices=self.indices(split),
            captioned=self._has_captions(split),
            shuffled=self.config.shuffle_frames and split == self.final,
            batches=partial(self.eval_batches, split),
            pictures=partial(self.images, split=split),
        )

    def images(self, indices: Indices, split: str = "test") -> npt.NDArray[np.uint8]:
        """Pictures to look at, of a video its middle frame, (N, H, W, 3): resized and cropped as for
        evaluation, not normalised."""
        return shown(self._source(split), indices, self.preprocessing)

    def look_through(self) -> Iterator[str]:
        """A line for each picture of the evaluation splits that does not decode, of those in files. Says how
        many captions are longer than the model reads. Raises UserError where none is there to be read."""
        self._check_captions()
        if self.config.captions:
            self.say_truncated("train")
        for split in dict.fromkeys((self.watched, self.final)):
            source = self._source(split)
            if source.array() is None and not getattr(source, "drawn", False):
                yield from refusals(self.indices(split), source.image, f"checking {split} pictures")
        yield from self.labelled.look_through()

    def _has_captions(self, split: str) -> bool:
        """Whether any picture of a split has one."""
        if split not in self._captioned:
            source = self._source(split)
            self._captioned[split] = any(source.captions(int(i)) for i in self.indices(split))
        return self._captioned[split]

    def _check_captions(self) -> None:
        if self.config.captions and not self._has_captions("train"):
            raise UserError(
                "no training picture has a caption; write task.captions: false, and losses that need none"
            )

    def say_truncated(self, split: str) -> None:
        """A line where captions of a split are longer than the model reads."""
        if self._has_captions(split):
            indices, source = self.indices(split), self._source(split)
            some = permutation(len(indices), self.config.split_seed)[:_LOOKED_AT]
            captions = [text for i in indices[some] for text in source.captions(int(i))]
            say_truncated(captions, self._tokenizer(), "training" if split == "train" else split)

    def _tokenizer(self) -> Tokenizer:
        if self.preprocessing.text is None:
            raise UserError(
                "this model does not say how its texts are read; the task image_text needs one that does, "
                "such as a model of open_clip (a Hugging Face CLIP can be its teacher)"
            )
        return self.preprocessing.text

    @cached_property
    def _chosen(self) -> tuple[Indices, Indices]:
        """(trained on, held out)"""
        return trained_and_held_out(len(self._source("train")), self.config)

    def _source(self, split: str) -> PairSource:
        found: PairSource = source_of(split, self.config.data, self._sources)
        return found
