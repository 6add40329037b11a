"""Programs, splits and words: determined by their numbers, apart from one another, and in order."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from transmamba.data.scenes import SPLITS, Clips, Scenes
from transmamba.data.scenes import captions as words
from transmamba.data.scenes import clips as clip_words
from transmamba.data.scenes.clips import clauses, observe
from transmamba.data.scenes.menus import HELD_PAIRS, TRAIN_PAIRS, is_held
from transmamba.data.scenes.programs import (
    COLOURS,
    HELD_KINDS,
    HELD_STYLES,
    KINDS,
    SMALLEST,
    Scene,
    relations,
    triple,
)
from transmamba.errors import UserError

MANY = 3000
SOME = 300


@cache
def drawn(split: str = "train", count: int = MANY) -> tuple[Scene, ...]:
    scenes = Scenes(split=split)
    return tuple(map(scenes.program, range(count)))


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {thing.pair for thing in scene.objects}


def holds_back(scene: Scene) -> set[str]:
    """Which special splits the scene could stand in."""
    found = set()
    if pairs_of(scene) & set(HELD_PAIRS):
        found.add("unseen_pairs")
    if {thing.kind for thing in scene.objects} & set(HELD_KINDS):
        found.add("unseen_objects")
    if scene.style in HELD_STYLES:
        found.add("unseen_style")
    if scene.relation is not None and is_held(*triple(scene.objects, scene.relation)):
        found.add("swapped_relations")
    return found


def test_order_of_access_does_not_matter() -> None:
    one, two = Scenes(count=50), Scenes(count=5000)
    forwards = [(one.program(i), one.caption(i)) for i in range(50)]
    assert [(two.program(i), two.caption(i)) for i in reversed(range(50))] == forwards[::-1]
    assert one.program(3) != Scenes(seed=1).program(3)


def test_another_process_draws_the_same() -> None:
    program = (
        "import hashlib\nfrom transmamba.data.scenes import Clips, Scenes\n"
        "s, c = Scenes(), Clips()\n"
        "print(hashlib.sha256(s.picture(5).tobytes() + c.pictures(6).tobytes()).hexdigest(), s.caption(5))"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p), "PYTHONHASHSEED": "1"}  # not our own
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    scenes, pictures = Scenes(), Clips().pictures(6)
    drawn = hashlib.sha256(scenes.picture(5).tobytes() + pictures.tobytes()).hexdigest()
    assert done.stdout == f"{drawn} {scenes.caption(5)}\n"


@pytest.mark.parametrize("split", ["train", "val", "test", "unseen_templates"])
def test_ordinary_splits_hold_nothing_back(split: str) -> None:
    clips = Clips(split=split)
    assert all(holds_back(scene) == set() for scene in drawn(split))
    assert all(holds_back(clips.program(i).scene) == set() for i in range(SOME))


@pytest.mark.parametrize("split", ["unseen_pairs", "unseen_objects", "unseen_style"])
def test_special_splits_hold_theirs_and_no_other(split: str) -> None:
    scenes, clips = Scenes(split=split), Clips(split=split)
    assert all(holds_back(scenes.program(i)) == {split} for i in range(SOME))
    assert all(holds_back(clips.program(i).scene) == {split} for i in range(SOME))


def test_training_sees_every_colour_kind_and_pair_that_is_not_held() -> None:
    seen = set().union(*map(pairs_of, drawn()))
    assert seen == set(TRAIN_PAIRS)
    assert {colour for colour, _ in seen} == set(COLOURS) and {kind for _, kind in seen} == set(KINDS)
    assert len(HELD_PAIRS) == 12


def test_twins_have_the_same_objects_and_the_opposite_relation() -> None:
    scenes = Scenes(split="swapped_relations")
    for even in range(0, SOME, 2):
        one, two = scenes.program(even), scenes.program(even + 1)
        assert holds_back(one) == {"swapped_relations"} and holds_back(two) == set()
        assert [thing.pair for thing in one.objects] == [thing.pair for thing in two.objects]
        assert two.relation in relations(two.objects) and one.relation not in relations(two.objects)
        first, second = (sorted(scenes.caption(i).split()) for i in (even, even + 1))
        assert first != second and len(first) == len(second)


def test_splits_draw_different_scenes() -> None:
    programs = {split: set(drawn(split, 200)) for split in SPLITS}
    assert len(set().union(*programs.values())) == sum(len(found) for found in programs.values())


def test_templates_are_many_and_held_ones_stay_out_of_training() -> None:
    scene = Scenes().program(4)
    assert len(words.TEMPLATES) >= 10 and not set(words.TEMPLATES) & set(words.HELD_TEMPLATES)
    assert len({words.caption(scene, t) for t in (*words.TEMPLATES, *words.HELD_TEMPLATES)}) == 16
    train, held = Scenes(), Scenes(split="unseen_templates")
    for index in range(SOME):
        known = {words.caption(train.program(index), template) for template in words.TEMPLATES}
        assert {train.caption(index, variant) for variant in range(12)} == known
        new = {words.caption(held.program(index), template) for template in words.HELD_TEMPLATES}
        assert {held.caption(index, variant) for variant in range(4)} == new


def test_captions_identify() -> None:
    """Few of two thousand scenes share the words of another: R@1 can be near 100 %."""
    told = [words.caption(scene, words.TEMPLATES[0]) for scene in drawn("test")[:2000]]
    assert len(set(told)) > 0.97 * len(told)


def test_sizes_and_numbers_cover_their_range() -> None:
    scenes = drawn()
    assert {len(scene.objects) for scene in scenes} == set(range(1, 9))
    sizes = np.array([thing.size for scene in scenes for thing in scene.objects])
    assert sizes.min() >= SMALLEST and (sizes < 0.08).mean() > 0.1 and (sizes > 0.25).mean() > 0.03
    assert len({scene.relation.name for scene in scenes if scene.relation}) == 6


# --- clips ---


@pytest.mark.parametrize("frames", [3, 4, 8, 9])
def test_frames_show_what_the_caption_says(frames: int) -> None:
    clips = Clips(frames=frames)
    for index in range(SOME):
        clip = clips.program(index)
        assert observe(clip.frames(frames)) == clauses(clip)
        assert all(clause in clips.caption(index) for clause in clauses(clip))


@pytest.mark.parametrize("split", SPLITS)
def test_clips_of_few_things_show_no_others(split: str) -> None:
    clips, few = (
        Clips(split=split, pairs=6),
        {pair for n in range(60) for pair in pairs_at(Clips(pairs=6), n)},
    )
    seen = {pair for n in range(60) for pair in pairs_at(clips, n)}
    assert len(few) == 6 and few < set(TRAIN_PAIRS) and few <= seen
    special = {
        "unseen_pairs": set(HELD_PAIRS),
        "unseen_objects": {(c, k) for c in COLOURS for k in HELD_KINDS},
    }
    assert len(seen - few) == (6 if split in special else 0)
    assert seen - few <= special.get(split, set())


def pairs_at(clips: Clips, number: int) -> set[tuple[str, str]]:
    return pairs_of(clips.program(number).scene)


def test_shuffled_frames_make_the_caption_false() -> None:
    generator = np.random.default_rng(0)
    for index in range(SOME):
        clip = Clips().program(index)
        frames = clip.frames(8)
        order = generator.permutation(8)
        if (order != np.arange(8)).any():
            assert observe([frames[i] for i in order]) != clauses(clip)
        assert observe(frames[::-1]) != clauses(clip)


def test_the_order_of_events_is_all_that_tells_twins_apart() -> None:
    clips = Clips(split="swapped_relations")
    for even in range(0, 100, 2):
        one, two = clips.program(even), clips.program(even + 1)
        assert one.scene == two.scene and clauses(one) == clauses(two)[::-1]
        assert one.at(0) == two.at(0) and one.at(2) == two.at(2) and one.at(1) != two.at(1)
        assert clips.caption(even) != clips.caption(even + 1)


def test_clip_templates_are_many_and_say_both_events() -> None:
    clip = Clips().program(0)
    templates = (*clip_words.TEMPLATES, *clip_words.HELD_TEMPLATES)
    told = [clip_words.caption(clip, template) for template in templates]
    assert len(clip_words.TEMPLATES) >= 10 and len(set(told)) == 12
    assert all(clause in text for text in told for clause in clauses(clip))


def test_captions_tell_the_events_in_their_order() -> None:
    """Three phrasings name the second event first, and say so."""
    clip = Clips().program(0)
    one, two = clauses(clip)
    for template in (*clip_words.TEMPLATES, *clip_words.HELD_TEMPLATES):
        told = clip_words.caption(clip, template)
        turned = any(
            cue in told for cue in (f"{two}, but only after", f". before {two}", f"at the end {two}")
        )
        assert (told.index(one) > told.index(two)) == turned, told


# --- mistakes ---


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Scenes(split="trian"), "split 'trian'.*did you mean 'train'"),
        (lambda: Scenes(count=0), "count 0"),
        (lambda: Scenes().picture(0, side=8), "side 8: write"),
        (lambda: Clips(frames=2), "frames 2: write at least 3"),
        (lambda: Clips(pairs=4), "pairs 4: write 5 to 108"),
        (lambda: Clips(pairs=109), "pairs 109: write 5 to 108"),
        (lambda: Clips().program(0).frames(2), "frames 2: write at least 3"),
    ],
)
def test_a_mistake_is_told_in_one_line(make, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_there_is_an_end() -> None:
    with pytest.raises(IndexError):
        Scenes(count=5).program(5)
    assert len(list(map(Scenes(count=5).program, range(5)))) == len(Scenes(count=5))
