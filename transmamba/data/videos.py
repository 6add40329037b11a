"""Frames of video files, evenly spread over each, decoded by PyAV; what is damaged is refused by name."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError

# A file whose streams all end before this share of the duration in its header was cut off.
_WHOLE = 0.95
_HEADED = ("mp4", "matroska")  # kinds of files whose header says the duration; of others it is estimated


def video_frames(path: Path, count: int) -> list[Image.Image]:
    """`count` frames of a video in order, upright: those on screen in the middles of as many equal parts of
    its duration. Of a video with no more than `count` frames all, each once.

    When its frames are shown is read from the packets, for a header may not say (WebM) or say something else.
    Raises UserError without PyAV, and for a file that cannot be read, is cut off, does not decode, or has no
    video or no frames.
    """
    av = _library()
    try:
        with av.open(str(path), metadata_errors="replace") as file:
            span = _Span.of(file, str(path))
        with av.open(str(path), metadata_errors="replace") as file:
            stream = _stream(file, str(path))
            stream.codec_context.thread_count = 1  # data workers are many already
            found = list(_picked(_decoded(file, stream), span.middles(count)))
            frames = [_upright(frame) for frame in found]
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: does not decode as a video ({error.strerror or error})") from None
    if not frames:
        raise _nothing(str(path))
    return frames


def check_installed() -> None:
    """Raises UserError where PyAV is not installed."""
    _library()


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("videos are decoded by PyAV: pip install 'transmamba[video]'") from None
    return av


def _nothing(path: str) -> UserError:
    return UserError(f"{path}: holds no frames of video")


def _stream(file: Any, path: str) -> Any:
    """The first stream of video that is no cover of a song."""
    import av

    for stream in file.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise UserError(f"{path}: has no stream of video")


@dataclass(frozen=True)
class _Span:
    """When a video's frames are shown, in seconds, sorted, and when the last of them ends."""

    times: list[float]
    end: float

    @classmethod
    def of(cls, file: Any, path: str) -> _Span:
        """From its packets, none of which is decoded. Raises UserError for a file that is cut off."""
        stream, times, ends = _stream(file, path), [], [0.0]
        length = 0.0
        for packet in file.demux():
            stamp = packet.dts if packet.pts is None else packet.pts
            if not packet.size or stamp is None:  # the last one of each stream is empty
                continue
            start, lasts = (float(ticks * packet.time_base) for ticks in (stamp, packet.duration or 0))
            ends.append(start + lasts)
            if packet.stream_index == stream.index and not packet.is_discard:
                times.append(start)
                length = lasts
        if not times:
            raise _nothing(path)
        cls._check_whole(file, max(ends), path)
        times.sort()
        if not length and len(times) > 1:
            length = (times[-1] - times[0]) / (len(times) - 1)
        return cls(times, times[-1] + length)

    @staticmethod
    def _check_whole(file: Any, end: float, path: str) -> None:
        headed = any(kind in file.format.name for kind in _HEADED)
        stated = (file.duration or 0) / 1e6  # AV_TIME_BASE: microseconds
        if headed and end < _WHOLE * stated:
            raise UserError(
                f"{path}: is cut off: {end:.2f} of the {stated:.2f} seconds that its header says are there"
            )

    def middles(self, count: int) -> list[float]:
        """The times of `count` frames; of fewer, where there are no more, all of them."""
        if len(self.times) <= count:
            return self.times
        start, part = self.times[0], (self.end - self.times[0]) / count
        # the frame on screen then, whose own time decoded frames are compared with exactly
        shown = (bisect.bisect_right(self.times, start + (n + 0.5) * part) - 1 for n in range(count))
        return [self.times[place] for place in shown]


def _decoded(file: Any, stream: Any) -> Iterator[tuple[float | None, Any]]:
    for frame in file.decode(stream):
        yield frame.time, frame


def _picked(frames: Iterator[tuple[float | None, Any]], times: list[float]) -> Iterator[Any]:
    """The frame that is shown at each of the times, which rise; decoding stops behind the last one."""
    place, shown = 0, None
    for time, frame in frames:
        while shown is not None and place < len(times) and time is not None and times[place] < time - 1e-6:
            yield shown
            place += 1
        if place == len(times):
            return
        shown = frame
    if shown is not None:
        yield from [shown] * (len(times) - place)


def _upright(frame: Any) -> Image.Image:
    """The picture as it is to be shown: cameras that are held upright store it turned."""
    image: Image.Image = frame.to_image()
    turned = round(frame.rotation) % 360  # degrees, against the clock
    return image.rotate(turned, expand=True) if turned else image
