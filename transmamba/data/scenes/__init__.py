"""Scenes with captions: pairs of pictures and texts without limit, each a function of (seed, index).

`programs` says what is in a picture and `sampling` draws programs; `draw` makes pixels of one, with `tiles`
for objects that are pictures themselves, out of a `stock`; `captions` says it in words; `clips` lets objects
move, appear and swap; `questions` asks about them, with `asking`, `asking_one`, `asking_two` and
`question_words`; `menus` holds combinations back from training. Start with `Scenes`:

    scenes = Scenes(split="train", count=100_000, side=64)
    scenes.picture(7), scenes.caption(7), scenes.program(7)
"""

from .clips import Clip, Event
from .programs import Ground, Object, Relation, Scene
from .splits import SPLITS, Clips, Scenes
from .stock import Stock

__all__ = ["SPLITS", "Clip", "Clips", "Event", "Ground", "Object", "Relation", "Scene", "Scenes", "Stock"]
