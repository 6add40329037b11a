"""The model `transmamba` of lmms-eval: any model that writes about pictures, asked as `transmamba evaluate`
asks it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from ..core.preprocessing import PicturesAndText
from ..core.task import Pass
from ..core.text import TextOnly
from ..data.questions.asked import Asking, Style
from ..data.questions.batches import AskedQuestions
from ..data.questions.source import MARK, Item
from ..ecosystems.find import load_model
from ..errors import UserError
from ..evaluation.cost import autocast, find_device
from ..evaluation.requests import longest_first
from ..evaluation.run import ModelRunner
from ..teachers.teacher import Teacher
from .evaluate import as_run

# tokens of an answer where a task does not say
_ROOM = 1024
# what a task may ask of generation that is as if left out: the likeliest words alone are written
_PLAIN: dict[str, tuple[Any, ...]] = {
    "do_sample": (False, None),
    "temperature": (0, 0.0, None),
    "top_p": (None, 1, 1.0),
    "num_beams": (1, None),
}
_KNOWN = ("until", "max_new_tokens", *_PLAIN)


class Transmamba(lmms):
    """pretrained: a folder, a run or an id of a model that writes about pictures
    precision:  `no`, `bf16` or `fp16`, as of `transmamba evaluate`
    context:    tokens of a question and its answer at most; the model's own if left out
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        precision: str = "no",
        batch_size: int | str = 1,
        device: str | None = None,
        context: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size is {batch_size}; write a number of at least 1")
        target = find_device(device or None)
        model, looks = as_run(load_model(pretrained))
        if not isinstance(looks, TextOnly | PicturesAndText):
            raise UserError(f"{pretrained!r} does not write; choose a LLaVA or a language model")
        longest = context or looks.text.context
        if longest is None:
            raise UserError("nothing says how many tokens this model reads at once; write context=NUMBER")
        pictures = not isinstance(looks, TextOnly)
        self.asking = Asking(looks, Style(pictures=pictures), int(longest))
        kind: Literal["student", "teacher"] = "teacher" if isinstance(model, Teacher) else "student"
        context_of = functools.partial(autocast, target, precision)
        self.runner = ModelRunner(model.to(target), target, context_of, kind=kind)
        self.batch_size, self.device = int(batch_size), target

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in writing, in the order of the requests. Raises UserError for what is asked of generation
        that it would not do."""
        asked = [_Asked.of(request.args, self.task_dict) for request in requests]
        answers: list[str] = [""] * len(asked)
        for room in sorted({each.room for each in asked}):
            places = np.array([place for place, each in enumerate(asked) if each.room == room])
            self._write([asked[place] for place in places], places, room, answers)
        for answer, request in zip(answers, requests, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[1]), answer)
        return answers

    def _write(self, asked: Sequence[_Asked], places: Any, room: int, answers: list[str]) -> None:
        source, every = _Requests([each.item for each in asked]), np.arange(len(asked))
        batches = AskedQuestions(source, self.asking, room, every, every, every)
        lengths = np.array([len(self.asking.prompt(each.item, room)) for each in asked])
        with self.runner:
            for mine, _ in longest_first(lengths, Pass(batch_size=self.batch_size)):
                rows = self.runner.generate(batches.batch(mine), room).tolist()
                for place, row in zip(mine.tolist(), rows, strict=True):
                    said = self.asking.tokenizer.words(row)
                    answers[places[place]] = asked[place].ended(said)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError("the model transmamba answers in writing; choose tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError("the model transmamba answers one question at a time; choose tasks of one round")

    def clean(self) -> None:
        del self.runner
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Asked:
    """item: a request as a question; room: tokens of its answer; ends: what ends it, in words"""

    item: Item
    room: int
    ends: tuple[str, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], documents: Any) -> _Asked:
        text, said, visuals, number, task, split = args
        unknown = sorted(said.keys() - set(_KNOWN))
        other = [f"{key}: {said[key]}" for key, plain in _PLAIN.items() if said.get(key) not in plain]
        if unknown or other:
            raise UserError(
                f"task {task} asks for {', '.join([*unknown, *other])}, but the model transmamba writes the "
                "likeliest words; give --gen_kwargs that say so"
            )
        pictures = [_Loaded(each) for each in (visuals(documents[task][split][number]) or [])]
        until = said.get("until") or ()
        return cls(
            Item(question=_marked(text, len(pictures)), answers=("",), pictures=tuple(pictures)),
            int(said.get("max_new_tokens") or _ROOM),
            (until,) if isinstance(until, str) else tuple(until),
        )

    def ended(self, said: str) -> str:
        for end in filter(None, self.ends):
            said = said.partition(end)[0]
        return said.strip()


def _marked(text: str, pictures: int) -> str:
    """A text that marks its pictures keeps its marks; a number of them that is not theirs is no mark."""
    return text if text.count(MARK) in (0, pictures) else text.replace(MARK, "")


@dataclass(frozen=True)
class _Loaded:
    """A picture in hand, as `data.questions` has them."""

    made: Any

    def image(self) -> Image.Image:
        if not isinstance(self.made, Image.Image):
            raise UserError(f"the model transmamba reads pictures, not {type(self.made).__name__}")
        return self.made.convert("RGB")


@dataclass(frozen=True)
class _Requests:
    items: Sequence[Item]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        return self.items[index]
