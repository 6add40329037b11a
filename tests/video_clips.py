"""Small videos, written by PyAV: frame n is grey all over, of a level that tells n."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

av: Any = pytest.importorskip("av", reason="needs pip install 'transmamba[video]'")

STEP = 8  # grey levels between two frames
CODECS = {"mpeg4.mp4": "mpeg4", "h264.mp4": "h264", "vp9.webm": "libvpx-vp9"}


def grey(number: int) -> np.ndarray:
    return np.full((32, 48, 3), 10 + STEP * number, dtype=np.uint8)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray] | int = 12,
    codec: str = "mpeg4",
    times: Sequence[float] | None = None,
    first: int = 0,
    **options: str,
) -> Path:
    """Ten frames a second, or at `times` in seconds; a number of frames means grey ones from `first` on."""
    pictures = [grey(first + n) for n in range(frames)] if isinstance(frames, int) else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path, *, with_video: bool = False) -> Path:
    """A second of silence; with_video: beside a stream of video that has no frames."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        if with_video:
            video = file.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for _ in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def numbers(frames: Sequence[Image.Image]) -> list[int]:
    """Which frames these are; codecs change a grey level by little."""
    levels = [(np.asarray(frame).mean() - 10) / STEP for frame in frames]
    assert all(abs(level - round(level)) < 0.4 for level in levels), levels
    return [round(level) for level in levels]
