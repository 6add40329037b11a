"""Readers for what users have, and the deterministic stream of batches made from them.

Each reader of images is a configuration dataclass in the registry READERS; `build(split)` returns an
`ImageSource`.
"""

from ..core.batch import Batch
from ..core.preprocessing import Preprocessing
from .images.augment import Augment
from .images.source import ArraySource, ImageSource

__all__ = ["ArraySource", "Augment", "Batch", "ImageSource", "Preprocessing"]
