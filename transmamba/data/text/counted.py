"""Words, capitals, sentences and paragraphs of a text, counted; and the language that it is in."""

from __future__ import annotations

import importlib.util
import re

from ...errors import UserError

# what stands between words, and what is a word of its own though it is written onto another
_BETWEEN = re.compile(r"[\s;@#$%&?!()\[\]{}<>\"“”«»`]|--|\.{2,}|[:,](?!\d)")
_ONTO = re.compile(r"('(?:s|m|d|ll|re|ve)|n't)(?!\w)", re.IGNORECASE)
# an end: marks, with quotation marks and brackets behind them, before a space
_CLOSING = "\"'”’)]*_"
_END = re.compile(rf"[.!?…]+[{re.escape(_CLOSING)}]*(?=\s|$)")
_OPENING = "\"'“‘([*_#-–—•"
# what ends in a full stop within a sentence
_SHORT = re.compile(
    r"mr|mrs|ms|dr|prof|rev|gen|sen|rep|gov|capt|col|lt|sgt|st|vs|e\.g|i\.e|cf|al|no|fig|vol|ed|approx|dept|est"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mt|ave|blvd"
)
# these may end one as well, where the next word is one that sentences begin with, and no name
_EITHER = re.compile(r"etc|inc|ltd|co|corp|jr|sr|u\.s|u\.k|u\.n|a\.m|p\.m|ph\.d")
_FIRST = re.compile(
    r"(The|An?|It|She|He|They|We|You|I|This|That|These|In|On|At|But|And|So|If|When|However)\b"
)


def words(text: str) -> int:
    """Runs of letters, digits and underscores."""
    return len(re.findall(r"\w+", text))


def capital_words(text: str) -> int:
    """Words all of whose letters are capitals, "I" and "A" too; of a contraction (DON'T) each part."""
    parts = " ".join(_BETWEEN.split(text))
    return sum(word.isupper() for word in _ONTO.sub(r" \1", parts).split())


def sentences(text: str) -> int:
    """By rules: marks before a space end one, but for the full stop of an abbreviation, of initials, or
    before a small letter. Ends of lines alone end none; what stands behind the last mark is one."""
    count, begun = 0, 0
    for found in _END.finditer(text):
        if text[begun : found.end()].strip() and _ends(text, found):
            count, begun = count + 1, found.end()
    return count + bool(text[begun:].strip())


def _ends(text: str, found: re.Match[str]) -> bool:
    """Whether a sentence ends at the marks that were found."""
    behind = text[found.end() :].lstrip().lstrip(_OPENING)
    marks = found[0].rstrip(_CLOSING)
    if marks != ".":
        return not behind[:1].islower() or marks[0] in "!?"
    before = re.split(r"[\s(\[\"“*_]", text[: found.start()])[-1].lower()
    if behind[:1].islower() or _SHORT.fullmatch(before):
        return not behind
    if _EITHER.fullmatch(before):
        return not behind or _FIRST.match(behind) is not None
    initial = len(before) == 1 and before.isalpha() and before != "i"
    return not (initial and behind)


def language(text: str) -> str | None:
    """Its code, such as `en` or `zh-cn`, as langdetect tells it; None for a text without letters. Raises
    UserError where langdetect is not installed."""
    check_language()
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it draws which parts of a text it looks at
    try:
        return str(detect(text))
    except LangDetectException:
        return None


def check_language() -> None:
    """Raises UserError where nothing tells languages."""
    if importlib.util.find_spec("langdetect") is None:
        raise UserError("what language an answer is in needs langdetect: pip install 'transmamba[eval]'")
