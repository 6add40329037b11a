"""Questions with a picture that does not decode are replaced whole, counted and limited."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from PIL import Image

from transmamba.data.questions.bad import ForgivingQuestions
from transmamba.data.questions.source import Item
from transmamba.errors import UserError


@dataclass(frozen=True)
class Numbered:
    """A picture; that of `bad` does not decode."""

    number: int
    bad: frozenset[int]

    def image(self) -> Image.Image:
        if self.number in self.bad:
            raise UserError(f"picture {self.number}: does not decode as an image")
        return Image.new("L", (1, 1), self.number)


@dataclass(frozen=True)
class Questions:
    """Item n has n % 3 pictures, all of number n."""

    count: int
    bad: frozenset[int] = frozenset()
    skipped: int = 2

    def __len__(self) -> int:
        return self.count

    def item(self, index: int) -> Item:
        pictures = (Numbered(index, self.bad),) * (index % 3)
        return Item(question=f"question {index}?", answers=("yes",), pictures=pictures)


BAD = frozenset({1, 2, 10})  # 3 would be, but has no picture


def test_an_item_whose_picture_is_bad_is_another_one_whole(caplog: pytest.LogCaptureFixture) -> None:
    source = ForgivingQuestions(Questions(60, BAD | {3}), 0.1)
    found = [source.item(number) for number in range(60)]
    for number, item in enumerate(found):
        assert (item.question == f"question {number}?") == (number not in BAD)
        assert len(item.images()) == source.number(number) % 3
    assert source.bad == 3 and source.skipped == 2 and len(source) == 60
    again = ForgivingQuestions(Questions(60, BAD | {3}), 0.1)
    assert [again.item(number).question for number in BAD] == [found[number].question for number in BAD]
    assert "another question takes the place of one that is bad: picture 1" in caplog.text


def test_too_many_are_refused() -> None:
    source = ForgivingQuestions(Questions(60, BAD), 2)
    with pytest.raises(
        UserError, match=r"3 of 60 questions cannot be used \(picture 1: .*more than the limit 2"
    ):
        [source.item(number) for number in range(60)]
    with pytest.raises(UserError, match=r"limit of bad pictures 1\.5"):
        ForgivingQuestions(Questions(60), 1.5)
