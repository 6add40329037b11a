"""Questions about pictures: any reader of questions, a model's own pictures and words, answers learned and
judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from ..config.load import Part
from ..config.registry import QUESTIONS, TASKS
from ..core.batch import Batch
from ..core.task import Evaluator, Metric, Pass, Steps
from ..data.hashing import permutation
from ..data.images.decoding import refusals
from ..data.pairs.bad import check_limit
from ..data.questions.asked import Style
from ..data.questions.bad import ForgivingQuestions
from ..data.questions.batches import EvalQuestions, TrainQuestions
from ..data.questions.source import QuestionSource
from ..data.stream import in_order, load, train_stream
from ..data.subset import check_fraction, check_held_out, held_out_of, trained_and_held_out
from ..errors import refuse_all
from .question_fit import asking_of, check_askable, check_fits, explained, usable
from .splits import open_first, source_of

if TYPE_CHECKING:
    from .question_evaluators import QuestionEvaluators

Indices = npt.NDArray[np.int64]
Control = Literal["question", "picture", "blank"]

# what asks for stages where nothing else is written
STAGED = "Answer in stages: a summary, a caption of the picture, the reasoning, the conclusion."
# tokens of an answer at most, and of one in stages
_SHORT, _STAGES = 16, 384


@TASKS.register("questions")
@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """Questions of `data`, each with none, one or several pictures. The last answer of an item is learned,
    all before it is read; measured is what a model writes, judged as docs/vqa.md says.

    data:          a reader of questions
    fraction:      share of the training questions that is used
    fraction_seed: which questions that share takes; with one seed, a smaller share lies within a larger one
    validation:    share of the training questions held out as evaluation split `validation`, instead of
        `test`
    final_split:   what results.json is measured on, once: by default the split that training is watched on
    split_seed:    which questions the validation split takes, and which are asked while training
    rationales:    learn, and ask for, the reasons before the answer (LLaVA-CoT's stages), not the answer
        alone. Questions that have none are asked all the same, where they are measured: how likely a right
        answer is, is then known of those alone that have one
    pictures:      `shown`, or `none`: questions alone, for a baseline that sees nothing
    choices:       of a multiple choice the `letters` are learned, or the `words`; both are listed
    instruction:   a line behind every question, such as "Answer the question using a single word or phrase.";
        left out: nothing, or with `rationales` what asks for stages
    context:       tokens of a question with its pictures and answer at most; the model's own if left out.
        Training questions beyond it count as bad, others are refused by name
    answer_tokens: of an answer in writing at most; 16 if left out, with `rationales` 384
    writing:       when models write answers: `always`, with the `final` split alone, `never`. Else how likely
        the right answers are is all that is measured. A student whose weights are sharded over processes
        (FSDP2, ZeRO-3) does not write before its last stage is over
    bad_limit:     how many training questions may be unusable (a picture that does not decode, too many
        tokens, no rationale to learn), a share or a number: another takes the place of each
    watched_questions: how many are asked at each evaluation while training, if the watched split is not the
        final one, of which all are
    controls:      with the final split, ask again with the `question` of another item of the same type, the
        `picture` of another, or a `blank` one: what is answered rightly all the same, no picture told. Each
        takes as long as the answers themselves
    lookup:        of how many training questions an answerer without pictures knows the answers, which is
        measured beside the models; 0 for none
    """

    data: Annotated[Any, Part(QUESTIONS)]
    fraction: float = 1.0
    fraction_seed: int = 0
    validation: float = 0.0
    final_split: Literal["validation", "test"] | None = None
    split_seed: int = 0
    rationales: bool = False
    pictures: Literal["shown", "none"] = "shown"
    choices: Literal["letters", "words"] = "letters"
    instruction: str | None = None
    context: int | None = None
    answer_tokens: int | None = None
    writing: Literal["always", "final", "never"] = "always"
    bad_limit: float | int = 0.01
    watched_questions: int = 256
    controls: tuple[Control, ...] = ("question", "picture")
    lookup: int = 10_000

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        check_limit(self.bad_limit)
        check_held_out(self.validation, self.final_split)
        least = {"context": 2, "answer_tokens": 1, "watched_questions": 1, "lookup": 0}
        values = {name: getattr(self, name) for name in least}
        problems = [
            f"{name} is {value}; write at least {least[name]}"
            for name, value in values.items()
            if value is not None and value < least[name]
        ]
        if twice := sorted({each for each in self.controls if self.controls.count(each) > 1}):
            problems.append(f"controls has {', '.join(twice)} twice; write each once")
        watched = "validation" if self.validation else "test"
        if self.writing == "final" and self.final_split in (None, watched):
            problems.append(
                f"writing is final, but the final split, {watched}, is watched while training too; write "
                "validation: 0.01 with final_split: test, or writing: never"
            )
        refuse_all(problems)

    @property
    def room(self) -> int:
        """Tokens of an answer at most."""
        usual = _STAGES if self.rationales else _SHORT
        return usual if self.answer_tokens is None else self.answer_tokens

    @property
    def style(self) -> Style:
        instruction = self.instruction
        if instruction is None:
            instruction = STAGED if self.rationales else ""
        shown = self.pictures == "shown"
        return Style(
            choices=self.choices, instruction=instruction, rationales=self.rationales, pictures=shown
        )

    def build(self, preprocessing: Any) -> Questions:
        """Raises UserError for a model that says no tokenizer, or no pictures where they are shown, and as
        the reader does; of the training data when they are asked for, where a model is evaluated without."""
        return Questions(self, preprocessing)

    def build_training(self, preprocessing: Any) -> Questions:
        """The same without evaluation splits; the training data must be there."""
        return Questions(self, preprocessing, measured=False)


class Questions:
    """The data of one run, as one model sees them. A `core.task.Task`.

    preprocessing: the model's
    watched:       'validation' if a share of the training data is held out, 'test' otherwise
    final:         the split that the finished model is measured on
    measured:      whether it will be: else its evaluation splits are not opened
    asking:        how items are put to the model
    """

    num_classes = None
    targets = ("tokens",)

    def __init__(self, config: QuestionsConfig, preprocessing: Any, measured: bool = True) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.asking = asking_of(preprocessing, config.style, config.context)
        self.watched = "validation" if config.validation else "test"
        self.final = config.final_split or self.watched
        self._sources: dict[str, QuestionSource] = {}
        self._with_reasons: dict[str, Indices] = {}
        open_first(self.source, config, (self.watched, self.final), measured)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What training batches have for towers to read."""
        return ("image", "text") if self.asking.style.pictures else ("text",)

    @property
    def train_indices(self) -> Indices:
        return self._chosen[0]

    @property
    def num_train(self) -> int:
        return len(self.train_indices)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        splits = dict.fromkeys((self.watched, self.final))
        every = [metric for split in splits for each in self.evaluators(split) for metric in each.metrics]
        return tuple({metric.key: metric for metric in every}.values())

    def check(self, model: Any, who: str) -> None:
        """Raises UserError for one that predicts no tokens, or whose words, pictures or context are not those
        of the data."""
        check_fits(model, who, self.asking)

    def check_apart(self, model: Any, who: str) -> None:
        """The same of one that reads batches of its own: it may read fewer tokens of a picture, or more."""
        check_fits(model, who, self.asking, apart=True)

    def indices(self, split: str) -> Indices:
        """Numbers of the questions of 'train' (those trained on), 'validation' or 'test' in their source."""
        if split == "train":
            return self.train_indices
        if split == "validation":
            return held_out_of(self._chosen[1] if self.config.validation else ())
        return np.arange(len(self.source(split)), dtype=np.int64)

    def asked(self, split: str) -> Indices:
        """Those that are measured, ascending: all of the final split, of another a fixed random choice."""
        every = self.indices(split)
        if split == self.final:
            return every
        return np.sort(
            every[permutation(len(every), self.config.split_seed)[: self.config.watched_questions]]
        )

    def likely(self, split: str) -> Indices:
        """Those of them of which it is measured how likely their answer is, as it is to be written: with
        `rationales`, those that have one."""
        index = self.asked(split)
        if self.asking.style.rationales and split not in self._with_reasons:
            self._with_reasons[split] = explained(self.source(split), index)
        return self._with_reasons.get(split, index)

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """A rank's micro-batches, from step `start_step` on."""
        return train_stream(self.train_source(steps.seed), self.num_train, steps)

    def train_source(self, seed: int) -> TrainQuestions:
        """What makes a batch of (epoch, position) pairs; nothing is drawn for them."""
        source = ForgivingQuestions(
            self.source("train"),
            self.config.bad_limit,
            self.train_indices,
            partial(usable, self.asking),
            seen=self.asking.style.pictures,
        )
        return TrainQuestions(source, self.train_indices, self.asking)

    def eval_batches(self, split: str, passing: Pass) -> Iterator[Batch]:
        """Questions `likely(split)[rank::world]` with their answers, in order, each once."""
        parts = in_order(self.likely(split), passing.batch_size, passing.rank, passing.world)
        source = EvalQuestions(self.source(split), self.asking)
        return load(source, parts, passing.batch_size, workers=passing.workers)

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed random choice of training questions (all if there are fewer)."""
        chosen = permutation(self.num_train, self.config.split_seed)[:samples]
        pairs = [np.stack([np.zeros_like(part), part], axis=1) for part in in_order(chosen, batch_size)]
        return load(self.train_source(0), pairs, batch_size)

    def drawn(self, split: str, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed random choice of a split's questions with their answers (all if there are fewer)."""
        if split == "train":  # of which bad ones are replaced
            return self.calibration(samples, batch_size)
        every, source = self.indices(split), self.source(split)
        chosen = every[permutation(len(every), self.config.split_seed)]
        if self.asking.style.rationales:
            chosen = explained(source, chosen, samples)
        return load(EvalQuestions(source, self.asking), in_order(chosen[:samples], batch_size), batch_size)

    def change(self, batch: Batch, seed: int) -> Batch:
        return batch

    def evaluators(self, split: str) -> tuple[Evaluator, ...]:
        """Of answers in writing, where they are asked for, of how likely the right ones are, and with the
        final split of controls."""
        self.indices(split)  # refuses a split that there is not
        final, when = split == self.final, self.config.writing
        writing = when == "always" or (when == "final" and final)
        return self._measured(split).all(controls=final) if writing else self._measured(split).unwritten

    def _measured(self, split: str) -> QuestionEvaluators:
        from .question_evaluators import QuestionEvaluators

        if split not in self._evaluators:
            self._evaluators[split] = QuestionEvaluators(self, split)
        return self._evaluators[split]

    @cached_property
    def _evaluators(self) -> dict[str, QuestionEvaluators]:
        return {}

    def look_through(self) -> Iterator[str]:
        """A line for each question of the evaluation splits that cannot be asked: a picture that does not
        decode, more tokens than are read."""
        for split in dict.fromkeys((self.watched, self.final)):
            look = partial(check_askable, self.asking, self.source(split), self.config.room)
            yield from refusals(self.asked(split), look, f"checking {split} questions")

    @cached_property
    def _chosen(self) -> tuple[Indices, Indices]:
        """(trained on, held out)"""
        return trained_and_held_out(len(self.source("train")), self.config)

    def source(self, split: str) -> QuestionSource:
        """What a split's questions are read from, whole."""
        found: QuestionSource = source_of(split, self.config.data, self._sources)
        return found
