"""Items of recall, taken apart again by other code: what is asked stands in what comes before, once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_language import reading, write_jsonl

from transmamba.config.registry import BENCHMARKS
from transmamba.core.text import LanguageTokenizer
from transmamba.data.text.filler import Filler
from transmamba.data.text.recall import Recalled
from transmamba.errors import UserError, WrongValues

LENGTHS = (200, 330, 500)
WORDS = [
    "river",
    "stone",
    "cat",
    "dog",
    "house",
    "sun",
    "moon",
    "bread",
    "salt",
    "wind",
    "rain",
    "snow",
    "road",
]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Some hundred sentences, no two alike."""
    rows = []
    for row in range(20):
        said = [
            " ".join(WORDS[(row * k + k * k + j) % len(WORDS)] for j in range(4 + k % 5)) for k in range(12)
        ]
        rows.append({"text": ". ".join(f"{text} {row} {k}" for k, text in enumerate(said)) + "."})
    return write_jsonl(tmp_path / "texts.jsonl", rows)


@pytest.fixture(params=[False, True], ids=["plain", "bos"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageTokenizer:
    return reading(tmp_path / "tokenizer", context=512, bos=request.param).text


def built(name: str, tokenizer: LanguageTokenizer, **options: Any) -> list[Recalled]:
    found: list[Recalled] = BENCHMARKS[name](lengths=LENGTHS, **options).build(tokenizer)
    return found


def halves(item: Recalled, tokenizer: LanguageTokenizer) -> tuple[str, str]:
    """(what is read, what is asked for)"""
    skipped = len(tokenizer.prefix)
    assert item.ids[:skipped] == [*tokenizer.prefix]
    return tokenizer.decode(item.ids[skipped : item.start]), tokenizer.decode(item.ids[item.start :])


def test_a_needle_is_in_the_text_once_at_every_depth(tokenizer: LanguageTokenizer, texts: str) -> None:
    items = built("needle", tokenizer, path=texts, items=40)
    assert [item.length for item in items] == [*LENGTHS] * 40 and all(item.whole for item in items)
    depths, towns = [], []
    for item in items:
        assert len(item.ids) == item.length
        text, answer = halves(item, tokenizer)
        body, asked, question = text.partition("Question: What is the secret code of ")
        town = question.split("?")[0]
        told = re.findall(r"^The secret code of (\w+) is (\d{5})\.$", body, re.MULTILINE)
        assert asked and told == [(town, answer.removeprefix(" "))]
        assert question == f"{town}?\nAnswer: The secret code of {town} is"
        depths.append(body.index("The secret code") / len(body))
        towns.append(town)
    assert min(depths) < 0.15 and max(depths) > 0.7 and 0.3 < sum(depths) / len(depths) < 0.6
    assert len(set(towns)) > 10 and towns[0::3] == towns[1::3] == towns[2::3], "one needle at all lengths"


def test_keys_have_one_value_each_and_one_is_asked(tokenizer: LanguageTokenizer) -> None:
    places = []
    for item in built("key_value", tokenizer, items=30):
        text, answer = halves(item, tokenizer)
        title, blank, *lines = text.split("\n")
        pairs = [line.split(": ") for line in lines[:-4]]
        assert (title, blank) == ("A list of numbers:", "")
        values = dict(pairs)  # type: ignore[arg-type]
        assert len(values) == len(pairs) >= 2 and all(re.fullmatch(r"\d{4}", v) for v in values.values())
        asked = lines[-1].removesuffix(":")
        asks = "Question: Which number does the list give for the following?"
        assert lines[-4:] == ["", asks, "", f"{asked}:"] and text.count(asked) == 2
        assert answer == f" {values[asked]}"
        places.append(list(values).index(asked) / len(values))
        # another line would be too much
        assert 0 <= item.length - len(item.ids) < 40
    assert min(places) < 0.2 and max(places) > 0.7


def test_a_span_comes_again(tokenizer: LanguageTokenizer, texts: str) -> None:
    begins = []
    skipped = len(tokenizer.prefix)
    for item in built("repeated_span", tokenizer, path=texts, items=30, span=16, cue=5):
        assert len(item.ids) == item.length and item.start == item.length - 16 + 5 and not item.whole
        text, again = item.ids[skipped : item.length - 16], item.ids[item.length - 16 :]
        found = [k for k in range(len(text) - 15) if text[k : k + 16] == again]
        assert found and found[0] + 16 <= len(text) // 2
        begins.append(found[0] / len(text))
    assert min(begins) < 0.1 and max(begins) > 0.3


@pytest.mark.parametrize("name", ["needle", "key_value", "repeated_span"])
def test_items_follow_from_seed_and_index(name: str, texts: str, tmp_path: Path) -> None:
    tokenizer = reading(tmp_path / "tokenizer", context=512).text
    options = {} if name == "key_value" else {"path": texts}
    many, few, other = (
        built(name, tokenizer, items=items, seed=seed, **options) for items, seed in ((9, 0), (4, 0), (9, 1))
    )
    assert many[: len(few)] == few
    shorter: list[Recalled] = BENCHMARKS[name](lengths=LENGTHS[1:2], items=9, **options).build(tokenizer)
    assert shorter == many[1::3]
    assert not {tuple(item.ids) for item in many} & {tuple(item.ids) for item in other}
    most = Counter(tuple(item.ids) for item in many).most_common(1)
    assert most[0][1] == 1


def test_filler_is_the_file_s_sentences(texts: str, tmp_path: Path) -> None:
    tokenizer = reading(tmp_path / "tokenizer").text
    filler = Filler.of(texts, tokenizer, 10**6)
    lines = [tokenizer.decode(line) for line in filler.lines]
    assert len(lines) == 20 * 12 and all(line.endswith("\n") for line in lines[:11])
    for end in (0, 3, 100):
        taken = filler.before(end, 70)
        flat = [token for line in taken for token in line]
        around = [token for k in range(end - 30, end) for token in filler.lines[k]]
        assert len(flat) == 70 and flat == around[-70:]
        assert taken[1:] == [filler.lines[k] for k in range(end - len(taken) + 1, end)]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("needle", dict(lengths=(256, 1024)), r"lengths has 1024, but .* at most 512 .* lengths: \[256\]$"),
        ("needle", dict(lengths=(600,)), r"lengths has 600, .*write lengths: \[512\]"),
        ("needle", dict(lengths=(20,)), r"lengths has 20; write at least \d+ tokens"),
        ("key_value", dict(lengths=(20,)), r"lengths has 20; write at least \d+ tokens"),
        ("repeated_span", dict(lengths=(90,)), r"lengths has 90; write at least 96 tokens"),
        ("needle", dict(lengths=()), r"lengths is \[\]; write numbers of tokens, the smallest first"),
        ("needle", dict(lengths=(500, 300)), r"lengths is \[500, 300\]"),
        ("needle", dict(items=0), "items is 0; write how many at each length"),
        ("repeated_span", dict(cue=32), "cue is 32 of a span of 32 tokens; write at least 1, and fewer"),
    ],
)
def test_what_cannot_be_made_is_said(
    name: str, options: dict[str, Any], says: str, texts: str, tmp_path: Path
) -> None:
    tokenizer = reading(tmp_path / "tokenizer", context=512).text
    path = {} if name == "key_value" else {"path": texts}
    with pytest.raises((UserError, WrongValues), match=says):
        BENCHMARKS[name](**{"lengths": (300,), **path, **options}).build(tokenizer)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    tokenizer = reading(tmp_path / "tokenizer").text
    (tmp_path / "short.txt").write_text("One sentence. Another.")
    with pytest.raises(
        UserError, match=r"short.txt: has \d+ tokens, fewer than the longest of lengths \(300"
    ):
        BENCHMARKS["needle"](path=str(tmp_path / "short.txt"), lengths=(300,)).build(tokenizer)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"empty.txt: has no text"):
        BENCHMARKS["needle"](path=str(tmp_path / "empty.txt"), lengths=(300,)).build(tokenizer)
