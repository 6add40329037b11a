"""Tar shards: what is in them, the index that is kept, shards far away, and damage."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_files import encoded, pixels, plain, samples, shards, write_tar

from transmamba.data.pairs import files
from transmamba.data.pairs.files import braces, expand
from transmamba.data.pairs.shards import make_index
from transmamba.data.pairs.webdataset import WebDataset
from transmamba.errors import UserError

PNG = encoded(pixels(0))


def read(train: Any, **options: Any) -> Any:
    return WebDataset(train=train, **options).build("train")


def everything(source: Any) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(np.asarray(source.image(n)).tobytes(), source.captions(n)) for n in range(len(source))]


@pytest.fixture
def two(tmp_path: Path) -> str:
    return shards(tmp_path, {"train": plain("train")})["train"]


# --- what is in a shard ---


def test_files_of_one_name_are_a_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = {"caption": ["of json", "twice"], "url": "x"}
    write_tar(
        tmp_path / "a.tar",
        [
            ("./deep/v1.0/a.jpg", PNG),  # the folder has a dot, the name none
            ("./deep/v1.0/a.txt", b"\xef\xbb\xbfone line\r\n\r\n  and\xe2\x80\xa8another \n"),
            ("b.JSON", json.dumps(said).encode()),
            ("b.cls", b"3"),
            ("b.WebP", PNG),
            ("b.seg.png", b"no picture of ours"),
            ("c.png", PNG),
            ("c.json", json.dumps(said).encode()),
            ("c.txt", b"of txt"),
            ("._c.png", b"what a Mac writes"),
            ("d.png", PNG),
            ("e.txt", b"of nothing"),
            ("f.png", PNG),
            ("f.txt", b" \n"),
            ("g.png", PNG),
            ("g.json", b"{"),
            ("h.png", PNG),
            ("h.json", b'{"text": "x"}'),
            ("i.png", PNG),
            ("i.txt", b"\xff"),
        ],
    )
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = read(str(tmp_path / "a.tar"))
    assert [source.captions(n) for n in range(len(source))] == [
        ("one line", "and\u2028another"),
        ("of json", "twice"),
        ("of txt",),
    ]
    assert source.skipped == 6 and len(caplog.records) == 1
    for part in (
        f"1 without a file of captions (first: {tmp_path}/a.tar: d)",
        f"1 without a picture (first: {tmp_path}/a.tar: e)",
        f"1 without a caption (first: {tmp_path}/a.tar: f)",
        f"3 whose captions cannot be read (first: {tmp_path}/a.tar: g.json",
    ):
        assert part in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):  # from the index that was kept
        assert read(str(tmp_path / "a.tar")).skipped == 6 and "left out 6 pairs" in caplog.text
    assert read(str(tmp_path / "a.tar"), caption_key="text").captions(1) == ("of txt",)


def test_samples_stand_in_the_order_of_the_shards(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        names = [f"{number}{letter}" for letter in "ab"] if number != 1 else []
        write_tar(
            tmp_path / f"{number}.tar",
            [f for n in names for f in ((f"{n}.png", encoded(pixels(ord(n[1])))), (f"{n}.txt", n.encode()))],
        )
    source = read((str(tmp_path / "2.tar"), str(tmp_path / "[01].tar")))
    assert [source.captions(n) for n in range(4)] == [("2a",), ("2b",), ("0a",), ("0b",)]
    assert np.array_equal(np.asarray(source.image(3)), pixels(ord("b")))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(tmp_path: Path, form: int) -> None:
    name = "a" * 60 + "/" + "b" * 90 if form == tarfile.USTAR_FORMAT else "ö" * 200
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for suffix, content in (("txt", b"said"), ("png", PNG)):
            member = tarfile.TarInfo(f"{name}.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert everything(read(str(tmp_path / "a.tar"))) == [(pixels(0).tobytes(), ("said",))]


# --- the index ---


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are read through."""
    made: list[str] = []

    def counted(shard: str, caption_key: str) -> Any:
        made.append(Path(shard).name)
        return make_index(shard, caption_key)

    monkeypatch.setattr("transmamba.data.pairs.shards.make_index", counted)
    return made


def test_a_shard_is_read_through_once_and_anew_when_it_changes(two: str, indexed: list[str]) -> None:
    before = everything(read(two))
    assert sorted(indexed) == ["train-000.tar", "train-001.tar"]
    assert everything(read(two)) == before and len(indexed) == 2
    changed = Path(expand(two)[1])
    write_tar(changed, samples(plain("test", 3)))
    os.utime(changed, ns=(1, 1))
    after = everything(read(two))
    assert indexed[2:] == ["train-001.tar"] and after[:3] == before[:3] and after[3:] != before[3:]


@pytest.mark.parametrize("damage", ["torn", "empty", "foreign", "flipped"])
def test_a_damaged_index_is_made_anew(two: str, indexed: list[str], damage: str) -> None:
    before = everything(read(two))
    (first, _) = sorted((Path(two).parent / ".transmamba").iterdir())
    whole = first.read_bytes()
    at = whole.index(b"pictures.npy") + 200
    content = {
        "torn": whole[: len(whole) // 2],
        "empty": b"",
        "foreign": b"\x93NUMPY and so on",
        "flipped": whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :],
    }
    first.write_bytes(content[damage])
    assert everything(read(two)) == before and indexed[2:] == ["train-000.tar"]
    assert everything(read(two)) == before and len(indexed) == 3


def test_the_index_may_lie_elsewhere(two: str, indexed: list[str], tmp_path: Path) -> None:
    place = tmp_path / "in" / "here"
    for _ in range(2):
        read(two, index=str(place))
    assert len(indexed) == 2 and len(list(place.iterdir())) == 2
    assert not (Path(two).parent / ".transmamba").exists()


def test_an_index_that_cannot_be_kept_is_told(
    two: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        assert len(read(two, index=str(tmp_path / "file"))) == 6
    assert "train-000.tar: its index is not kept" in caplog.text and "write index: FOLDER" in caplog.text


# --- far away ---


@pytest.fixture
def remote(two: str) -> Iterator[str]:
    """The same shards in fsspec's file system in memory."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in expand(two):
        memory.pipe(f"/{Path(path).name}", Path(path).read_bytes())
    yield "memory://"
    memory.store.clear()


def test_shards_may_lie_in_a_store(two: str, remote: str, indexed: list[str]) -> None:
    expected = everything(read(two))
    for pattern in (f"{remote}/train-{{000..001}}.tar", f"{remote}/train-*.tar"):
        assert everything(read(pattern)) == expected
    assert len(indexed) == 4, "two here, two there: the index of the latter is kept in the cache"


def test_what_a_store_says_is_told_in_a_line(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"train-7.tar does not exist"):
        read(f"{remote}/train-7.tar")
    with pytest.raises(UserError, match=r"none-\*.tar: there is no such file"):
        read(f"{remote}/none-*.tar")
    with pytest.raises(UserError, match=r"^nowhere://a.tar: .*nowhere"):
        read("nowhere://a.tar")


def test_a_store_that_stumbles_is_asked_again(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    source = read(f"{remote}/train-*.tar")
    expected = np.asarray(source.image(2))
    whole, left, pauses = MemoryFileSystem.cat_file, [2], []

    def stumbling(self: Any, *args: Any, **options: Any) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("503 slow down\nand more")
        return whole(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", stumbling)
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    assert np.array_equal(np.asarray(source.image(2)), expected) and pauses == [1.0, 5.0]
    left[0] = 3
    with pytest.raises(UserError, match=r"train-000.tar cannot be read \(503 slow down and more\)"):
        source.image(2)


# --- damage ---


def test_a_shard_that_is_cut_short_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, samples(plain("train", 2)))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    blocks = -(-end // 512) * 512
    for cut in (0, 100, 512, 700, 1024, blocks - 1100, end - 5, blocks - 512, blocks, blocks + 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a.tar(:| cannot be read as a .tar)") as caught:
            read(str(path))
        assert "\n" not in str(caught.value), cut
    path.write_bytes(whole[: blocks + 512])  # one of the two empty blocks at the end
    assert len(read(str(path))) == 2


def test_what_tarfile_would_take_for_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, samples(plain("train", 2)))
    whole = path.read_bytes()
    second = whole.index(b"p0.txt")
    path.write_bytes(whole[:second] + b"X" + whole[second + 1 :])  # a header that does not add up
    with pytest.raises(UserError, match=f"a.tar: is cut short or damaged at byte {second}; fetch it again"):
        read(str(path))
    path.write_bytes(whole + whole)  # what `cat a.tar b.tar` makes
    with pytest.raises(UserError, match="is cut short or damaged at byte"):
        read(str(path))


def test_a_shard_that_changes_under_the_run_is_told(two: str) -> None:
    source = read(two)
    path = Path(expand(two)[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"train-001.tar: \d+ bytes at \d+ in place of \d+; was it changed"):
        source.image(5)
    path.unlink()
    with pytest.raises(UserError, match=r"train-001.tar cannot be read"):
        source.captions(5)


def test_mistakes(tmp_path: Path) -> None:
    write_tar(tmp_path / "twice.tar", [("a.png", PNG), ("a.txt", b"x"), ("a.PNG", PNG)])
    write_tar(tmp_path / "json.tar", [("a.png", PNG), ("a.json", b'{"text": "x"}')])
    write_tar(tmp_path / "none.tar", [])
    (tmp_path / "a.tar.gz").write_bytes(b"")
    for name, says in (
        ("twice.tar", "twice.tar: holds a.PNG twice; samples need names of their own"),
        ("json.tar", r"holds no pairs: 1 whose captions .*json.tar: a.json: no 'caption', only text\)"),
        ("none.tar", "none.tar: holds no pairs$"),
        ("a.tar.gz", "nothing can be sought in what is compressed; unpack it to a .tar"),
        ("b.tar", "b.tar does not exist"),
        ("b*.tar", r"b\*.tar: there is no such file"),
        ("{3..1}.tar", r"\{3..1\} names nothing; write \{0000..0123\} or \{a,b\}"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            read(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="reader webdataset has neither train nor test"):
        WebDataset()


def test_braces_are_filled_in_as_bash_does_it() -> None:
    assert braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert braces("{9..10}{x,,y}") == ["9x", "9", "9y", "10x", "10", "10y"]
    assert braces("plain.tar") == ["plain.tar"]
    for pattern in ("{a,b{1..2}}.tar", "a{1..2.tar", "${UNKNOWN}/a.tar", "a{}.tar"):
        with pytest.raises(UserError, match=r"names nothing; write \{0000..0123\} or \{a,b\}$"):
            expand(pattern)
