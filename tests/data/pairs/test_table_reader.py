"""Tables: every kind of file, rows brought together, and what is wrong with a file said in a line."""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_files import encoded, pixels

from transmamba.data.pairs.table import Table
from transmamba.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"picture": "b.png", "said": 'two words, a comma and a "quote"', "more": "x"},
    {"picture": "a.png", "said": "ein Wörtchen\nin zwei Zeilen", "more": "y"},
    {"picture": "b.png", "said": "another", "more": ""},
    {"picture": "deep/c.png", "said": "\ta third ", "more": "z"},
]
NAMES = ("b.png", "a.png", "deep/c.png")
CAPTIONS = (
    ('two words, a comma and a "quote"', "another"),
    ("ein Wörtchen\nin zwei Zeilen",),
    ("a third",),
)


def separated(delimiter: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)

    return write


def lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")


def listed(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pip install 'transmamba[data]'")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)


WRITERS = {
    "csv": separated(","),
    "tsv": separated("\t"),
    "jsonl": lines,
    "ndjson": lines,
    "json": listed,
    "parquet": parquet,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(pixels(number)))
    return tmp_path


def read(path: Path, **options: Any) -> Any:
    return Table(train=str(path), image="picture", caption="said", **options).build("train")


def check(source: Any) -> None:
    assert [source.name(n) for n in range(len(source))] == list(NAMES) and source.skipped == 0
    assert tuple(source.captions(n) for n in range(len(source))) == CAPTIONS
    for number in range(len(source)):
        assert np.array_equal(np.asarray(source.image(number)), pixels(number))


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_of_one_picture_are_brought_together(suffix: str, pictures: Path) -> None:
    WRITERS[suffix](pictures / f"pairs.{suffix}")
    check(read(pictures / f"pairs.{suffix}"))


@pytest.fixture
def archive(pictures: Path) -> Any:
    lines(pictures / "pairs.jsonl")
    with zipfile.ZipFile(pictures / "all.zip", "w") as archive:
        for name in (*NAMES, "pairs.jsonl"):
            archive.write(pictures / name, name)
    return read(pictures / "all.zip")


def read_often(source: Any, answers: Any) -> None:
    expected = [pixels(number, 90, 90).tobytes() for number in range(3)]
    try:
        found = {np.asarray(source.image(n)).tobytes() == expected[n] for n in [*range(3)] * 100}
        answers.put(found)
    except UserError as error:
        answers.put({str(error)})


def test_an_archive_is_opened_by_each_process_for_itself(pictures: Path, archive: Any) -> None:
    check(archive)
    check(pickle.loads(pickle.dumps(archive)))
    with zipfile.ZipFile(pictures / "large.zip", "w") as large:  # larger than what is read ahead
        for number, name in enumerate(NAMES):
            large.writestr(name, encoded(pixels(number, 90, 90)))
        large.write(pictures / "pairs.jsonl", "pairs.jsonl")
    source = read(pictures / "large.zip")
    source.image(0)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=read_often, args=(source, answers)) for _ in range(3)]
    for child in children:
        child.start()
    assert [answers.get() for _ in children] == [{True}] * 3
    for child in children:
        child.join()


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_zip_holds_the_table_and_its_pictures(suffix: str, pictures: Path) -> None:
    WRITERS[suffix](pictures / f"pairs.{suffix}")
    with zipfile.ZipFile(pictures / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (*NAMES, f"pairs.{suffix}"):
            archive.write(pictures / name, f"data/{name}")
        archive.writestr("__MACOSX/._pairs.csv", "")
        archive.writestr("data/readme.txt", "")
    check(read(pictures / "all.zip"))


def test_pictures_may_lie_elsewhere(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "pairs.jsonl"
    lines(elsewhere)
    check(read(elsewhere, root=str(pictures)))
    with pytest.raises(
        UserError, match=r"pairs.jsonl: none of its 3 pictures is in .*\(first: b.png\); do capt"
    ):
        read(elsewhere)
    with pytest.raises(UserError, match="gone does not exist; expected the folder of the pictures"):
        read(elsewhere, root=str(pictures / "gone"))
    elsewhere.write_text('{"picture": "https://example.org/a.jpg", "said": "far away"}')
    with pytest.raises(UserError, match="these are addresses: download the pictures and write their paths"):
        read(elsewhere)


def test_several_columns_and_lists_of_captions_and_of_pictures(pictures: Path) -> None:
    (pictures / "pairs.json").write_text(
        json.dumps(
            [
                {"picture": "a.png", "said": ["one", "", "two"], "more": "three"},
                {"picture": ["b.png", "deep/c.png"], "said": None, "more": "both"},
            ]
        )
    )
    source = Table(train=str(pictures / "pairs.json"), image="picture", caption=("more", "said")).build(
        "train"
    )
    assert [source.captions(n) for n in range(3)] == [("three", "one", "two"), ("both",), ("both",)]


def test_what_is_no_text_for_a_tokenizer_is_made_one(pictures: Path) -> None:
    (pictures / "pairs.jsonl").write_text(r'{"picture": "a.png", "said": "half \ud83d of one, \ud83d\ude00"}')
    assert read(pictures / "pairs.jsonl").captions(0) == ("half ? of one, \U0001f600",)


def test_what_is_left_out_is_counted_and_said_once(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pictures / "pairs.csv").write_text(
        "picture,said\na.png,good\nb.png,\nb.png,   \n,of nothing\ngone.png,lost\ngone.png,again\n"
    )
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = read(pictures / "pairs.csv")
    assert len(source) == 1 and source.captions(0) == ("good",) and source.skipped == 5
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{pictures}/pairs.csv: left out 5 pairs: 2 without a caption (first: line 3), 2 whose picture is "
        f"not there (first: {pictures}/gone.png), 1 without the name of a picture (first: line 5)"
    )


MISTAKES = {
    "a.csv": (b"image,said\na.png,x\n", r"no column 'picture'; known: image, said"),
    "a2.csv": (b"pictures,said\na.png,x\n", r"no column 'picture'; did you mean 'pictures'\?"),
    "empty.csv": (b"", "no column 'picture'; known: none"),
    "b.csv": (b"picture,said\na.png,one, two\n", "line 2 has 3 fields, the header 2; put quotation marks"),
    "c.csv": (b"picture,said\na.png\n", "line 2 has 1 fields, the header 2"),
    "d.csv": (b'picture,said\na.png,"not closed\nb.png,x\n', "line 3 is no line of a table"),
    "e.csv": (b'picture,said\na.png,"a" b\n', "line 2 is no line of a table"),
    "f.csv": ("picture,said\na.png,Wört\n".encode("latin-1"), "is not in UTF-8"),
    "g.csv": (b"picture,said\na.png,\n", r"holds no pairs: 1 without a caption \(first: line 2\)"),
    "h.csv": (b"picture,said\n", "holds no pairs$"),
    "a.jsonl": (b'{"picture": "a.png"}\n{"picture": "b.png"}\n', "no column 'said'; known: picture"),
    "b.jsonl": (b'{"picture": "a.png", "said": "x"}\n{"picture', "b.jsonl: line 2 is no JSON"),
    "c.jsonl": (b"[1]\n", "line 1 is a list; expected an object"),
    "d.jsonl": (b'{"picture": "a.png", "said": 5}\n', "line 1: said: 5 is no caption; write text or a list"),
    "e.jsonl": (b'{"picture": 5, "said": "x"}\n', "line 1: picture: 5 is no path; write text"),
    "f.jsonl": (b'{"picture": {"bytes": ""}, "said": "x"}\n', r"are read by \{name: datasets\}"),
    "a.json": (b'{"images": []}', "an object; expected a list of objects with picture, said"),
    "b.json": (b"[", "is no JSON"),
    "a.parquet": (b"PAR1 or not", "cannot be read"),
    "a.txt": (b"", r"unknown suffix '.txt'; expected one of .csv, .tsv"),
    "a.zip": (b"no zip", "cannot be read .*; expected a .zip"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_naming_the_file(name: str, pictures: Path) -> None:
    content, says = MISTAKES[name]
    (pictures / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read(pictures / name)
    assert str(caught.value).startswith(str(pictures / name)) and "\n" not in str(caught.value)


def test_mistakes_of_archives_folders_and_keys(pictures: Path) -> None:
    for number, (names, says) in enumerate(
        [
            ((), "no table; expected one of the kinds"),
            (("a.csv", "b.json"), r"several tables \(a.csv, b.json\)"),
        ]
    ):
        with zipfile.ZipFile(pictures / f"{number}.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "")
        with pytest.raises(UserError, match=says):
            read(pictures / f"{number}.zip")
    (pictures / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv cannot be read"):
        read(pictures / "folder.csv")
    with pytest.raises(UserError, match=r"gone.csv does not exist; expected a file of pairs \(.csv"):
        read(pictures / "gone.csv")
    with pytest.raises(UserError, match="has neither train nor test; write one of them, or both"):
        Table()
    with pytest.raises(UserError, match="reader table was given no test split; write test: as well"):
        Table(train="x.csv").build("test")
    with pytest.raises(UserError, match="caption: names no column"):
        Table(train="x.csv", caption=())


def test_damage_in_an_archive_is_the_picture_s_own(pictures: Path, archive: Any) -> None:
    whole = (pictures / "all.zip").read_bytes()
    at = whole.index((pictures / "a.png").read_bytes())
    (pictures / "all.zip").write_bytes(whole[: at + 40] + b"\xff\xff\xff" + whole[at + 43 :])
    source = read(pictures / "all.zip")
    assert source.image(0).size == (8, 6)
    with pytest.raises(UserError, match=r"all.zip/a.png cannot be read \(Bad CRC"):
        source.image(1)
