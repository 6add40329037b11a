"""Decoding of encoded pictures, one or all of them; a picture that does not decode is refused or left out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ...core.preprocessing import ToChannels
from ...errors import UserError
from ..cache import cache_folder, write_whole

OnError = Literal["refuse", "skip"]
T = TypeVar("T")

logger = logging.getLogger("transmamba.data")

# Below this many pictures a scan takes seconds and needs no progress bar.
_LONG = 5000
# Items that a thread takes at once: one by one, a million of them cost more to hand out than to do.
_CHUNK = 16
# Seconds an item below which threads cost more than they save: pictures of 32 pixels (0.15 ms) took 1.6 times
# as long in 16 threads as in one on two cores, and many times on 32.
_QUICK = 1e-3
_GRAYSCALE = ("1", "L", "I", "F")
_ADVICE = "; remove it or set on_error: skip"


def decode(picture: Path | bytes, name: str) -> Image.Image:
    """The decoded picture, from a file or from its bytes; of an animated one the first frame, and one that
    EXIF says is turned as it is stored, which is how timm and torchvision read classified images. Raises
    UserError with `name` when that fails."""
    return _load(picture, name, upright=False, advice=_ADVICE)


def decode_upright(picture: Path | bytes, name: str) -> Image.Image:
    """The same, turned upright as its EXIF orientation says: a caption may tell left from right."""
    return _load(picture, name, upright=True, advice="")


def _load(picture: Path | bytes, name: str, *, upright: bool, advice: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            image.load()
            if upright:
                turn_upright(image)
            return image
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # Pillow's plugins raise whatever they meet: OSError, SyntaxError, struct.error ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: does not decode as an image ({reason}){advice}") from error


def turn_upright(image: Image.Image) -> None:
    """Upright, in place. EXIF that cannot be read says nothing of how the picture lies."""
    with contextlib.suppress(OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """(H, W, 1) for grayscale pictures, (H, W, 3) for all others."""
    gray = image.mode in _GRAYSCALE or image.mode.startswith("I;")
    array = np.array(ToChannels(1 if gray else 3)(image))
    return array[..., None] if gray else array


def undecodable(count: int, load: Callable[[int], object], identity: str) -> npt.NDArray[np.int64]:
    """The numbers of the pictures that `load` refuses; logged once, and remembered under `identity`.

    `identity` must change whenever a picture does (names, sizes and times of modification will do).
    """
    record = _record(identity)
    try:
        broken = [int(number) for number in json.loads(record.read_text())]
    except (OSError, ValueError, TypeError):
        refused = in_threads(range(count), lambda number: refusal(number, load), "checking images")
        broken = [number for number, reason in enumerate(refused) if reason]
        _remember(record, broken)
    if broken:
        first = (refusal(broken[0], load) or "").removesuffix(_ADVICE)
        logger.warning(
            "skipping %d of %d images that do not decode; the first: %s", len(broken), count, first
        )
    return np.array(broken, dtype=np.int64)


def in_threads(
    items: Sequence[int] | npt.NDArray[np.int64], work: Callable[[int], T], what: str, *, heavy: bool = False
) -> Iterator[T]:
    """`work` of every item, in order, with a progress bar if they are many, or `heavy`.

    Threads are enough: Pillow decodes and the system looks up files outside the interpreter lock. Where the
    first items are done at once, the rest are done here: threads would mostly wait for the lock.
    """
    done = _threaded(items, work, size=1) if heavy else _timed(items, work)
    yield from _with_progress(done, len(items), what) if heavy or len(items) >= _LONG else done


def _timed(items: Sequence[int] | npt.NDArray[np.int64], work: Callable[[int], T]) -> Iterator[T]:
    taken = []
    for item in items[:_CHUNK]:
        begin = time.perf_counter()
        result = work(int(item))
        taken.append(time.perf_counter() - begin)
        yield result
    rest = items[_CHUNK:]
    if not len(rest):
        return
    if statistics.median(taken) < _QUICK:
        yield from (work(int(item)) for item in rest)
    else:
        yield from _threaded(rest, work, size=_CHUNK)


def _threaded(
    items: Sequence[int] | npt.NDArray[np.int64], work: Callable[[int], T], size: int
) -> Iterator[T]:
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    try:
        for part in pool.map(lambda chunk: [work(int(item)) for item in chunk], chunks):
            yield from part
    finally:  # one that is refused must not wait for all the others
        pool.shutdown(cancel_futures=True)


def refusal(number: int, load: Callable[[int], object]) -> str | None:
    """Why `load` refuses that picture, in a line; None if it does not."""
    try:
        load(number)
    except UserError as error:
        return str(error)
    return None


def refusals(
    items: Sequence[int] | npt.NDArray[np.int64], load: Callable[[int], object], what: str
) -> Iterator[str]:
    """A line for each of these pictures that `load` refuses, in order."""
    refused = in_threads(items, lambda number: refusal(number, load), what)
    yield from (reason for reason in refused if reason)


def _record(identity: str) -> Path:
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder("undecodable") / f"{digest}.json"


def _remember(record: Path, broken: list[int]) -> None:
    try:
        write_whole(record, json.dumps(broken).encode())
    except OSError as error:
        logger.info("the list of undecodable images is not kept: %s", error)


def _with_progress(results: Iterator[T], total: int, what: str) -> Iterator[T]:
    if os.environ.get("RANK", "0") != "0":
        return results
    from rich.console import Console
    from rich.progress import track

    return iter(track(results, what, total, console=Console(stderr=True), transient=True))
