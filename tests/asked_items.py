"""Questions about pictures of one grey, and what reads them, made in a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from small_llava import llava_tokenizer

from transmamba.core.preprocessing import PicturesAndText, Preprocessing
from transmamba.core.text import Message
from transmamba.data.questions.asked import Asking, Style
from transmamba.data.questions.source import Item
from transmamba.data.staged import Rationale
from transmamba.ecosystems.language_tokenizer import HuggingFaceTokenizer
from transmamba.errors import UserError

PLACES, SIDE = 3, 4
LOOKS = Preprocessing((3, SIDE, SIDE), (0.5,) * 3, (0.5,) * 3, "bilinear")
# what is said is a list of parts, as in LLaVA's own; nothing ends an answer but a space
PARTS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Grey:
    """A picture of one grey; below 0 one that does not decode."""

    level: int

    def image(self) -> Image.Image:
        if self.level < 0:
            raise UserError(f"picture {self.level} does not decode")
        return Image.new("RGB", (SIDE, SIDE), (self.level,) * 3)


@dataclass(frozen=True)
class Listed:
    """A `QuestionSource` of items in a list; twins are 2 k and 2 k + 1 where it has them."""

    items: Sequence[Item]
    twins: bool = False
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        return self.items[index]

    def twin(self, index: int) -> int | None:
        return index ^ 1 if self.twins and index ^ 1 < len(self) else None


def reading(folder: Path, context: int | None = None, **options: Any) -> PicturesAndText:
    number = llava_tokenizer(folder, **options)
    return PicturesAndText(LOOKS, HuggingFaceTokenizer(str(folder), context), number, PLACES)


def asking(
    folder: Path, longest: int = 400, *, options: dict[str, Any] | None = None, **style: Any
) -> Asking:
    return Asking(reading(folder, **(options or {})), Style(**style), longest)


def item(question: str = "one two?", answer: str = "cat", pictures: Sequence[int] = (), **more: Any) -> Item:
    return Item(question=question, answers=(answer,), pictures=tuple(map(Grey, pictures)), **more)


WHY = Rationale(summary="look", caption="a mat", reasoning="it sat")
EARLIER = (Message("user", "The mat?"), Message("assistant", "sat"))
# what is asked -> the texts before the answer as a model reads them, in turns; the answer
ITEMS: dict[str, tuple[Item, tuple[str, ...], str]] = {
    "one picture": (item(pictures=[9]), ("<image>\none two?",), "cat"),
    "no picture": (item(answer="the cat"), ("one two?",), "the cat"),
    "two, before all": (item(pictures=[1, 2]), ("<image>\n<image>\none two?",), "cat"),
    "two, where they are marked": (
        item("the <image> or the <image>?", pictures=[3, 4]),
        ("the <image> or the <image>?",),
        "cat",
    ),
    "what was said before": (
        item(pictures=[5], earlier=EARLIER),
        ("<image>\nThe mat?", "sat", "one two?"),
        "cat",
    ),
    "a choice": (
        item(answer="mat", choices=("cat", "mat"), pictures=[6]),
        ("<image>\none two?\nA. cat\nB. mat",),
        "B",
    ),
    "ten people": (
        Item(question="x?", answers=("no", "one", "two", "Two", "2", "one") + ("",) * 2),
        ("x?",),
        "two",
    ),
}
