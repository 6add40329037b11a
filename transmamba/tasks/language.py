"""Texts and conversations for language models: any text reader, the model's own tokenizer, packed blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..config.load import Part
from ..config.registry import BENCHMARKS, GENERATED, TASKS, TEXTS
from ..core.batch import Batch
from ..core.task import Evaluator, Metric, Pass, Steps
from ..core.text import LanguageTokenizer, TextOnly
from ..data.hashing import permutation
from ..data.stream import in_order, load, train_stream
from ..data.subset import check_fraction, check_held_out, held_out_of, trained_and_held_out
from ..data.text.batches import EvalText, TrainText
from ..data.text.blocks import Blocks, Packed, Padded
from ..data.text.cache import tokenised
from ..data.text.tokenised import Tokenised
from ..errors import UserError, refuse_all
from .benchmarks import Benchmarks, names_twice
from .generated import check_names, evaluators_of
from .vocabulary import check_words

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Further texts, mixed into every epoch.

    data:  a reader of texts, whose train split is taken
    share: of an epoch's blocks that come from it, above 0 and below 1. It is gone through in an order of its
        own, over epochs where it is larger, several times where it is smaller
    """

    data: Annotated[Any, Part(TEXTS)]
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share is {self.share}; write a share of the blocks, above 0 and below 1")


@TASKS.register("language")
@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Texts of `data`, tokenised once, in blocks of one length. Documents of a block do not see each other.

    data:          a reader of texts
    mixed:         further ones, each with its share of the blocks, such as what a teacher has written
    block:         tokens of a row, at most those that the teacher reads
    packed:        documents follow each other, and go on in the next block; else each has rows of its own,
        filled up with padding
    answers_only:  of conversations, what the assistant says is learned and measured, else prompts as well
    fraction:      share of the training documents that is used
    fraction_seed: which documents that share takes; with one seed, a smaller share lies within a larger one
    validation:    share of the training documents held out as evaluation split `validation`, instead of
        `test`
    final_split:   what results.json is measured on, once: by default the split that training is watched on
    split_seed:    which documents the validation split takes
    generated:     benchmarks that are answered in writing, measured with the final split
    cache:         the folder where the tokens are kept; ~/.cache/transmamba/tokens if left out
    benchmarks:    what else models are measured on with the final split, no two of one name: questions
        answered by likelihood, and what is recalled of a long context (`transmamba list benchmarks`). Not
        while training, if that is watched on another split: `validation: 0.01` with `final_split: test`
    """

    data: Annotated[Any, Part(TEXTS)]
    mixed: tuple[Mixed, ...] = ()
    block: int = 1024
    packed: bool = True
    answers_only: bool = True
    fraction: float = 1.0
    fraction_seed: int = 0
    validation: float = 0.0
    final_split: Literal["validation", "test"] | None = None
    split_seed: int = 0
    generated: tuple[Annotated[Any, Part(GENERATED)], ...] = ()
    cache: str | None = None
    benchmarks: tuple[Annotated[Any, Part(BENCHMARKS)], ...] = ()

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        check_held_out(self.validation, self.final_split)
        problems = [] if self.block >= 2 else [f"block is {self.block}; write at least 2 tokens"]
        if (shares := sum(each.share for each in self.mixed)) >= 1:
            problems.append(
                f"mixed has shares of {shares:g} together; write less than 1, for data is the rest"
            )
        refuse_all([*problems, *names_twice(self.benchmarks), *check_names(self.generated)])

    def build(self, preprocessing: Any) -> Language:
        """Raises UserError for a model that says no tokenizer, for blocks longer than it reads, and as
        benchmarks and the reader of what is measured do; as that of what is trained on does when it is asked
        for."""
        return Language(self, preprocessing)

    def build_training(self, preprocessing: Any) -> Language:
        """The same without evaluation splits."""
        return Language(self, preprocessing, measured=False)


class Language:
    """The data of one run, as one model sees them. A `core.task.Task`.

    preprocessing: the model's
    watched:       'validation' if a share of the training data is held out, 'test' otherwise
    final:         the split that the finished model is measured on
    measured:      whether it will be: else its evaluation splits are not opened
    """

    num_classes = None
    inputs = ("text",)
    targets = ("tokens",)

    def __init__(self, config: LanguageConfig, preprocessing: Any, measured: bool = True) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.tokenizer = _tokenizer(preprocessing)
        _check_context(config.block, self.tokenizer.context, "the model")
        self.watched = "validation" if config.validation else "test"
        self.final = config.final_split or self.watched
        self._texts: dict[str, Tokenised] = {}
        for split in dict.fromkeys((self.watched, self.final)) if measured else ():
            self.blocks(split)  # so that what is wrong with it is known before training, not after
        self.benchmarks = Benchmarks(config.benchmarks, self.tokenizer)
        self._generated = evaluators_of(config.generated, self.tokenizer)

    @property
    def num_train(self) -> int:
        return sum(self._parts[1])

    @cached_property
    def row_tokens(self) -> int:
        """Of a row on average, padding left out."""
        blocks = self.blocks("train")
        return blocks.block if not blocks.padded else max(1, round(blocks.total / len(blocks)))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        splits = dict.fromkeys((self.watched, self.final))
        every = [metric for split in splits for each in self.evaluators(split) for metric in each.metrics]
        return tuple({metric.key: metric for metric in every}.values())

    def check(self, model: Any, who: str) -> None:
        """Raises UserError for one that predicts no tokens, or whose vocabulary, tokenizer or context is not
        that of the data."""
        check_words(model, who, "language", "a causal language model", self.tokenizer)
        looks = getattr(model, "preprocessing", None)
        if isinstance(looks, TextOnly):
            _check_context(self.config.block, looks.text.context, who)

    def documents(self, split: str) -> Indices:
        """Numbers of the documents of 'train' (those trained on), 'validation' or 'test' in their file."""
        if split == "train":
            return self._chosen[0]
        if split == "validation":
            return held_out_of(self._chosen[1] if self.config.validation else ())
        return np.arange(len(self._text(split)), dtype=np.int64)

    def blocks(self, split: str) -> Blocks:
        """Those of a split; of 'train' without what is mixed in."""
        return self._blocks(self._text(split), self.documents(split))

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """A rank's micro-batches, from step `start_step` on."""
        blocks, counts = self._parts
        source = TrainText(blocks, counts, steps.seed, self.config.packed)
        return train_stream(source, self.num_train, steps)

    def eval_batches(self, split: str, passing: Pass) -> Iterator[Batch]:
        """Blocks `[rank::world]` of a split in order, each once."""
        blocks = self.blocks(split)
        parts = in_order(np.arange(len(blocks)), passing.batch_size, passing.rank, passing.world)
        source = EvalText(blocks, self.config.packed)
        return load(source, parts, passing.batch_size, workers=passing.workers)

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed random choice of training blocks (all if there are fewer)."""
        return self.drawn("train", samples, batch_size)

    def drawn(self, split: str, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed random choice of a split's blocks (all if there are fewer)."""
        blocks = self.blocks(split)
        chosen = permutation(len(blocks), self.config.split_seed)[:samples]
        return load(EvalText(blocks, self.config.packed), in_order(chosen, batch_size), batch_size)

    def change(self, batch: Batch, seed: int) -> Batch:
        return batch

    def evaluators(self, split: str) -> tuple[Evaluator, ...]:
        """Of the texts; with the final split, of the benchmarks too."""
        from ..evaluation.language import LanguageEvaluator

        self.documents(split)  # refuses a split that there is not
        own = LanguageEvaluator(split, partial(self.eval_batches, split), partial(self.shown, split))
        return (own, *self.benchmarks.evaluators, *self._generated) if split == self.final else (own,)

    def shown(self, split: str, block: int) -> str:
        """A block's text, to look at."""
        batch = EvalText(self.blocks(split), self.config.packed).batch(np.array([block]))
        real = batch.inputs.get("text_mask", torch.ones_like(batch.inputs["text"], dtype=torch.bool))
        return self.tokenizer.decode(batch.inputs["text"][real].tolist())

    def look_through(self) -> Iterator[str]:
        """Nothing: all was read when it was tokenised."""
        return iter(())

    @cached_property
    def _parts(self) -> tuple[list[Blocks], list[int]]:
        """What is trained on, and how many blocks of each an epoch has."""
        config, blocks = self.config, [self.blocks("train")]
        rest = 1 - sum(each.share for each in config.mixed)
        for number, each in enumerate(config.mixed):
            try:
                texts = tokenised(each.data.build("train"), self.tokenizer, config.cache)
            except UserError as error:
                raise UserError(f"mixed.{number}: {error}") from error
            blocks.append(self._blocks(texts, np.arange(len(texts), dtype=np.int64)))
        shares = [each.share / rest for each in config.mixed]
        return blocks, [len(blocks[0]), *(max(1, round(len(blocks[0]) * share)) for share in shares)]

    def _blocks(self, texts: Tokenised, documents: Indices) -> Blocks:
        kind = Packed if self.config.packed else Padded
        return kind(texts, documents, self.config.block, self.config.answers_only)

    @cached_property
    def _chosen(self) -> tuple[Indices, Indices]:
        """(trained on, held out)"""
        count = len(self._text("train"))
        if self.config.validation and count < 2:
            raise UserError("validation: the training data are one document; leave it out, or split it")
        return trained_and_held_out(count, self.config)

    def _text(self, split: str) -> Tokenised:
        if split not in ("train", "validation", "test"):
            raise UserError(f"split {split!r}: write train, validation or test")
        own = "test" if split == "test" else "train"
        if own not in self._texts:
            self._texts[own] = tokenised(self.config.data.build(own), self.tokenizer, self.config.cache)
        return self._texts[own]


def _tokenizer(preprocessing: Any) -> LanguageTokenizer:
    if isinstance(preprocessing, TextOnly):
        return preprocessing.text
    raise UserError(
        "this model does not say how its texts are read; the task language needs a causal language model "
        "with its tokenizer beside it (tokenizer.json), or in its GGUF file"
    )


def _check_context(block: int, context: int | None, who: str) -> None:
    if context is not None and block > context:
        raise UserError(
            f"block is {block} tokens, but {who} reads at most {context} at once (its context); write "
            f"task.block: {context} or less"
        )
