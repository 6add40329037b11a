"""The 1,797 handwritten digits (8 x 8) that come with scikit-learn: real data without a download.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...config.registry import READERS
from ...errors import UserError
from ..subset import fold_of, hold_out
from .source import ArraySource, ImageSource, check_split

_FULL_SCALE = 16  # the data set's white


@READERS.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits:
    """A stratified split of scikit-learn's digits: a share for testing, or one fold of a cross validation.

    test_fraction: share of each class that makes up the test split
    folds, fold:   instead, the test split is fold number `fold` (from 0) of `folds`
    split_seed:    which split; the same seed always gives the same one
    """

    test_fraction: float = 0.2
    split_seed: int = 0
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.test_fraction < 1.0:
            raise UserError(f"test_fraction {self.test_fraction}: must be above 0 and below 1")
        if self.folds is None and self.fold != 0:
            raise UserError(f"fold {self.fold} without folds: write folds: 5 as well")
        if self.folds is not None and not 2 <= self.folds <= 100:
            raise UserError(f"folds {self.folds}: must be between 2 and 100")
        if self.folds is not None and not 0 <= self.fold < self.folds:
            raise UserError(f"fold {self.fold}: must be between 0 and {self.folds - 1}")

    def build(self, split: str) -> ImageSource:
        """Raises UserError when scikit-learn is not installed."""
        check_split(split)
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError("data reader digits needs scikit-learn: pip install 'transmamba[data]'") from None
        data = load_digits()
        labels = data.target.astype(np.int64)
        pixels = np.rint(data.images * (255 / _FULL_SCALE)).astype(np.uint8)[..., None]
        if self.folds is not None:
            in_test = fold_of(labels, self.folds, self.split_seed) == self.fold
            train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
        else:
            train, test = hold_out(labels, self.test_fraction, self.split_seed)
        chosen = train if split == "train" else test
        return ArraySource(pixels[chosen], labels[chosen], tuple(str(name) for name in data.target_names))
