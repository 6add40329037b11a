"""Images with classes, as evaluators of a model that has no head for them read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.batch import Batch
from ...core.preprocessing import Preprocessing
from ...core.task import Pass
from ...errors import UserError
from ..stream import in_order, load
from .batches import EvalImages, shown
from .decoding import refusals
from .source import ImageSource

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """data: a configured reader of images
    preprocessing: of the model that is measured
    """

    data: Any
    preprocessing: Preprocessing
    _sources: dict[str, ImageSource] = field(default_factory=dict, init=False, repr=False, compare=False)

    def source(self, split: str) -> ImageSource:
        """Read once. Raises UserError as the reader does."""
        if split not in self._sources:
            self._sources[split] = self.data.build(split)
        return self._sources[split]

    def batches(self, split: str, passing: Pass) -> Iterator[Batch]:
        """This process's share of all images of a split in order, each once, as evaluation sees them."""
        source = self.source(split)
        parts = in_order(np.arange(len(source)), passing.batch_size, passing.rank, passing.world)
        return load(
            EvalImages(source, self.preprocessing), parts, passing.batch_size, workers=passing.workers
        )

    def class_names(self) -> tuple[str, ...]:
        """Of the test split, as people say them: without the underscores of folders' names."""
        return tuple(name.replace("_", " ") for name in self.source("test").classes)

    def check_classes(self) -> None:
        """Raises UserError where training and test images have different classes."""
        train, test = self.source("train").classes, self.source("test").classes
        if train != test:
            raise UserError(
                f"the probe's train split has {len(train)} classes and its test split {len(test)}, which are "
                "not the same; give both the same classes"
            )

    def images(self, indices: Indices, split: str = "test") -> npt.NDArray[np.uint8]:
        """Pictures to look at, (N, H, W, 3): resized and cropped as for evaluation, not normalised."""
        return shown(self.source(split), indices, self.preprocessing)

    def look_through(self, split: str, what: str) -> Iterator[str]:
        """Decodes every image of a split, where they lie in files; a line for each that does not decode."""
        source = self.source(split)
        if source.array() is None:
            yield from refusals(range(len(source)), source.image, f"checking {what} images")
