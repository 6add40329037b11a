"""Labelled images: readers for what users have, and the deterministic stream of batches made from them.

Each reader is a configuration dataclass in the registry READERS; `build(split)` returns an `ImageSource`.
"""

from .augment import Augment
from .batch import Batch
from .preprocessing import Preprocessing
from .source import ArraySource, ImageSource

__all__ = ["ArraySource", "Augment", "Batch", "ImageSource", "Preprocessing"]
