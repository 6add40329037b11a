"""Frames of video files: which they are, upright, and what is said of damaged ones."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_clips import CODECS, numbers, write_sound, write_video

from transmamba.data.videos import video_frames
from transmamba.errors import UserError


@pytest.mark.parametrize("name", CODECS)
def test_frames_are_the_middles_of_equal_parts(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, 12, CODECS[name])
    for count in (1, 2, 3, 5, 8, 11, 12):
        # of n frames at one rate that at time t is number floor(n t)
        assert numbers(video_frames(path, count)) == [int((k + 0.5) / count * 12) for k in range(count)]
    frame = video_frames(path, 1)[0]
    assert frame.mode == "RGB" and frame.size == (48, 32)


@pytest.mark.parametrize("name", CODECS)
def test_a_short_video_has_all_its_frames_once(name: str, tmp_path: Path) -> None:
    for total in (1, 3):
        path = write_video(tmp_path / f"{total}{name}", total, CODECS[name])
        assert numbers(video_frames(path, 8)) == list(range(total))


def test_time_decides_not_the_number_of_frames(tmp_path: Path) -> None:
    """A picture that stands still for long counts for long."""
    times = [0.0, 0.1, 0.2, 0.9, 1.0]
    for name in ("vp9.webm", "h264.mp4"):
        path = write_video(tmp_path / name, 5, CODECS[name], times)
        assert numbers(video_frames(path, 2)) == [2, 2]


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    left_red = np.zeros((32, 48, 3), np.uint8)
    left_red[:, :24, 0] = 255
    path = write_video(tmp_path / "phone.mp4", [left_red] * 3)
    content = bytearray(path.read_bytes())
    # ISO 14496-12, 8.3.2: the matrix lies 40 bytes behind the version of a track's header; this one turns by
    # a quarter, clockwise
    place = content.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000], dtype=">i4")
    content[place : place + 36] = matrix.tobytes()
    path.write_bytes(content)
    frame = np.asarray(video_frames(path, 1)[0]).astype(int)
    assert frame.shape == (48, 32, 3)
    assert frame[:20, :, 0].min() > 200 and frame[28:, :, 0].max() < 60  # what was left is above


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8])
def test_what_is_cut_off_is_refused(name: str, share: float, tmp_path: Path) -> None:
    whole = write_video(tmp_path / name, 20, CODECS[name]).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=rf"{name}: (is cut off|does not decode as a video|has no stream)"):
        video_frames(tmp_path / name, 4)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_one_whose_header_stands_first_is_refused_when_cut(share: float, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20, "mpeg4", movflags="faststart")
    content = path.read_bytes()
    data = content.index(b"mdat")
    path.write_bytes(content[: data + int(share * (len(content) - data))])
    with pytest.raises(UserError, match=r"a\.mp4: is cut off: .* seconds that its header says"):
        video_frames(path, 4)


def test_damage_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20, "h264", movflags="faststart")
    content = bytearray(path.read_bytes())
    data = content.index(b"mdat") + 4
    content[data:] = np.random.default_rng(0).integers(0, 256, len(content) - data, np.uint8).tobytes()
    path.write_bytes(content)
    (tmp_path / "text.mp4").write_text("<html>404</html>" * 50)
    (tmp_path / "folder.mp4").mkdir()
    for name in ("a.mp4", "text.mp4", "folder.mp4", "nothing.mp4"):
        with pytest.raises(UserError, match=rf"{name}: does not decode as a video \(.+\)$"):
            video_frames(tmp_path / name, 4)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no stream of video"):
        video_frames(write_sound(tmp_path / "a.mp4"), 4)
    with pytest.raises(UserError, match="holds no frames of video"):
        video_frames(write_sound(tmp_path / "a.mkv", with_video=True), 4)


def test_without_pyav_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'transmamba\[video\]'"):
        video_frames(tmp_path / "a.mp4", 4)
