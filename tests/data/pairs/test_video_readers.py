"""Readers of videos: each format in miniature, the contract of a `VideoSource`, and batches of frames."""

from __future__ import annotations

import csv
import json
import logging
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair_files import LAYOUTS, SPLITS
from video_clips import numbers, write_video

from transmamba.config.registry import PAIRS
from transmamba.core.preprocessing import Preprocessing
from transmamba.core.text import Tokens
from transmamba.data.images.augment import Augment
from transmamba.data.images.synthetic import Synthetic
from transmamba.data.pairs.bad import Forgiving
from transmamba.data.pairs.batches import EvalPairs, TrainPairs
from transmamba.data.pairs.scene_tiles import Tiles
from transmamba.data.pairs.shuffled import ShuffledFrames
from transmamba.data.pairs.source import video_source
from transmamba.data.scenes import Clips
from transmamba.errors import UserError

Captioned = dict[str, dict[str, tuple[str, ...]]]  # split -> video -> captions

CONTENT: Captioned = {
    split: {f"{split}{n}": tuple(f"{split} {n}, wording {k}" for k in range(1 + n % 2)) for n in range(4)}
    for split in SPLITS
}
FIRST = {video: 4 * s + n for s, split in enumerate(SPLITS) for n, video in enumerate(CONTENT[split])}


def write_videos(folder: Path, suffix: str = ".mp4") -> None:
    """Three frames each, of levels that tell the video."""
    for video, first in FIRST.items():
        write_video(folder / f"{video}{suffix}", 3, first=first)


def videos(place: Path) -> dict[str, Any]:
    write_videos(place / "clips")
    for split, content in CONTENT.items():
        with (place / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["video", "caption"])
            writer.writerows((f"clips/{name}.mp4", text) for name, said in content.items() for text in said)
    return {split: str(place / f"{split}.csv") for split in SPLITS}


def msrvtt(place: Path) -> dict[str, Any]:
    write_videos(place / "clips")
    listed = [
        {"video_id": video, "split": split, "category": 3, "url": "", "start time": 0.0, "end time": 1.0}
        for split, content in CONTENT.items()
        for video in content
    ]
    sentences = [
        {"sen_id": 0, "video_id": video, "caption": text}
        for content in CONTENT.values()
        for video, said in content.items()
        for text in said
    ]
    path = place / "MSRVTT_data.json"
    path.write_text(json.dumps({"info": {}, "videos": listed, "sentences": sentences[::-1]}))
    return {"annotations": str(path), "videos": str(place / "clips")}


def didemo(place: Path) -> dict[str, Any]:
    write_videos(place / "clips", ".mov")
    for split, content in CONTENT.items():
        found = [
            {"video": f"{video}.mov", "description": text, "times": [[0, 1]], "annotation_id": 7}
            for video, said in content.items()
            for text in said
        ]
        (place / f"{split}_data.json").write_text(json.dumps(found))
    return {split: str(place / f"{split}_data.json") for split in SPLITS} | {"videos": str(place / "clips")}


VIDEOS: dict[str, Callable[[Path], dict[str, Any]]] = {"videos": videos, "msrvtt": msrvtt, "didemo": didemo}


def test_every_reader_is_tested() -> None:
    assert set(PAIRS) == set(LAYOUTS) | {"scenes"} | set(VIDEOS) | {"scene_clips"}


def everything(source: Any) -> list[Any]:
    return [
        ([np.asarray(frame).tobytes() for frame in source.frames(n)], source.captions(n))
        for n in range(len(source))
    ]


@pytest.fixture(params=[*VIDEOS, "scene_clips"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "scene_clips":
        return PAIRS["scene_clips"](side=16, frames=3, count_train=4, count_test=4)
    return PAIRS[request.param](**VIDEOS[request.param](tmp_path), frames=2)


@pytest.mark.parametrize("split", SPLITS)
def test_a_source_is_videos_with_captions_in_an_order_that_stays(reader: Any, split: str) -> None:
    source = reader.build(split)
    videos = video_source(source)
    assert videos is not None and len(videos) == 4 and videos.skipped == 0 and videos.array() is None
    found = everything(videos)
    assert found == everything(reader.build(split)) == everything(pickle.loads(pickle.dumps(videos)))
    assert all(len(frames) == videos.num_frames for frames, _ in found)
    middle = np.asarray(videos.image(1))
    assert np.array_equal(middle, np.asarray(videos.frames(1)[videos.num_frames // 2]))
    with pytest.raises(IndexError):
        videos.frames(4)
    if reader.name != "scene_clips":
        for n, (video, said) in enumerate(CONTENT[split].items()):
            assert numbers(videos.frames(n)) == [FIRST[video], FIRST[video] + 2]
            if reader.name == "msrvtt":  # in the order of the file's sentences
                said = said[::-1]
            assert videos.captions(n) == ((" ".join(said),) if reader.name == "didemo" else said)
    with pytest.raises(UserError, match="split 'dev'"):
        reader.build("dev")
    with pytest.raises(UserError, match="frames 0: write"):
        type(reader)(**{**vars(reader), "frames": 0})


def test_what_is_missing_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, make in VIDEOS.items():
        options = make(tmp_path / name)
        next((tmp_path / name / "clips").glob("train1.*")).unlink()
        with caplog.at_level(logging.WARNING, "transmamba.data"):
            source = PAIRS[name](**options).build("train")
        assert len(source) == 3 and source.skipped == (1 if name == "didemo" else 2)
        assert "whose video is not there" in caplog.text
        caplog.clear()
        for path in (tmp_path / name / "clips").iterdir():
            path.unlink()
        with pytest.raises(UserError, match=r"none of its 4 videos is in .*do captions and videos belong"):
            PAIRS[name](**options).build("train")


def test_a_split_of_1k_a_is_its_table_and_the_rest_is_for_training(tmp_path: Path) -> None:
    options = msrvtt(tmp_path)
    table = tmp_path / "MSRVTT_JSFUSION_test.csv"
    table.write_text("key,vid_key,video_id,sentence\nret0,msr1,test2,only this\nret1,msr2,test0,and that\n")
    reader = PAIRS["msrvtt"](**options, test_pairs=str(table))
    test, train = reader.build("test"), reader.build("train")
    assert [test.captions(n) for n in range(len(test))] == [("only this",), ("and that",)]
    assert numbers(test.frames(0))[0] == FIRST["test2"]
    names = [Path(train.pairs.name(n)).stem for n in range(len(train))]
    assert names == ["train0", "train1", "train2", "train3", "test1", "test3"]
    limited = PAIRS["msrvtt"](**options, test_pairs=str(table), train_splits=("train",)).build("train")
    assert len(limited) == 4
    with pytest.raises(UserError, match="no split 'validate'"):
        PAIRS["msrvtt"](**options, train_splits=("validate",)).build("train")


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    options = didemo(tmp_path)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"videos": []}))
    with pytest.raises(UserError, match=r"wrong\.json: is no list; expected DiDeMo's"):
        PAIRS["didemo"](train=str(wrong), videos=options["videos"]).build("train")
    with pytest.raises(UserError, match=r"no list 'sentences'.*expected MSR-VTT's"):
        PAIRS["msrvtt"](annotations=str(wrong), videos=options["videos"]).build("train")
    wrong.write_text(json.dumps([{"video": "a.mp4"}]))
    with pytest.raises(UserError, match="records 0 has no 'description'"):
        PAIRS["didemo"](train=str(wrong), videos=options["videos"]).build("train")
    with pytest.raises(UserError, match="is no folder"):
        PAIRS["didemo"](train=options["train"], videos=str(wrong)).build("train")


def test_shuffled_frames_are_never_in_order_and_videos_differ_in_theirs() -> None:
    """Of three frames five orders are left, and each comes about as often."""

    class Numbered:
        num_frames = 3

        def frames(self, index: int) -> list[int]:
            return [0, 1, 2]

    source: Any = Numbered()
    orders = [tuple(ShuffledFrames(source).frames(n)) for n in range(500)]  # type: ignore[arg-type]
    counts = Counter(orders)
    assert len(counts) == 5 and (0, 1, 2) not in counts and min(counts.values()) > 60
    assert orders == [tuple(ShuffledFrames(source).frames(n)) for n in range(500)]  # type: ignore[arg-type]


def test_a_clip_has_no_tile_that_fills_it() -> None:
    with pytest.raises(UserError, match=r"tiles\.filling is 0\.9; no clip shows one"):
        PAIRS["scene_clips"](tiles=Tiles(filling=0.9, pictures=Synthetic(num_train=4, num_test=4)))
    with pytest.raises(UserError, match="pairs 3: write 5 to"):
        PAIRS["scene_clips"](pairs=3)


def test_clips_are_the_clips_and_shuffled_ones_their_frames_in_another_order() -> None:
    options: dict[str, Any] = dict(side=16, frames=6, count_test=20, captions_test=3, seed=2)
    plain = PAIRS["scene_clips"](**options).build("test")
    shuffled = ShuffledFrames(plain)
    clips = Clips(split="test", count=20, side=16, seed=2, frames=6)
    moved = 0
    for n in range(20):
        pictures = clips.pictures(n)
        assert np.array_equal(np.stack([np.asarray(frame) for frame in plain.frames(n)]), pictures)
        other = np.stack([np.asarray(frame) for frame in shuffled.frames(n)])
        assert sorted(frame.tobytes() for frame in other) == sorted(frame.tobytes() for frame in pictures)
        moved += not np.array_equal(other, pictures)
        assert plain.captions(n) == shuffled.captions(n) == tuple(clips.caption(n, k) for k in range(3))
    assert moved == 20 and len(shuffled) == 20 and shuffled.num_frames == 6
    other, wanted = (np.asarray(one.image(3)) for one in (ShuffledFrames(plain), shuffled))
    assert np.array_equal(other, wanted) and np.array_equal(other, np.asarray(shuffled.frames(3)[3]))
    with pytest.raises(UserError, match="captions_test 3: write a number from 1 to 2"):
        PAIRS["scene_clips"](split_test="unseen_templates", captions_test=3)


# --- batches ---

LOOKS = Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


class Words:
    """A tokenizer as good as any."""

    context = 4

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def __call__(self, texts: Any) -> Tokens:
        return Tokens(torch.tensor([[len(text)] * 4 for text in texts]).reshape(-1, 4), None, 0)


def folder_of(tmp_path: Path, lengths: dict[str, int]) -> Any:
    for name, length in lengths.items():
        write_video(tmp_path / name, length)
    rows = "".join(f"{name},a film called {name}\n" for name in lengths)
    (tmp_path / "train.csv").write_text("video,caption\n" + rows)
    return PAIRS["videos"](train=str(tmp_path / "train.csv"), frames=4).build("train")


def test_batches_hold_frames_and_which_are_real(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"long.mp4": 9, "short.mp4": 2})
    batch = EvalPairs(source, LOOKS, Words()).batch(np.array([1, 0]))
    frames, mask = batch.inputs["frames"], batch.inputs["frames_mask"]
    assert frames.shape == (2, 4, 3, 16, 16) and "image" not in batch.inputs
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    transform = LOOKS.eval_transform()
    assert torch.equal(frames[0, 1], transform(source.frames(1)[1])) and not frames[0, 2:].any()
    assert torch.equal(frames[1], torch.stack([transform(frame) for frame in source.frames(0)]))
    assert batch.counts["samples"] == 2 and batch.targets["group"].tolist() == [1, 0]
    nothing = EvalPairs(source, LOOKS, None).batch(np.zeros(0, dtype=np.int64))
    assert nothing.inputs["frames"].shape == (0, 4, 3, 16, 16)
    assert nothing.inputs["frames_mask"].shape == (0, 4)


def test_the_frames_of_a_video_are_changed_alike() -> None:
    source = PAIRS["scene_clips"](side=32, frames=3, count_train=6).build("train")
    still = type(source.frames(0)[0])

    class Still:
        """Each clip's first frame, three times."""

        num_frames, skipped = 3, 0
        captions, array = source.captions, source.array

        def __len__(self) -> int:
            return 6

        def image(self, index: int) -> still:  # type: ignore[valid-type]
            return self.frames(index)[1]

        def frames(self, index: int) -> list[still]:  # type: ignore[valid-type]
            return source.frames(index)[:1] * 3

    augment = Augment(random_resized_crop_scale=(0.3, 1.0), hflip=True, color_jitter=0.5, erasing=1.0)
    train = TrainPairs(Still(), np.arange(6), LOOKS, Words(), augment, seed=1)
    pairs = np.stack([np.arange(6) // 3, np.arange(6)], axis=1)
    frames = train.batch(pairs).inputs["frames"]
    assert torch.equal(frames[:, 0], frames[:, 1]) and torch.equal(frames[:, 0], frames[:, 2])
    plain = TrainPairs(Still(), np.arange(6), LOOKS, Words(), Augment(), seed=1).batch(pairs).inputs["frames"]
    assert all((frames[n] - plain[n]).abs().max() > 0.1 for n in range(6))
    assert torch.equal(train.batch(pairs[2:3]).inputs["frames"][0], frames[2])


def test_what_a_batch_depends_on_names_the_frames(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"a.mp4": 9, "b.mp4": 9})
    digest = TrainPairs(source, np.arange(2), LOOKS, None, Augment(), 0).identity()
    assert digest["frames"] == 4
    write_video(tmp_path / "b.mp4", 9, first=1)
    assert TrainPairs(source, np.arange(2), LOOKS, None, Augment(), 0).identity() != digest


def test_a_bad_video_is_replaced_with_its_caption_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = folder_of(tmp_path, {f"{n}.mp4": 5 for n in range(6)})
    (tmp_path / "2.mp4").write_bytes((tmp_path / "2.mp4").read_bytes()[:300])
    (tmp_path / "4.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"2\.mp4: has no stream of video"):
        EvalPairs(source, LOOKS, None).batch(np.arange(6))
    forgiving = Forgiving(source, 2)
    with caplog.at_level(logging.WARNING, "transmamba.data"):
        batch = TrainPairs(forgiving, np.arange(6), LOOKS, Words(), Augment(), 0).batch(
            np.stack([np.zeros(6, dtype=np.int64), np.arange(6)], axis=1)
        )
    assert batch.inputs["frames_mask"].all() and forgiving.bad == 2
    assert caplog.text.count("another video takes the place of one that is bad") == 2
    for n in (2, 4):
        number = forgiving.number(n)
        assert number not in (2, 4) and forgiving.captions(n) == (f"a film called {number}.mp4",)
        assert np.array_equal(np.asarray(forgiving.image(n)), np.asarray(source.image(number)))
    with pytest.raises(UserError, match=r"2 of 6 videos do not decode \(.*2\.mp4.*4\.mp4"):
        few = Forgiving(source, 1)
        [few.frames(n) for n in range(6)]
