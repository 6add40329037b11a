"""Answers as the VQA challenge compares them (Antol et al., "VQA: visual question answering", ICCV 2015, and
its evaluation code): lower case, digits for number words, no articles, no punctuation, contractions with
their apostrophes.
"""

from __future__ import annotations

import re

_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGITS)}}
# not the apostrophe, the colon and the full stop: 3:30, 2.5
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")

# The challenge's contractions. Those that are another word without their apostrophe (we're, she'll, it's) are
# not among them, nor are those of "I", whose capital never meets a text in lower case.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _without_one(word: str) -> list[str]:
    """The ways to forget one of its apostrophes."""
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTIONS = {short: word for word in _CONTRACTED.split() for short in _without_one(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the other way round in the challenge's code, too


def normalised(answer: str) -> str:
    """An answer as it is compared; empty where nothing is left of it.

    A punctuation mark beside a space goes, one between letters becomes a space, and all go where a comma
    stands between two digits: `1,000` is `1000`, `red/white` is `red white`. The challenge's own code leaves
    answers as they are where all ten people gave the same one; here they are always normalised, so that
    `Two.` agrees with ten times `two`.
    """
    text = " ".join(answer.split())
    in_number = _THOUSANDS.search(text) is not None
    kept = text
    for mark in _PUNCTUATION:
        if mark in kept:
            aside = in_number or f"{mark} " in text or f" {mark}" in text
            kept = kept.replace(mark, "" if aside else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", kept).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
