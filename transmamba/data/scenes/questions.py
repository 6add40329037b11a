"""Questions over drawn scenes, each a function of (seed, split, number), with the reasons of their answers.

    questions = SceneQuestions(split="train", count=100_000, side=64)
    questions.question(7), questions.picture(7)

A question's words are drawn before its answer, and its answer evenly before its scene, so that whoever reads
the question alone is at chance at best: of 10,000 questions of the test split, a table of 10,000 training
questions answers 28.0 %, and chance, one in as many answers as were as likely, is 31.1 % (docs/vqa.md has the
commands, and the figures by type).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...errors import UserError, suggest
from ..hashing import Draws
from ..staged import Rationale
from . import asking_one, asking_two
from .asking import Cast, Posed, shuffled
from .captions import ground_name, listing
from .draw import render
from .menus import is_held
from .programs import MOST_OBJECTS, MOST_THAT_FIT, OPPOSITES, Pair, Scene
from .question_words import HELD_WORDINGS, WORDINGS
from .sampling import Groups, choose, draw_ground
from .splits import Numbered

# what is asked, and in which forms, each as likely
TYPES: Mapping[str, tuple[Callable[[Draws, Cast], Posed], ...]] = {
    "count": (asking_one.count,),
    "exist": (asking_one.exist,),
    "colour": (asking_one.colour,),
    "shape": (asking_one.shape,),
    "size": (asking_one.size,),
    "extreme": (asking_one.extreme,),
    "compare": (asking_two.more, asking_two.as_many, asking_two.which_more, asking_two.larger),
    "relation": (asking_two.relation, asking_two.direction),
}
CHOICES = 4  # of a multiple choice; a quarter of what has more answers is asked so
_QUESTIONS = 4  # a stream of random numbers; those of scenes and clips are in `splits`


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene.

    type:    of TYPES; form: of WORDINGS, how it is put
    text:    the question; choices: what there is to choose from, in the order shown; nothing in most
    options: the answers that were as likely: who does not see the picture is right of one in so many
    """

    type: str
    form: str
    text: str
    answer: str
    choices: tuple[str, ...]
    options: tuple[str, ...]
    scene: Scene
    rationale: Rationale


@dataclass(frozen=True, kw_only=True)
class SceneQuestions(Numbered):
    """Questions, each with a picture of its own.

    split: as of Scenes: unseen_pairs, unseen_objects and unseen_style ask about what training never shows,
        unseen_templates in wordings that it never uses. In swapped_relations the questions 2 k and 2 k + 1
        are the same one, whether of two kinds one lies so to the other of whom training never asks or states
        that; in one of their pictures the two have changed places, so that the answers are opposite
    count, side, seed: as of Scenes
    stock: with photographs behind scenes; objects are drawn shapes
    types: those that are asked, each as likely
    fewest, most: objects of a scene, 1 to 12, each number as likely; but `size` is asked of up to 6, the
        largest and smallest of up to 4, where `fewest` allows so few
    """

    types: tuple[str, ...] = tuple(TYPES)
    fewest: int = 1
    most: int = MOST_OBJECTS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.types:
            if name not in TYPES:
                raise UserError(f"type of questions {name!r} is unknown{suggest(name, TYPES)}")
        if not self.types:
            raise UserError(f"types is empty; write some of {', '.join(TYPES)}")
        self._check_numbers()
        if self.split == "swapped_relations" and "relation" not in self.types:
            raise UserError("split 'swapped_relations' asks for relations alone; write relation among types")
        if self.stock.kinds:
            raise UserError("questions are asked of drawn shapes; leave the stock's tiles out")

    def _check_numbers(self) -> None:
        """Raises UserError for numbers of objects that no scene can have, or too few to compare."""
        if self.fewest < 1:
            raise UserError(f"fewest {self.fewest}: write how many objects a scene has at least, from 1")
        if not 2 <= self.most <= MOST_THAT_FIT:
            raise UserError(
                f"most {self.most}: write 2, to be compared, to {MOST_THAT_FIT}, that fit where each has at "
                "least a tenth of the side"
            )
        if self.fewest > self.most:
            raise UserError(
                f"fewest {self.fewest} is above most {self.most}; write no more, or a larger most, up to "
                f"{MOST_THAT_FIT}"
            )

    def question(self, index: int) -> SceneQuestion:
        """Raises IndexError beyond the last one."""
        draws, menu = self._draws(_QUESTIONS, index), self._menu
        swaps = self.split == "swapped_relations"
        kind = "relation" if swaps else choose(draws, self.types)
        forms = (asking_two.relation,) if swaps else TYPES[kind]
        cast = self._twins if self._is_twin(index) else self._cast
        posed = choose(draws, forms)(draws, cast)
        wordings = HELD_WORDINGS if self.split == "unseen_templates" else WORDINGS
        text = choose(draws, wordings[posed.form]).format(**posed.slots)
        choices = _choices(draws, posed)
        style, ground = choose(draws, menu.styles), draw_ground(draws, menu.grounds)
        scene = Scene(shuffled(draws, posed.objects), ground, style)
        rationale = Rationale(
            summary=posed.summary,
            caption=f"the picture shows {listing(scene.objects)} on {ground_name(scene)}.",
            reasoning=posed.reasoning,
        )
        options = choices or posed.options
        return SceneQuestion(kind, posed.form, text, posed.answer, choices, options, scene, rationale)

    def picture(self, index: int, side: int | None = None) -> npt.NDArray[np.uint8]:
        """(side, side, 3) uint8 RGB. Raises UserError for a side that cannot be drawn."""
        return render(self.question(index).scene, self.side if side is None else side, self.stock)

    @cached_property
    def _cast(self) -> Cast:
        everyone = _flat(self._menu.groups)
        states = _is_contested if self.split == "swapped_relations" else _is_asked
        subjects = _flat(self._menu.first) or everyone
        return Cast(subjects, everyone, states, fewest=self.fewest, most=self.most)

    @cached_property
    def _twins(self) -> Cast:
        return replace(self._cast, twin=True)


def _choices(draws: Draws, posed: Posed) -> tuple[str, ...]:
    """The answer among others that were as likely, in any order; nothing for what is not asked so."""
    if len(posed.options) <= CHOICES or draws.below(4):
        return ()
    others = shuffled(draws, [option for option in posed.options if option != posed.answer])
    return shuffled(draws, (posed.answer, *others[: CHOICES - 1]))


def _flat(groups: Groups) -> tuple[Pair, ...]:
    return tuple(pair for group in groups for pair in group)


def _is_contested(kind: str, relation: str, other: str) -> bool:
    """Whether training never says it of these two, or never says the opposite: it could only be asked with
    one answer."""
    return is_held(kind, relation, other) or is_held(kind, OPPOSITES[relation], other)


def _is_asked(kind: str, relation: str, other: str) -> bool:
    return not _is_contested(kind, relation, other)
