"""What a language model remembers of its context: a span that comes again, the value of a key, a needle.

Items are tokens of exactly the length that is asked for, and follow from (seed, index) alone. Those of one
index are alike at all lengths, but for how much stands around what is asked, and where.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...config.registry import BENCHMARKS
from ...core.text import LanguageTokenizer
from ...errors import UserError, refuse_all
from ..hashing import Draws, hash64
from .filler import Filler

_TOWNS = """
Amsterdam Athens Barcelona Berlin Bern Boston Brussels Budapest Cairo Chicago Dublin Geneva Hamburg Helsinki
Istanbul Lima Lisbon London Madrid Miami Milan Montreal Moscow Munich Naples Oslo Paris Prague Rome Seattle
Sofia Stockholm Sydney Tokyo Toronto Vienna Warsaw Zurich
"""
ADJECTIVES = """
amber ancient bright calm clever cold dark deep distant early empty famous fast gentle golden grand green
happy heavy hidden honest large lonely lucky narrow noble old patient plain polite proud quiet rapid rare red
rough round silent silver simple small smooth soft steady strong swift tall warm wild young
"""
NOUNS = """
anchor apple arrow basket beach bell bird boat bridge brush candle castle cloud coat corner dragon eagle field
flower forest garden glass hammer harbor island jacket kettle ladder lamp letter lion market meadow mirror
mountain needle orange paper pencil piano pocket river road rocket saddle shadow spoon stone table tower
"""
# it does not name the key: a model that continues what stood behind it the last time would go on from there
_WHICH_NUMBER = "\nQuestion: Which number does the list give for the following?\n\n"
# tokens of a line `key: value`, which no tokenizer makes fewer
_SHORTEST = 5
# tokens of a file that items are made of, however many they are
_POOL = 2**18
# all lengths of the item that a number draws
Make = Callable[[int], Iterator["Recalled"]]


@dataclass(frozen=True)
class Recalled:
    """ids:    token numbers, of which those from `start` on are to be recalled
    length: the one of the benchmark's that it was made for
    whole:  right only where all of them are, else by their share
    """

    ids: list[int]
    start: int
    length: int
    whole: bool = True


@dataclass(frozen=True, kw_only=True)
class _Recall:
    """lengths: of the items, in tokens, question and answer included
    items: so many at each length
    seed: which they are
    """

    lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    items: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.items < 1:
            problems.append(f"items is {self.items}; write how many at each length, at least 1")
        if not self.lengths or list(self.lengths) != sorted({*self.lengths}) or self.lengths[0] < 1:
            problems.append(f"lengths is {list(self.lengths)}; write numbers of tokens, the smallest first")
        refuse_all(problems)

    def build(self, tokenizer: LanguageTokenizer) -> list[Recalled]:
        """All lengths of the first item, then of the next. Raises UserError for lengths that a model does not
        read, or that hold too little."""
        most = tokenizer.context or self.lengths[-1]
        if long := [length for length in self.lengths if length > most]:
            fit = [length for length in self.lengths if length <= most]
            raise UserError(
                f"lengths has {', '.join(map(str, long))}, but the model reads at most {most} tokens at once "
                f"(its context); write lengths: {fit or [most]}"
            )
        made: list[Recalled] = []
        make = self._maker(tokenizer)
        for index in range(self.items):
            made += make(int(hash64(self.seed, index)[0]))
        return made

    def _maker(self, tokenizer: LanguageTokenizer) -> Make:
        raise NotImplementedError

    def _room(self, length: int, used: int, least: int) -> int:
        """Tokens that are left of a length. Raises UserError where they are fewer than `least`."""
        if length - used < least:
            raise UserError(f"lengths has {length}; write at least {used + least} tokens")
        return length - used

    def _filler(self, path: str, tokenizer: LanguageTokenizer) -> Filler:
        """Raises UserError for a file that would have to be written twice to fill a length."""
        filler = Filler.of(path, tokenizer, max(_POOL, self.lengths[-1]))
        if filler.tokens < self.lengths[-1]:
            raise UserError(
                f"{path}: has {filler.tokens} tokens, fewer than the longest of lengths "
                f"({self.lengths[-1]}); write another file"
            )
        return filler


@BENCHMARKS.register("repeated_span")
@dataclass(frozen=True, kw_only=True)
class RepeatedSpan(_Recall):
    """A stretch of text comes again after other text: which share of its tokens is the model's first?

    It stands in the first half of what comes before, and begins anywhere there.

    path: a file of texts (.txt, .jsonl.xz ...)
    lengths: of the items, in tokens, the second span included
    items: so many at each length
    seed: which they are
    span: tokens that come again
    cue: so many of them are not asked: they tell the model what has begun
    """

    path: str
    span: int = 32
    cue: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cue < self.span:
            raise UserError(f"cue is {self.cue} of a span of {self.span} tokens; write at least 1, and fewer")

    def _maker(self, tokenizer: LanguageTokenizer) -> Make:
        filler, prefix = self._filler(self.path, tokenizer), [*tokenizer.prefix]

        def make(seed: int) -> Iterator[Recalled]:
            for length in self.lengths:
                draws = Draws(seed)
                room = self._room(length, len(prefix) + self.span, 2 * self.span)
                text = joined(filler.before(draws.below(len(filler.lines)), room))
                at = draws.below(room // 2 - self.span + 1)
                again = text[at : at + self.span]
                yield Recalled([*prefix, *text, *again], length - self.span + self.cue, length, whole=False)

        return make


@BENCHMARKS.register("key_value")
@dataclass(frozen=True, kw_only=True)
class KeyValue(_Recall):
    """Lines of `key: value`, as many as fit, then a question: what stands behind one of the keys?

    lengths: of the items, in tokens, question and answer included
    items: so many at each length
    seed: which they are
    """

    def _maker(self, tokenizer: LanguageTokenizer) -> Make:
        keys = [f"{one} {other}" for one in ADJECTIVES.split() for other in NOUNS.split()]
        head = [*tokenizer.prefix, *tokenizer.encode(["A list of numbers:\n\n"])[0]]

        def make(seed: int) -> Iterator[Recalled]:
            draws = Draws(seed)
            place = draws.uniform()
            chosen = itertools.islice(drawn(keys, draws), 1 + self.lengths[-1] // _SHORTEST)
            pairs = [(key, number(draws, 4)) for key in chosen]
            lines = tokenizer.encode([f"{key}: {value}\n" for key, value in pairs])
            question, answer = asked(tokenizer, f"{_WHICH_NUMBER}{pairs[0][0]}:", pairs[0][1])
            ends = np.cumsum([len(line) for line in lines])
            used = len(head) + len(question) + len(answer)
            for length in self.lengths:
                fit = int((ends <= self._room(length, used, int(ends[1]))).sum())
                if fit == len(lines):
                    raise UserError(f"lengths has {length}; there are keys for {used + int(ends[-1])} tokens")
                at = int(place * fit)
                text = [*head, *joined([*lines[1 : at + 1], lines[0], *lines[at + 1 : fit]]), *question]
                yield Recalled([*text, *answer], len(text), length)

        return make


@BENCHMARKS.register("needle")
@dataclass(frozen=True, kw_only=True)
class Needle(_Recall):
    """A sentence anywhere in a long text says a town's code; what is it?

    path: a file of texts (.txt, .jsonl.xz ...)
    lengths: of the items, in tokens, question and answer included
    items: so many at each length
    seed: which they are
    """

    path: str

    def _maker(self, tokenizer: LanguageTokenizer) -> Make:
        filler, prefix, towns = self._filler(self.path, tokenizer), [*tokenizer.prefix], _TOWNS.split()

        def make(seed: int) -> Iterator[Recalled]:
            draws = Draws(seed)
            town, code, end = towns[draws.below(len(towns))], number(draws, 5), draws.below(len(filler.lines))
            place = draws.uniform()
            said = f"The secret code of {town} is"
            (needle,) = tokenizer.encode([f"{said} {code}.\n"])
            question, answer = asked(
                tokenizer, f"Question: What is the secret code of {town}?\nAnswer: {said}", code
            )
            used = len(prefix) + len(needle) + len(question) + len(answer)
            for length in self.lengths:
                lines = filler.before(end, self._room(length, used, 1))
                at = int(place * (len(lines) + 1))
                text = [*prefix, *joined(lines[:at]), *needle, *joined(lines[at:]), *question]
                yield Recalled([*text, *answer], len(text), length)

        return make


def asked(tokenizer: LanguageTokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a question, and those of what follows it after a space."""
    before, whole = tokenizer.encode([question, f"{question} {answer}"])
    return before, whole[len(before) :]


def joined(lines: Iterable[Sequence[int]]) -> list[int]:
    return [token for line in lines for token in line]


def number(draws: Draws, digits: int) -> str:
    """Of so many digits, the first of them no 0."""
    least = 10 ** (digits - 1)
    return str(least + draws.below(9 * least))


def drawn(items: Sequence[str], draws: Draws) -> Iterator[str]:
    """All of them in an order that is drawn, as far as it is asked for."""
    left = [*items]
    while left:
        at = draws.below(len(left))
        left[at], left[-1] = left[-1], left[at]
        yield left.pop()
