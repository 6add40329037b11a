"""What every reader of questions returns: items by number, each a question with what it is asked of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from ...core.text import Message
from ..pairs.source import need_a_split, of_split
from ..staged import Rationale

__all__ = ["MARK", "Item", "Picture", "QuestionSource", "need_a_split", "of_split"]

# where a picture stands in a text; without one, pictures stand before all that is said
MARK = "<image>"


class Picture(Protocol):
    """A picture that is not decoded yet. Picklable. Within a source it equals another that has the same
    name, or is drawn of the same scene, which is asked without decoding."""

    def image(self) -> Image.Image:
        """As stored, upright. Raises UserError naming it when it does not decode."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question, what it is asked of, and what is known of its answer.

    question:  what the user says, with a MARK for each of `pictures`, or without any
    answers:   what is right: one, several that are all right, or those of ten people, who may disagree
    choices:   what there is to choose from, one of them the answer; nothing where the question is open
    type:      which kind of question it is, as its data set says; empty where that says nothing
    rationale: why the answer is right, where that is known
    earlier:   what was said before, the user's turns and the assistant's, of which marks count with those of
               `question`
    pictures:  none, one or several, decoded when asked for
    """

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    type: str = ""
    rationale: Rationale | None = None
    earlier: tuple[Message, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def images(self) -> list[Image.Image]:
        """All pictures. Raises UserError naming one that does not decode."""
        return [picture.image() for picture in self.pictures]


class QuestionSource(Protocol):
    """One split of a data set of questions. Its order never changes: an item's number identifies it across
    runs.

    skipped: how many questions were left out when the split was read, for a reason that its reader has said

    A source with twins, items of one question whose pictures make its answers opposite, may say by
    `twin(index)` which is whose.
    """

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Without decoding anything. Raises IndexError beyond the last one."""
