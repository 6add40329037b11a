"""From a program to words: the same facts in many phrasings.

Every caption lists the objects by colour, kind and count, names the ground, and states one fact: the scene's
relation, or where a single object is; of a tile that fills the picture it says what it is, and no more. The
style has no word. Tiles but for emoji have two names each: a photo of a frog is a frog for short, and a
handwritten 3 a handwritten three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .programs import OPPOSITES, PHOTOGRAPH, PLAIN_GROUNDS, Object, Pair, Scene, is_tile
from .stock import DIGIT, PHOTO

# {objects}: a red circle and two blue stars; {count}: three
# {shapes}: shapes, or objects where one is a tile, or shape or object for one
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

# What they become for a scene that one object fills, each in the place of the one above.
_FILLED = (
    "{objects}",
    "a picture with {objects}",
    "{objects}, close up",
    "this is {objects}",
    "{objects} and nothing else",
    "here is {objects}",
    "{objects} fills the picture",
    "there is {objects}, alone",
    "the picture shows {objects}",
    "nothing but {objects}",
    "we see {objects}",
    "{objects}, as large as the picture",
    "behold {objects}",
    "somebody showed us {objects}",
    "{objects} takes the whole frame",
    "all there is to see is {objects}",
)
_WHEN_FILLED = dict(zip((*TEMPLATES, *HELD_TEMPLATES), _FILLED, strict=True))

_COUNTS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_DIGITS = ("zero", *_COUNTS[1:10])
_PLURALS = {"deer": "deer", "sheep": "sheep", "fish": "fish", "aircraft": "aircraft"}


def caption(scene: Scene, template: str, *, short: bool = False) -> str:
    """The scene in words.

    template: one of TEMPLATES or HELD_TEMPLATES
    short:    call tiles by their shorter names
    """
    if scene.is_filled:
        return _WHEN_FILLED[template].format(objects=listing(scene.objects, short=short))
    fact, turned = facts(scene, short=short)
    return template.format(
        objects=listing(scene.objects, short=short),
        ground=ground_name(scene),
        count=_COUNTS[len(scene.objects)],
        shapes=_sort(scene),
        fact=fact,
        turned=turned,
    )


def _sort(scene: Scene) -> str:
    """What objects of the scene are: `shapes`."""
    word = "object" if any(is_tile(thing.kind) for thing in scene.objects) else "shape"
    return word if len(scene.objects) == 1 else word + "s"


def facts(scene: Scene, *, short: bool = False) -> tuple[str, str]:
    """One fact, said in two ways: the relation from either side, or the place of a single object.

    Where several objects have no relation to state, how many they are.
    """
    if scene.relation is not None:
        subject, other = (
            the(scene.objects[n], short=short) for n in (scene.relation.subject, scene.relation.other)
        )
        name = scene.relation.name
        return f"{subject} is {name} {other}", f"{other} is {OPPOSITES[name]} {subject}"
    if len(scene.objects) == 1:
        only, place = the(scene.objects[0], short=short), where(scene.objects[0])
        return f"{only} is {place}", f"{place} is {only}"
    count = _COUNTS[len(scene.objects)]
    return f"there are {count} {_sort(scene)}", f"the number of {_sort(scene)} is {count}"


def the(thing: Object, *, short: bool = False) -> str:
    """`the red circle`, `the photo of a frog`, for short `the frog`."""
    return the_pair(thing.pair, short=short)


def the_pair(pair: Pair, *, short: bool = False) -> str:
    """The same of a colour and a kind."""
    return f"the {_called(pair[0], _noun(pair[1], short))}"


def where(thing: Object) -> str:
    """In which of the nine parts of the picture the centre is: `in the upper left`."""
    row = ("upper", "middle", "lower")[min(2, int(thing.y * 3))]
    column = ("left", "centre", "right")[min(2, int(thing.x * 3))]
    return "in the very middle" if (row, column) == ("middle", "centre") else f"in the {row} {column}"


def listing(objects: Sequence[Object], *, short: bool = False) -> str:
    """`a red circle, two blue stars and an orange ring`, in the order in which the objects stand."""
    counts: Counter[Pair] = Counter(thing.pair for thing in objects)
    parts = [_several(pair, count, short) for pair, count in counts.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _several(pair: Pair, count: int, short: bool) -> str:
    colour, kind = pair
    if count > 1:
        return f"{_COUNTS[count]} {_called(colour, _nouns(kind, short))}"
    return with_article(_called(colour, _noun(kind, short)))


def with_article(words: str) -> str:
    """`a red circle`, `an orange ring`"""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def _called(colour: str, noun: str) -> str:
    return f"{colour} {noun}" if colour else noun


def _noun(kind: str, short: bool) -> str:
    """`circle`, `photo of a frog`, for short `frog`."""
    if short and kind.startswith(PHOTO):
        return kind.removeprefix(PHOTO).split(" ", 1)[1]
    if short and kind.startswith(DIGIT) and kind.removeprefix(DIGIT) in "0123456789":
        return DIGIT + _DIGITS[int(kind.removeprefix(DIGIT))]
    return kind


def _nouns(kind: str, short: bool) -> str:
    """The same for several: `circles`, `photos of frogs`, `frogs`."""
    if kind.startswith(PHOTO) and not short:
        return f"photos of {plural(_noun(kind, True))}"
    return plural(_noun(kind, short))


def plural(noun: str) -> str:
    """`circles`, `crosses`"""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun[-1] == "y" and noun[-2:-1] not in ("a", "e", "o", "u"):
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh", "zero")) else "s")


def ground_name(scene: Scene) -> str:
    """`a white background`, `grass`, `a photograph`."""
    name = scene.ground.name
    if name == PHOTOGRAPH:
        return "a photograph"
    return f"a {name} background" if name in PLAIN_GROUNDS else name
