"""From a program to words: the same facts in many phrasings.

Every caption lists the objects by colour, kind and count, names the ground, and states one fact: the scene's
relation, or where a single object is. The style has no word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .programs import OPPOSITES, PLAIN_GROUNDS, Object, Pair, Scene

# {objects}: a red circle and two blue stars; {count}: three; {shapes}: shapes, or shape for one
# {fact}: the red circle is above the green ring; {turned}: the green ring is below the red circle
TEMPLATES = (
    "a picture of {objects} on {ground}; {fact}",
    "{objects} on {ground}, where {fact}",
    "on {ground} there is {objects}, and {turned}",
    "an image with {objects}: {fact}. it is drawn on {ground}",
    "{count} {shapes} on {ground}: {objects}. {turned}",
    "{fact} in this drawing of {objects} on {ground}",
    "we see {objects}; {turned}. the background is {ground}",
    "with {ground} behind, {objects}; note that {fact}",
    "{turned}. the picture shows {objects} on {ground}",
    "a drawing on {ground} with {count} {shapes}, namely {objects}, in which {fact}",
    "here {fact}; shown is {objects}, all on {ground}",
    "background: {ground}. content: {objects}. detail: {turned}",
)
HELD_TEMPLATES = (
    "somebody put {objects} on {ground} so that {turned}",
    "look at {ground}: it carries {objects}, {count} in all, while {fact}",
    "{ground} serves as backdrop for {objects}; observe how {fact}",
    "the artist chose {objects}. {turned}, and {ground} fills the rest",
)

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_PLURALS = {"cross": "crosses"}


def caption(scene: Scene, template: str) -> str:
    """The scene in words. template: one of TEMPLATES or HELD_TEMPLATES."""
    fact, turned = facts(scene)
    return template.format(
        objects=listing(scene.objects),
        ground=ground_name(scene),
        count=_COUNTS[len(scene.objects)],
        shapes="shape" if len(scene.objects) == 1 else "shapes",
        fact=fact,
        turned=turned,
    )


def facts(scene: Scene) -> tuple[str, str]:
    """One fact, said in two ways: the relation from either side, or the place of a single object.

    Where several objects have no relation to state, how many they are.
    """
    if scene.relation is not None:
        subject, other = (scene.objects[n] for n in (scene.relation.subject, scene.relation.other))
        name = scene.relation.name
        return (
            f"{the(subject)} is {name} {the(other)}",
            f"{the(other)} is {OPPOSITES[name]} {the(subject)}",
        )
    if len(scene.objects) == 1:
        only = scene.objects[0]
        return f"{the(only)} is {where(only)}", f"{where(only)} is {the(only)}"
    count = _COUNTS[len(scene.objects)]
    return f"there are {count} shapes", f"the number of shapes is {count}"


def the(thing: Object) -> str:
    """`the red circle`."""
    return f"the {thing.colour} {thing.kind}"


def where(thing: Object) -> str:
    """In which of the nine parts of the picture the centre is: `in the upper left`."""
    row = ("upper", "middle", "lower")[min(2, int(thing.y * 3))]
    column = ("left", "centre", "right")[min(2, int(thing.x * 3))]
    return "in the very middle" if (row, column) == ("middle", "centre") else f"in the {row} {column}"


def listing(objects: Sequence[Object]) -> str:
    """`a red circle, two blue stars and an orange ring`, in the order in which the objects stand."""
    counts: Counter[Pair] = Counter(thing.pair for thing in objects)
    parts = [_several(pair, count) for pair, count in counts.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _several(pair: Pair, count: int) -> str:
    colour, kind = pair
    if count == 1:
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}"
    return f"{_COUNTS[count]} {colour} {_PLURALS.get(kind, kind + 's')}"


def ground_name(scene: Scene) -> str:
    """`a white background`, `grass`."""
    name = scene.ground.name
    return f"a {name} background" if name in PLAIN_GROUNDS else name
