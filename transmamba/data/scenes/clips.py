"""Short clips: a scene in which two things happen one after the other, and captions that say in which order.

Frames are scenes too. `observe` reads from a sequence of them what happens, so that whether a caption is true
of a clip, of its frames shuffled or of the clip backwards can be told from the programs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ...errors import UserError
from ..hashing import Draws
from .captions import ground_name, listing, the, the_pair
from .programs import Object, Pair, Scene
from .sampling import Menu, draw_scene, is_free

MOST_IN_CLIP = 5
TEMPLATES = (
    "first {one}, then {two}; {start}",
    "{start}: {one}, and after that {two}",
    "{two}, but only after {one}; {start}",
    "{start}. before {two}, {one}",
    "{start}. {one}. next, {two}",
    "a video on {ground}, {start}: to begin with {one}, later {two}",
    "{one} and afterwards {two}, in a clip that begins so: {start}",
    "in this clip {one} before {two}; {start}",
    "{start}. once {one}, {two}",
    "at the end {two}; at the beginning {one}; {start}",
)
HELD_TEMPLATES = (
    "{start}. the opening move: {one}. the closing move: {two}",
    "watch how {one}, followed by the moment when {two}; {start}",
)

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_ACTIONS = ("moves", "moves", "appears", "vanishes", "swaps")


@dataclass(frozen=True)
class Event:
    """What happens to object number `subject`.

    action: moves (by dx, dy, of which one is 0), appears, vanishes, or swaps (place and size with `other`)
    """

    action: str
    subject: int
    other: int = -1
    dx: float = 0.0
    dy: float = 0.0


@dataclass(frozen=True)
class Clip:
    """Events that follow one another, each of other objects; scene: all objects, also those that appear."""

    scene: Scene
    events: tuple[Event, ...]

    def at(self, time: float) -> Scene:
        """The scene at a time from 0 to len(events): event number k lasts from k to k + 1."""
        objects: list[Object | None] = list(self.scene.objects)
        for number, event in enumerate(self.events):
            _apply(objects, self.scene.objects, event, min(max(time - number, 0.0), 1.0))
        return replace(self.scene, objects=tuple(thing for thing in objects if thing is not None))

    def frames(self, count: int) -> tuple[Scene, ...]:
        """`count` scenes, the first and the last included, one where each event ends.

        Raises UserError for fewer frames than tell the events apart.
        """
        steps, events = count - 1, len(self.events)
        if steps < events:
            raise UserError(f"frames {count}: write at least {events + 1}, for {events} events")
        ends = [round(steps * number / events) for number in range(events + 1)]
        times = [
            number + (step - ends[number]) / (ends[number + 1] - ends[number])
            for number in range(events)
            for step in range(ends[number], ends[number + 1])
        ]
        return tuple(self.at(time) for time in [*times, float(events)])

    def swapped(self) -> Clip:
        """The same events in the opposite order."""
        return replace(self, events=self.events[::-1])


def _apply(objects: list[Object | None], start: Sequence[Object], event: Event, progress: float) -> None:
    """Changes `objects` as the event has after a share `progress` of its time."""
    thing = start[event.subject]
    if event.action == "moves":
        moved = replace(thing, x=thing.x + event.dx * progress, y=thing.y + event.dy * progress)
        objects[event.subject] = moved
    elif event.action == "swaps":
        other = start[event.other]
        objects[event.subject] = _towards(thing, other, progress)
        objects[event.other] = _towards(other, thing, progress)
    else:
        share = progress if event.action == "appears" else 1 - progress
        objects[event.subject] = replace(thing, size=thing.size * share) if share > 0 else None


def _towards(thing: Object, goal: Object, share: float) -> Object:
    """`thing` on its way to the place and size of `goal`."""
    x, y, size = (
        (1 - share) * mine + share * its
        for mine, its in ((thing.x, goal.x), (thing.y, goal.y), (thing.size, goal.size))
    )
    return replace(thing, x=x, y=y, size=size)


# --- drawing a clip ---


def draw_clip(draws: Draws, menu: Menu) -> Clip:
    """Two to five objects that all differ, and two events."""
    while True:
        scene = replace(draw_scene(draws, menu, 2, MOST_IN_CLIP), relation=None)
        if len({thing.pair for thing in scene.objects}) < len(scene.objects):
            continue
        events: list[Event] = []
        for _ in range(20):
            event = _draw_event(draws, scene, events)
            if event is not None:
                events.append(event)
            if len(events) == 2:
                return Clip(scene, tuple(events))


def _draw_event(draws: Draws, scene: Scene, before: Sequence[Event]) -> Event | None:
    """An event of objects that have no part in those before; None where it does not fit."""
    taken = {number for event in before for number in (event.subject, event.other)}
    free = [number for number in range(len(scene.objects)) if number not in taken]
    action = _ACTIONS[draws.below(len(_ACTIONS))]
    if len(free) < 1 + (action == "swaps"):
        return None
    subject = free[draws.below(len(free))]
    if action == "swaps":
        other = [number for number in free if number != subject][draws.below(len(free) - 1)]
        return Event(action, min(subject, other), max(subject, other))
    if action != "moves":
        return Event(action, subject)
    way = tuple(_DIRECTIONS.values())[draws.below(4)]
    length = draws.uniform(0.2, 0.6)
    event = Event(action, subject, dx=way[0] * length, dy=way[1] * length)
    return event if _has_room(scene, event, before) else None


def _has_room(scene: Scene, event: Event, before: Sequence[Event]) -> bool:
    """Whether a move ends within the picture and apart from where all others are, before and after theirs."""
    thing = scene.objects[event.subject]
    moved = replace(thing, x=thing.x + event.dx, y=thing.y + event.dy)
    others = [other for number, other in enumerate(scene.objects) if number != event.subject]
    for earlier in before:
        if earlier.action == "moves":
            one = scene.objects[earlier.subject]
            others.append(replace(one, x=one.x + earlier.dx, y=one.y + earlier.dy))
    edge = moved.size / 2
    within = edge <= moved.x <= 1 - edge and edge <= moved.y <= 1 - edge
    return within and is_free(moved, others)


# --- words ---


def clauses(clip: Clip) -> tuple[str, ...]:
    """What happens, a clause for each event in order."""
    said = []
    for event in clip.events:
        name = the(clip.scene.objects[event.subject])
        if event.action == "moves":
            said.append(f"{name} moves {_direction(event.dx, event.dy)}")
        elif event.action == "swaps":
            said.append(f"{name} and {the(clip.scene.objects[event.other])} swap")
        else:
            said.append(f"{name} {event.action}")
    return tuple(said)


def caption(clip: Clip, template: str) -> str:
    """The clip in words. template: one of TEMPLATES or HELD_TEMPLATES."""
    one, two = clauses(clip)
    ground = ground_name(clip.scene)
    present = clip.at(0.0).objects
    what = listing(present) if present else "nothing"
    return template.format(one=one, two=two, ground=ground, start=f"{what} on {ground} at the start")


def _direction(dx: float, dy: float) -> str:
    """The direction nearest to (dx, dy)."""
    return max(_DIRECTIONS, key=lambda name: dx * _DIRECTIONS[name][0] + dy * _DIRECTIONS[name][1])


def observe(frames: Sequence[Scene]) -> tuple[str, ...]:
    """What happens in the frames, in the words of `clauses`: the same as those of the clip they come from.

    A change that turns back is told again, so that frames out of order do not pass for those in order.
    """
    seen: list[tuple[str, str]] = []
    for before, after in pairwise(frames):
        seen += [change for change in _changes(before, after) if seen[-1:] != [change]]
    return tuple(clause for clause, _ in seen)


def _changes(before: Scene, after: Scene) -> list[tuple[str, str]]:
    """What happens between two frames: each clause, and for a swap which way its first object goes."""
    old: dict[Pair, Object] = {thing.pair: thing for thing in before.objects}
    new: dict[Pair, Object] = {thing.pair: thing for thing in after.objects}
    ways = {
        pair: _direction(new[pair].x - thing.x, new[pair].y - thing.y)
        for pair, thing in old.items()
        if pair in new and abs(thing.x - new[pair].x) + abs(thing.y - new[pair].y) > 1e-6
    }
    if len(ways) == 2:
        one, two = ways
        return [(f"{the(old[one])} and {the(old[two])} swap", ways[one])]
    said = [(f"{the(old[pair])} moves {way}", "") for pair, way in ways.items()]
    for pair in sorted((old.keys() | new.keys()) - set(ways)):
        was, now = (found[pair].size if pair in found else 0.0 for found in (old, new))
        if was != now:
            said.append((f"{the_pair(pair)} {'appears' if now > was else 'vanishes'}", ""))
    return said
