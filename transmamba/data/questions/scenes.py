"""Questions over drawn scenes, made when asked for: without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from PIL import Image

from ...config.load import Part
from ...config.registry import PAIRS, QUESTIONS
from ...errors import UserError
from ..images.source import check_split
from ..pairs.scene_tiles import Tiles, stock
from ..scenes.draw import render
from ..scenes.programs import MOST_OBJECTS, Scene
from ..scenes.questions import TYPES, SceneQuestions
from ..scenes.stock import Stock
from .source import Item, QuestionSource


@QUESTIONS.register("scenes")
@dataclass(frozen=True, kw_only=True)
class QuestionsOfScenes:
    """Questions over scenes of one to twelve coloured shapes, each a function of (seed, split, number), with
    the reasons of their answers. Their words say nothing about the answer.

    side:        pixels a side
    count_train, count_test: questions of the splits, each with a picture of its own
    split_train, split_test: which of the scenes' own splits: train, val, test, or what training never sees:
        unseen_pairs, unseen_objects, unseen_style, unseen_templates, swapped_relations
    types:       what is asked, each as likely: count, exist, colour, shape, size, extreme, compare, relation
    seed:        of the drawing
    photographs: a pair reader of pictures that lie behind the objects of a third of the scenes
    fewest:      objects of a scene at the least, from 1
    most:        objects of a scene at the most, 2 to 12, each number between as likely; but `size` is asked
        of up to 6, the largest and smallest of up to 4, where `fewest` allows so few
    """

    side: int = 64
    count_train: int = 100_000
    count_test: int = 2_000
    split_train: str = "train"
    split_test: str = "test"
    types: tuple[str, ...] = tuple(TYPES)
    seed: int = 0
    photographs: Annotated[Any, Part(PAIRS)] | None = None
    fewest: int = 1
    most: int = MOST_OBJECTS

    def __post_init__(self) -> None:
        if self.split_train == self.split_test:
            raise UserError(
                f"split_train and split_test are both {self.split_train!r}, so that the test questions would "
                "be seen in training; write another"
            )
        for split in ("train", "test"):
            self._questions(split, Stock())

    def build(self, split: str) -> QuestionSource:
        """Raises UserError for a side that cannot be drawn, and as the reader of photographs does."""
        check_split(split)
        questions = self._questions(split, stock(Tiles(), self.photographs, getattr(self, f"split_{split}")))
        questions.picture(0)
        return DrawnQuestions(questions)

    def _questions(self, split: str, behind: Stock) -> SceneQuestions:
        own = {name: getattr(self, f"{name}_{split}") for name in ("split", "count")}
        own |= {name: getattr(self, name) for name in ("side", "seed", "types", "fewest", "most")}
        return SceneQuestions(**own, stock=behind)


@dataclass(frozen=True)
class DrawnPicture:
    """A `Picture` that is drawn when it is asked for."""

    scene: Scene
    side: int
    stock: Stock

    def image(self) -> Image.Image:
        return Image.fromarray(render(self.scene, self.side, self.stock))


@dataclass(frozen=True)
class DrawnQuestions:
    """A `QuestionSource`.

    drawn: its pictures lie in no file that may be damaged
    """

    questions: SceneQuestions
    skipped: int = 0
    drawn: bool = True

    def __len__(self) -> int:
        return len(self.questions)

    def item(self, index: int) -> Item:
        asked = self.questions.question(index)
        return Item(
            question=asked.text,
            answers=(asked.answer,),
            choices=asked.choices,
            type=asked.type,
            rationale=asked.rationale,
            pictures=(DrawnPicture(asked.scene, self.questions.side, self.questions.stock),),
        )

    def twin(self, index: int) -> int | None:
        return self.questions.twin(index)
