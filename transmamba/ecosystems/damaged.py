"""Files of weights that are not whole, as an interrupted copy or download leaves them: told by name and size,
where libraries say neither."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from . import hub
from .folders import model_folder

_AGAIN = "copy or download it again"
_POINTER = b"version https://git-lfs"
# of a zip archive, as torch.save writes; of a pickle, as it wrote before 2020; of a GGUF
_ZIP, _PICKLE, _GGUF = b"PK\x03\x04", b"\x80", b"GGUF"
# safetensors: bytes of the number that says how long the header is, and the longest that its library reads
_LENGTH, _LONGEST = 8, 100_000_000
# the files that a model's folder is read from
_WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "adapter_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model*.bin",
    "open_clip_pytorch_model.bin",
)


def damage(path: Path) -> str | None:
    """What is wrong with a file of weights as a file, and what to do, in one line that names it; None for a
    whole one, and for what is none at all. Of a GGUF and of a pickle, whose lengths nothing says, that it
    may be so: for a file that could not be read."""
    size = path.stat().st_size
    with path.open("rb") as opened:
        begin = opened.read(len(_POINTER))
    name = repr(str(path))
    if not size:
        return f"{name} is empty; {_AGAIN}"
    if begin == _POINTER:
        return f"{name} is a pointer of Git LFS in the place of the weights; run `git lfs pull` there"
    if path.suffix == ".safetensors":
        wanted = _wanted(path, size)
        if wanted in (None, size):
            return None
        return f"{name} is cut off or damaged: it has {size:,} bytes, {_said(wanted)}; {_AGAIN}"
    if begin.startswith(_ZIP):
        whole = zipfile.is_zipfile(path) and _sound(path)
        return None if whole else f"{name} ({size:,} bytes) is cut off or damaged; {_AGAIN}"
    if begin.startswith((_PICKLE, _GGUF)):
        return f"{name} ({size:,} bytes) is perhaps cut off or damaged; {_AGAIN}"
    return None


def damage_of(model: str) -> str | None:
    """The same of the first such file that a model is read from: a folder, a file, or what of a repository
    is on this machine."""
    for path in _files(model):
        if (said := damage(path)) is not None:
            return said
    return None


def _files(model: str) -> Iterator[Path]:
    path = Path(model.removeprefix("local-dir:")).expanduser()
    if path.is_file():
        yield path
        return
    folder = model_folder(path)
    if folder is None:
        repo, _, revision = model.removeprefix("hf-hub:").partition("@")
        if repo.count("/") != 1:
            return
        found = hub.cached(repo, "config.json", revision or None)
        folder = None if found is None else found.parent
    if folder is not None:
        for pattern in _WEIGHTS:
            yield from sorted(folder.glob(pattern))


def _wanted(path: Path, size: int) -> int | None:
    """Bytes that a safetensors file has by its own header; -1 where that cannot be read, None for
    a file that is no safetensors."""
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH), "little")
        if size > _LENGTH and (length > _LONGEST or opened.read(1) != b"{"):
            return None
        if size < _LENGTH + max(length, 1):
            return -1
        opened.seek(_LENGTH)
        try:
            header = json.loads(opened.read(length))
            ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return -1
    return _LENGTH + length + max(ends, default=0)


def _said(wanted: int | None) -> str:
    assert wanted is not None, "the caller has looked"
    return "and its header cannot be read" if wanted < 0 else f"not the {wanted:,} of its own header"


def _sound(path: Path) -> bool:
    """Whether each of an archive's files is what its checksum says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
