"""Readers of texts: the same documents whatever they lie in, and one line for what cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from small_language import TEXTS as WRITTEN
from small_language import texts_file, write_jsonl

from transmamba.cli.arguments import recognised
from transmamba.config import load as configs
from transmamba.config.registry import TEXTS
from transmamba.core.text import Message
from transmamba.data.pairs.captions import LeftOut
from transmamba.data.text.source import Document, TextSource
from transmamba.errors import ConfigError, UserError

PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def reader(name: str, **options: Any) -> Any:
    return configs.Part(TEXTS)._build({"name": name, **options})


def everything(source: TextSource) -> tuple[list[Document], list[tuple[str, str, int]]]:
    left_out = LeftOut()
    return list(source.documents(left_out)), left_out.entries()


def table_file(path: Path, suffix: str) -> str:
    """The texts as a table of that kind, with an empty one in the middle."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": text, "source": "s"} for text in (*WRITTEN[:2], " \n", *WRITTEN[2:])]
    path = path / f"texts{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        lines = ['"' + row["text"].replace('"', '""') + '",s\n' for row in rows]
        path.write_text("text,source\n" + "".join(lines))
    else:
        write_jsonl(path, rows)
    return str(path)


@pytest.mark.parametrize("packer", ["", *PACKERS])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_table_s_rows_are_documents(suffix: str, packer: str, tmp_path: Path) -> None:
    path = table_file(tmp_path, suffix)
    if packer:
        Path(path + packer).write_bytes(PACKERS[packer](Path(path).read_bytes()))
    if packer and suffix == ".parquet":
        with pytest.raises(UserError, match="unknown suffix"):
            reader("text", train=path + packer).build("train")
        return
    source = reader("text", train=path + packer).build("train")
    documents, left_out = everything(source)
    assert documents == list(WRITTEN) and everything(source) == (documents, left_out)
    ((reason, first, count),) = left_out
    assert (reason, count) == ("without text", 1) and first.startswith(f"{path + packer}: ")
    assert everything(pickle.loads(pickle.dumps(source))) == (documents, left_out)


def test_plain_files_are_documents_or_are_divided(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("\ufeff = One =\n\nfirst\n = Two =\nsecond\n", encoding="utf-8")
    assert everything(reader("text", train=str(plain)).build("train"))[0] == [
        " = One =\n\nfirst\n = Two =\nsecond\n"
    ]
    blank = reader("text", train=str(plain), separator="").build("train")
    assert everything(blank)[0] == [" = One =\n", "first\n = Two =\nsecond\n"]
    wikitext = reader("text", train=str(plain), separator=" = [^=]* =", keep_separator=True).build("train")
    assert everything(wikitext) == (
        [" = One =\n\nfirst\n", " = Two =\nsecond\n"],
        [("without text", f"{plain}: line 1", 1)],
    )
    (tmp_path / "b.txt").write_text("third")
    both = reader("text", train=(str(tmp_path / "*.txt"),), separator=" = .* =").build("train")
    assert everything(both)[0] == ["\nfirst\n", "second\n", "third"] and both.where.endswith("and 1 more")


def test_several_files_and_how_they_are_told_from_later_ones(tmp_path: Path) -> None:
    for part in "abc":
        texts_file(tmp_path / f"{part}.jsonl", [part, part.upper()])
    source = reader("text", train=str(tmp_path / "{c,a}.jsonl"), test=str(tmp_path / "*.jsonl"))
    assert everything(source.build("train"))[0] == ["c", "C", "a", "A"]
    assert everything(source.build("test"))[0] == ["a", "A", "b", "B", "c", "C"]
    stamps = {source.build("train").stamp, source.build("test").stamp}
    assert source.build("train").stamp in stamps and len(stamps) == 2
    texts_file(tmp_path / "c.jsonl", ["longer than before"])
    texts_file(tmp_path / "d.jsonl", ["not read"])
    again = source.build("train").stamp
    assert again not in stamps
    assert reader("text", train=str(tmp_path / "{c,a}.jsonl"), column="t").build("train").stamp != again


def test_instructions_in_two_columns_or_in_messages(tmp_path: Path) -> None:
    rows = [
        {"q": "one?", "a": "1", "m": [{"role": "user", "content": "hi"}]},
        {"q": "two?", "a": " ", "m": None},
        {"q": "Ü\ud800", "a": "3", "m": [{"role": "system", "content": "s"}, *_turns("x", "y", "z")]},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    two = reader("instructions", train=path, prompt="q", response="a").build("train")
    assert two.answered and everything(two) == (
        [
            (Message("user", "one?"), Message("assistant", "1")),
            (Message("user", "Ü?"), Message("assistant", "3")),
        ],
        [("without an answer", f"{path}: line 2", 1)],
    )
    turns = reader("instructions", train=path, messages="m").build("train")
    said = ("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "z")
    assert everything(turns) == (
        [tuple(Message(*each) for each in said)],
        [("without an answer", f"{path}: line 1", 2)],
    )
    assert two.stamp != turns.stamp


def _turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said)]


def test_data_sets_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = {"text": [*WRITTEN, None], "note": ["n"] * 6, "q": ["q", ""] * 3, "a": ["a", "b"] * 3}
    talks = {"messages": [_turns("x", "y"), _turns("x")]}
    texts_set = datasets.DatasetDict(train=datasets.Dataset.from_dict(texts))
    texts_set["validation"] = datasets.Dataset.from_dict({**texts, "text": ["v"] * 6})
    texts_set.save_to_disk(str(tmp_path / "texts"))
    datasets.DatasetDict(train=datasets.Dataset.from_dict(talks)).save_to_disk(str(tmp_path / "talks"))
    plain, path = reader("datasets", path=str(tmp_path / "texts")), str(tmp_path / "texts")
    assert recognised(Path(path), TEXTS) == plain
    assert everything(plain.build("train")) == (
        list(WRITTEN),
        [("without text", f"{path}: train: row 5", 1)],
    )
    assert everything(plain.build("test"))[0] == ["v"] * 6
    asked, left_out = everything(reader("datasets", path=path, prompt="q", response="a").build("train"))
    assert asked == [(Message("user", "q"), Message("assistant", "a"))] * 3 and left_out[0][2] == 3
    talk = reader("datasets", path=str(tmp_path / "talks"))
    found = everything(talk.build("train"))
    assert found[0] == [(Message("user", "x"), Message("assistant", "y"))] and found[1][0][2] == 1
    with pytest.raises(UserError, match=r"no column 'txet'; did you mean 'text'\?"):
        reader("datasets", path=path, column="txet").build("train")
    with pytest.raises(UserError, match=r"talks: no test split among train; write test_split: NAME"):
        talk.build("test")
    odd = datasets.DatasetDict(train=datasets.Dataset.from_dict({"words": ["w"]}))
    odd.save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(UserError, match=r"which column holds texts; known: words; write column: NAME"):
        reader("datasets", path=str(tmp_path / "odd")).build("train")
    assert plain.build("train").stamp != plain.build("test").stamp


def refuses(source: TextSource, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        everything(source)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line_each(tmp_path: Path) -> None:
    def source(name: str, content: bytes, **options: Any) -> TextSource:
        (tmp_path / name).write_bytes(content)
        return reader("text", train=str(tmp_path / name), **options).build("train")

    good = json.dumps({"text": "good"}).encode() + b"\n"
    refuses(source("a.jsonl", good + b'{"text": \n'), r"a\.jsonl: line 2 is no JSON")
    refuses(source("b.jsonl", good + b"[1]\n"), r"b\.jsonl: line 2 is a list; expected an object")
    refuses(source("c.jsonl", good + b'{"text": "\xff"}\n'), r"c\.jsonl: is not in UTF-8")
    refuses(source("d.txt", b"fine\nbad \xff\n"), r"d\.txt: line 2 is not in UTF-8 \(invalid start byte at")
    refuses(source("e.jsonl", b'{"text": 5}\n'), r"e\.jsonl: line 1: text: 5 is no text")
    refuses(source("f.jsonl", good, column="txt"), r"f\.jsonl: no column 'txt'; did you mean 'text'\?")
    long = b"".join(json.dumps({"text": f"{n}" * 99}).encode() + b"\n" for n in range(999))
    for suffix, pack in PACKERS.items():
        cut = pack(long)[:-40]
        refuses(source(f"g.jsonl{suffix}", cut), rf"g\.jsonl\{suffix}: is damaged or cut short \(")
        refuses(source(f"h.txt{suffix}", b"no such thing"), rf"h\.txt\{suffix}: is damaged or cut short")
    messages = [{"role": "user"}], {"role": "assistant"}, ["hi"]
    for number, bad in enumerate(messages[1:]):
        path = write_jsonl(tmp_path / f"m{number}.jsonl", [{"m": bad}])
        refuses(reader("instructions", train=path, messages="m").build("train"), r"line 1: m: .* is no")


def test_what_cannot_be_meant_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.pdf").write_text("")
    for train, says in {
        str(tmp_path / "none.jsonl"): "does not exist",
        str(tmp_path / "*.jsonl"): "there is no such file",
        str(tmp_path): r"is a folder; write its files, such as .*/\*\.jsonl",
        str(tmp_path / "a.pdf"): r"unknown suffix '\.pdf'; expected one of \.txt",
    }.items():
        with pytest.raises(UserError, match=says):
            reader("text", train=train).build("train").stamp
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"")
    refuses(reader("text", train=str(tmp_path / "a.txt.zst")).build("train"), "pip install zstandard$")
    one = texts_file(tmp_path / "one.jsonl")
    with pytest.raises(UserError, match="was given no test split"):
        reader("text", train=one).build("test")
    assert recognised(Path(one), TEXTS) == reader("text", train=one, test=one)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("text", {}, "neither train nor test"),
        ("text", dict(train="a", separator="("), r"separator '\(' is no regular expression"),
        ("text", dict(train="a", keep_separator=True), "there is no separator"),
        ("instructions", {}, "neither train nor test"),
        ("datasets", dict(path="a", prompt="p"), "prompt and response go together"),
        ("datasets", dict(path="a", column="c", messages="m"), "column and messages: a row is read in one"),
    ]
    for name, options, says in wrong:
        with pytest.raises((UserError, ConfigError, ValueError)) as caught:
            reader(name, **options)
        assert re.search(says, str(caught.value))


def test_the_corpora_that_are_here(shared_data: Path) -> None:
    valid = shared_data / "text_corpus" / "valid.jsonl.xz"
    talks = shared_data / "instruct" / "instruct_valid.jsonl.xz"
    if not (valid.is_file() and talks.is_file()):
        pytest.skip("no text_corpus, no instruct")
    texts, left_out = everything(reader("text", test=str(valid)).build("test"))
    lines = lzma.decompress(valid.read_bytes()).decode().split("\n")[:-1]
    assert texts == [json.loads(line)["text"] for line in lines] and left_out == []
    found, left_out = everything(reader("instructions", test=str(talks)).build("test"))
    assert len(found) == 4634 and left_out == []
