"""What follows an instruction of IFEval and what does not, by hand, for each of its kinds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from transmamba.data.text.counted import capital_words, sentences, words
from transmamba.data.text.verifiers import KINDS, LANGUAGE, check, followed
from transmamba.errors import UserError

PARAGRAPH = "length_constraints:nth_paragraph_first_word"
SECOND = dict(num_paragraphs=3, nth_paragraph=2, first_word="then")
# kind, options, answers that follow, answers that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        dict(keywords=["mom", "Mother"]),
        ["A MOM is a mother.", "motherly moments"],
        ["a mom", "moth, mom"],
    ),
    (
        "keywords:frequency",
        dict(keyword="war", frequency=2, relation="at least"),
        ["War and wars", "warward"],
        ["war", "raw"],
    ),
    (
        "keywords:frequency",
        dict(keyword="war", frequency=2, relation="less than"),
        ["War", "raw"],
        ["war War", "war war war"],
    ),
    (
        "keywords:forbidden_words",
        dict(forbidden_words=["field", "rock"]),
        ["fields of rocky hills", "rock_"],
        ["A Rock.", "the field, then"],
    ),
    (
        "keywords:letter_frequency",
        dict(letter="t", let_frequency=3, let_relation="at least"),
        ["Tttx", "to that"],
        ["to a T", "x"],
    ),
    (
        "keywords:letter_frequency",
        dict(letter="!", let_frequency=1, let_relation="less than"),
        ["none."],
        ["one!"],
    ),
    (
        "language:response_language",
        dict(language="de"),
        ["Das ist ein ganz einfacher Satz auf Deutsch, und noch einer.", "12345"],
        ["This is a plain English sentence, and another one."],
    ),
    (
        "length_constraints:number_sentences",
        dict(num_sentences=3, relation="at least"),
        ["One. Two! Three?", 'He said "Go." Then he left. It was 3.5 km'],
        ["One. Two", "Mr. Smith met Dr. Who at 5.30. And then?"],
    ),
    (
        "length_constraints:number_sentences",
        dict(num_sentences=2, relation="less than"),
        ["One, two", "e.g. this one, by J. Smith."],
        ["One. Two."],
    ),
    (
        "length_constraints:number_words",
        dict(num_words=4, relation="at least"),
        ["one two-three four", "it's ok now"],
        ["one two three", "... --- ..."],
    ),
    (
        "length_constraints:number_words",
        dict(num_words=3, relation="less than"),
        ["one two"],
        ["one two three"],
    ),
    (
        "length_constraints:number_paragraphs",
        dict(num_paragraphs=2),
        ["one\n***\ntwo", "***\none\n\n***\n\ntwo\n***", "one *** two"],
        ["one\n\ntwo", "one\n***\n***\ntwo", "a\n***\nb\n***\nc"],
    ),
    (
        PARAGRAPH,
        SECOND,
        ["a\n\nThen it\n\nc", 'a\n\n"then," b\n\nc', "a\n\nthen's b\n\nc", "a\n\nTHEN\n\nc\n\n"],
        ["a\n\nthence\n\nc", "a\n\nthen", "then\n\nb\n\nc", "a\n\nthen\n\nc\n\nd", "a\nthen\nc"],
    ),
    (
        "detectable_content:number_placeholders",
        dict(num_placeholders=2),
        ["[name] at [address]", "[a][b][c]"],
        ["[name]", "[na\nme] [x]", "name"],
    ),
    (
        "detectable_content:postscript",
        dict(postscript_marker="P.S."),
        ["Yours\n\nP.S. more", "yours p. s. more"],
        ["Yours\n\nPS more", "P.P.S more"],
    ),
    (
        "detectable_content:postscript",
        dict(postscript_marker="P.P.S"),
        ["x\nP.P.S more", "x p. p. s. more"],
        ["x\nP.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists",
        dict(num_bullets=2),
        ["* one\n* two", "Such:\n - one\n  * two\nand **three**"],
        ["* one", "* one\n- two\n* three", "**one\n** two\n1. three", "one * two * three"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. So."],
        ["My answer is yes", "my answer is no.", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        dict(num_highlights=2),
        ["*one* and *two*", "**one** and *two words*"],
        ["*one*", "** ** and * *", "*one\ntwo* *", "one two"],
    ),
    (
        "detectable_format:multiple_sections",
        dict(section_spliter="SECTION", num_sections=2),
        ["SECTION 1\na\nSECTION 2\nb", "SECTION1 SECTION2 SECTION 3"],
        ["SECTION 1", "Section 1\nSection 2", "SECTION A SECTION B"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n[1]\n```", ' "a" '],
        ["{'a': 1}", 'Here: {"a": 1}', '```json\n{"a": 1}\n``` done'],
    ),
    (
        "detectable_format:title",
        {},
        ["<<a title>>\nText", "Text <<x>>"],
        ["<title>", "<< >>", "<<two\nlines>>", "Title"],
    ),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one******one", "a******b******c", "a************b", "one\n***\ntwo"],
    ),
    (
        "combination:repeat_prompt",
        dict(prompt_to_repeat="Write a haiku.\nNow. "),
        ["Write a haiku.\nNow. It is", "  write A haiku.\nnow."],
        ["Sure: Write a haiku.\nNow.", "Write a haiku. Now."],
    ),
    (
        "startend:end_checker",
        dict(end_phrase="Is there more?"),
        ["No. Is there more?", '"No. IS THERE MORE?" '],
        ["Is there more? No.", "Is there more"],
    ),
    ("startend:quotation", {}, ['"So it is."', ' "x" '], ['"', '"a', "'a'", '"a" b']),
    (
        "change_case:capital_word_frequency",
        dict(capital_frequency=3, capital_relation="at least"),
        ["I SAW A cat", "NASA, (ESA) and R2D2!", "DON'T GO"],
        ["I Saw A cat", "one TWO Three", "1 2 3"],
    ),
    (
        "change_case:capital_word_frequency",
        dict(capital_frequency=2, capital_relation="less than"),
        ["one TWO three"],
        ["I DO"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS AN ENGLISH SENTENCE, ALL OF IT IN CAPITALS."],
        ["This is English.", "DAS IST EIN GANZ EINFACHER SATZ AUF DEUTSCH.", "123"],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is an english sentence, all of it in small letters."],
        ["This is English.", "das ist ein ganz einfacher satz auf deutsch."],
    ),
    ("punctuation:no_comma", {}, ["None; at all."], ["One, two."]),
]


def test_all_25_kinds_are_here() -> None:
    assert len(KINDS) == 25 and {case[0] for case in CASES} == set(KINDS) and set(LANGUAGE) < set(KINDS)


@pytest.mark.parametrize(("kind", "options", "right", "wrong"), CASES)
def test_answers_follow_or_do_not(
    kind: str, options: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    if kind in LANGUAGE and importlib.util.find_spec("langdetect") is None:
        pytest.skip("langdetect is not installed (the extra eval)")
    check(kind, options)
    assert {answer: followed(kind, answer, options) for answer in right} == dict.fromkeys(right, True)
    assert {answer: followed(kind, answer, options) for answer in wrong} == dict.fromkeys(wrong, False)
    assert not followed(kind, " \n", options)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (
            "keywords:existense",
            {},
            "unknown kind of instruction 'keywords:existense'; did you mean 'keywords:ex",
        ),
        ("punctuation:no_comma", dict(number=1), r"options \['number'\]; write \[\]"),
        ("keywords:existence", {}, r"options \[\]; write \['keywords'\]"),
        (
            "keywords:frequency",
            dict(keyword="a", frequency=1, relation="about"),
            "relation is 'about'; write less than or at least",
        ),
    ],
)
def test_what_is_unknown_is_refused_by_name(kind: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(kind, options)


def test_the_authors_prompts_are_all_known(shared_data: Path) -> None:
    text = (shared_data / "lm_bench" / "ifeval" / "input_data.jsonl").read_text()
    seen = set()
    for row in map(json.loads, text.splitlines()):
        for kind, options in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            check(kind, {key: value for key, value in options.items() if value is not None})
            seen.add(kind)
    assert seen == set(KINDS)


def test_counts() -> None:
    assert words("It's 3.5, a_b – ok?") == 6
    assert capital_words("I AM at N.A.S.A. \"OK,\" SHE-WOLF IT'S o'CLOCK 3D a1") == 8
    assert (
        sentences("") == 0 and sentences("No mark") == 1 and sentences("Wait... what? Yes!! (So.) End") == 4
    )
    assert sentences("In the U.S. Army there was Inc. magazine. It closed at 5 p.m. The end.") == 3
