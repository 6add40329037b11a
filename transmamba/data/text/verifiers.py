"""The 25 kinds of instructions of IFEval ("Instruction-Following Evaluation for Large Language Models", arXiv
2311.07911, table 1), each with what tells whether an answer follows it.

Written after the descriptions; where these leave a choice, as its authors' program decides, so that scores
are comparable. Sentences, and capital words, are counted by rules of our own (`counted`), not by NLTK's.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import UserError, suggest
from . import counted

Verifier = Callable[..., bool]
KINDS: dict[str, Verifier] = {}
# those that ask which language an answer is in
LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
_YES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCES = ("```json", "```Json", "```JSON", "```")
_RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "less than": lambda found, asked: found < asked,
    "at least": lambda found, asked: found >= asked,
}


def check(kind: str, options: Mapping[str, Any]) -> None:
    """Raises UserError for a kind that is none of these, options that are not its own, and an unknown
    relation."""
    if kind not in KINDS:
        raise UserError(f"unknown kind of instruction {kind!r}{suggest(kind, KINDS)}")
    own = list(inspect.signature(KINDS[kind]).parameters)[1:]
    if set(own) != set(options):
        raise UserError(f"instruction {kind} has options {sorted(options)}; write {sorted(own)}")
    for key, value in options.items():
        if key.endswith("relation") and value not in _RELATIONS:
            raise UserError(f"instruction {kind}: {key} is {value!r}; write {' or '.join(_RELATIONS)}")


def followed(kind: str, answer: str, options: Mapping[str, Any]) -> bool:
    """Whether an answer follows an instruction; an empty one follows none."""
    return bool(answer.strip()) and KINDS[kind](answer, **options)


def _of(kind: str) -> Callable[[Verifier], Verifier]:
    def add(verifier: Verifier) -> Verifier:
        KINDS[kind] = verifier
        return verifier

    return add


@_of("keywords:existence")
def _existence(answer: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in answer.lower() for keyword in keywords)


@_of("keywords:frequency")
def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _RELATIONS[relation](answer.lower().count(keyword.lower()), frequency)


@_of("keywords:forbidden_words")
def _forbidden(answer: str, forbidden_words: Sequence[str]) -> bool:
    """As whole words."""
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


@_of("keywords:letter_frequency")
def _letters(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _RELATIONS[let_relation](answer.lower().count(letter.lower()), let_frequency)


@_of("language:response_language")
def _language(answer: str, language: str) -> bool:
    """A text without letters is in every language."""
    return counted.language(answer) in (language, None)


@_of("length_constraints:number_sentences")
def _sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _RELATIONS[relation](counted.sentences(answer), num_sentences)


@_of("length_constraints:number_words")
def _words(answer: str, num_words: int, relation: str) -> bool:
    return _RELATIONS[relation](counted.words(answer), num_words)


@_of("length_constraints:number_paragraphs")
def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Between lines of ***; none of them empty but before the first and behind the last."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


@_of("length_constraints:nth_paragraph_first_word")
def _first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs lie between empty lines; of the first word, what stands before any mark in it."""
    parts = [part.strip() for part in answer.split("\n\n")]
    count = sum(map(bool, parts))
    if nth_paragraph > count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    found = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == num_paragraphs and found == first_word.lower()


@_of("detectable_content:number_placeholders")
def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


@_of("detectable_content:postscript")
def _postscript(answer: str, postscript_marker: str) -> bool:
    """In any case of letters, and with or without spaces in P.S. and P.P.S."""
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = patterns.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(pattern, answer.lower()) is not None


@_of("detectable_format:number_bullet_lists")
def _bullets(answer: str, num_bullets: int) -> bool:
    """Lines that begin with a * (and no second one) or a -."""
    stars = re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


@_of("detectable_format:constrained_response")
def _constrained(answer: str) -> bool:
    return any(sentence in answer for sentence in _YES)


@_of("detectable_format:number_highlighted_sections")
def _highlights(answer: str, num_highlights: int) -> bool:
    """*so* or **so**, with something between."""
    single, double = (re.findall(pattern, answer) for pattern in (r"\*[^\n*]*\*", r"\*\*[^\n*]*\*\*"))
    return sum(bool(part.strip("*").strip()) for part in single + double) >= num_highlights


@_of("detectable_format:multiple_sections")
def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """Each begins with the word and its number: `SECTION 1`."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", answer)) >= num_sections


@_of("detectable_format:json_format")
def _json(answer: str) -> bool:
    """The whole answer, in a fence or not."""
    text = answer.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_of("detectable_format:title")
def _title(answer: str) -> bool:
    """<<so>>, with something between."""
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", answer))


@_of("combination:two_responses")
def _two(answer: str) -> bool:
    """Unlike ones between ******; what is empty lies before the first or behind the second alone."""
    parts = [part.strip() for part in answer.split("******")]
    found = [part for part in parts if part]
    return all(parts[1:-1]) and len(found) == 2 and found[0] != found[1]


@_of("combination:repeat_prompt")
def _repeat(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_of("startend:end_checker")
def _end(answer: str, end_phrase: str) -> bool:
    """Quotation marks around the whole do not count."""
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_of("startend:quotation")
def _quotation(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@_of("change_case:capital_word_frequency")
def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    return _RELATIONS[capital_relation](counted.capital_words(answer), capital_frequency)


@_of("change_case:english_capital")
def _capital(answer: str) -> bool:
    return answer.isupper() and counted.language(answer) in ("en", None)


@_of("change_case:english_lowercase")
def _lowercase(answer: str) -> bool:
    return answer.islower() and counted.language(answer) in ("en", None)


@_of("punctuation:no_comma")
def _no_comma(answer: str) -> bool:
    return "," not in answer
