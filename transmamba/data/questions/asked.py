"""How a question about pictures is put to a model, and what it is to answer: texts, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.preprocessing import PicturesAndText
from ...core.text import Message, TextOnly
from ...ecosystems.language_tokenizer import HuggingFaceTokenizer
from ...errors import UserError
from ...evaluation.answers import LETTERS, main_answer
from .source import MARK, Item

# what a chat template's user says where a model has none (Vicuna's form, which LLaVA 1.5 was trained on)
_USER, _ASSISTANT = "USER", "ASSISTANT:"


@dataclass(frozen=True, kw_only=True)
class Style:
    """What is put to a model beside a question, and what it is to say.

    choices:     of a multiple choice the answer is its letter, or its words
    instruction: a line behind every question; nothing where it is empty
    rationales:  the answer is in stages, behind its reasons
    pictures:    whether they are shown; else their marks are taken out of the text
    """

    choices: Literal["letters", "words"] = "letters"
    instruction: str = ""
    rationales: bool = False
    pictures: bool = True


@dataclass(frozen=True)
class Asking:
    """Items as one model reads them. Frozen and picklable.

    reads:  its preprocessing; of a model without pictures a `TextOnly`
    longest: tokens of a prompt with its answer at most
    """

    reads: PicturesAndText | TextOnly
    style: Style
    longest: int

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        found = self.reads.text
        assert isinstance(found, HuggingFaceTokenizer), "the task has looked"
        return found

    @property
    def image_token(self) -> int:
        """-1, which no text holds, of a model that has none."""
        return self.reads.image_token if isinstance(self.reads, PicturesAndText) else -1

    @property
    def places(self) -> int:
        """Tokens of a picture; none of a model that has no tokens for them."""
        return self.reads.places if isinstance(self.reads, PicturesAndText) else 0

    def turns(self, item: Item) -> tuple[Message, ...]:
        """What is said before the answer, with the mark of a picture where one stands. Raises UserError for
        what cannot be asked."""
        turns = [*item.earlier, Message("user", _question(item, self.style.instruction))]
        marks = sum(turn.content.count(MARK) for turn in turns)
        if not item.question.replace(MARK, "").strip():
            raise UserError("it has no question")
        if not self.style.pictures:
            return tuple(Message(turn.role, turn.content.replace(MARK, "").strip()) for turn in turns)
        if not marks and item.pictures:
            first = next(k for k, turn in enumerate(turns) if turn.role == "user")
            turns[first] = Message("user", f"{MARK}\n" * len(item.pictures) + turns[first].content)
        return tuple(turns)

    def answer(self, item: Item) -> str:
        """What is learned: of several right answers the most frequent, of equals the first. Raises UserError
        for an item that has nothing to learn."""
        answer = main_answer(item.answers)
        if not answer.strip():
            raise UserError("its answer is empty")
        if item.choices and self.style.choices == "letters":
            answer = LETTERS[item.choices.index(answer)]
        if not self.style.rationales:
            return answer
        if item.rationale is None:
            raise UserError("it has no rationale to learn; write task.rationales: false, or leave it out")
        return item.rationale.written(answer)

    def prompt(self, item: Item, room: int = 0) -> list[int]:
        """Tokens up to where the answer begins, all of each picture's among them. Raises UserError where its
        marks are not as many as its pictures, and where it leaves no room for so many tokens more."""
        return self._fitting(self._shown(self._encoded(self._before(self.turns(item))), item), room)

    def example(self, item: Item) -> tuple[list[int], int]:
        """The same with the answer and the token that ends it, and how many of them are the prompt: that part
        is as without an answer, whatever that is. Raises UserError as `prompt` and `answer` do."""
        turns, answer = self.turns(item), self.answer(item).strip()
        before = self._before(turns)
        said = self._said(turns, before, answer)
        prompt, whole = self._encoded(before), self._encoded(before + said)
        # a tokenizer may join the end of a prompt with the beginning of what follows
        joined = whole[: len(prompt)] != prompt
        answered = self.tokenizer.encode([said])[0] if joined else whole[len(prompt) :]
        ends = [place for place, token in enumerate(answered) if token == self.tokenizer.eos]
        if said.endswith(answer):
            answered = [*answered, self.tokenizer.eos]
        elif ends:
            answered = answered[: ends[-1] + 1]
        if self.image_token in answered:
            raise UserError(f"its answer holds the mark of a picture: {answer[:60]!r}")
        shown = self._shown(prompt, item)
        return self._fitting([*shown, *answered], 0), len(shown)

    def _before(self, turns: tuple[Message, ...]) -> str:
        """The text up to where the answer begins."""
        turns = tuple(Message(turn.role, self._marked(turn.content)) for turn in turns)
        if self.tokenizer.chats:
            return self.tokenizer.render(turns, prompt=True)
        ends = self.tokenizer.decode([self.tokenizer.eos])
        said = ""
        for turn in turns:
            if turn.role == "assistant":
                said += f"{_ASSISTANT} {turn.content}{ends}"
            else:
                said += f"{_USER}: {turn.content} " if turn.role == "user" else f"{turn.content} "
        return said + _ASSISTANT

    def _said(self, turns: tuple[Message, ...], before: str, answer: str) -> str:
        """What the model writes behind that: the answer, and what ends it where the template says that."""
        if not self.tokenizer.chats:
            return f" {answer}"
        marked = [Message(turn.role, self._marked(turn.content)) for turn in turns]
        whole = self.tokenizer.render([*marked, Message("assistant", answer)])
        said = whole.removeprefix(before)
        place = said.rfind(answer)
        if not whole.startswith(before) or place < 0:
            raise UserError(
                f"chat template of {self.tokenizer.name!r}: a conversation does not begin with its prompt, "
                f"or its answer is written otherwise, so that nothing says which it is: {said[:60]!r}"
            )
        end = place + len(answer)
        return said if said[end:].strip() else said[:end]

    def _marked(self, text: str) -> str:
        """With the model's own mark of a picture."""
        if not self.style.pictures:
            return text
        return text.replace(MARK, self.tokenizer.decode([self.image_token]))

    def _encoded(self, text: str) -> list[int]:
        (ids,) = self.tokenizer.encode([text])
        prefix = [*self.tokenizer.prefix]
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]

    def _shown(self, ids: list[int], item: Item) -> list[int]:
        """With all tokens of each picture where its mark stands."""
        found, pictures = ids.count(self.image_token), len(item.pictures) if self.style.pictures else 0
        if found != pictures:
            raise UserError(
                f"its text has {found} {'mark' if found == 1 else 'marks'} of a picture, and there are "
                f"{pictures} pictures"
            )
        return [
            token for each in ids for token in ([each] * (self.places if each == self.image_token else 1))
        ]

    def _fitting(self, ids: list[int], room: int) -> list[int]:
        if len(ids) + room > self.longest:
            beside, needed = f" and its answer of {room}" if room else "", len(ids) + room
            context, left = self.tokenizer.context, self.longest - len(ids)
            instead = "choose a model that reads more"
            if context is None or needed <= context:
                instead = f"write task.context: {needed} or more"
            elif room and left > 0:
                instead = f"ask for an answer of at most {left} (task.answer_tokens, --tokens)"
            raise UserError(
                f"its {len(ids)} tokens{beside} are more than the {self.longest} that are read at once; "
                f"{instead}, or leave it out"
            )
        return ids


def _question(item: Item, instruction: str) -> str:
    """With what there is to choose from, a line each. Raises UserError for more choices than letters."""
    if len(item.choices) > len(LETTERS):
        raise UserError(f"it has {len(item.choices)} choices, more than there are letters")
    offered = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
    return "\n".join(filter(None, (item.question, *offered, instruction)))
