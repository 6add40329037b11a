"""How many captions are longer than a model reads, said before they are used."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...core.text import Tokenizer

logger = logging.getLogger("transmamba.data")


def say_truncated(captions: Sequence[str], tokenizer: Tokenizer, split: str) -> None:
    """A line where some are cut, so that nobody finds out from the results."""
    cut = tokenizer(captions).truncated if captions else 0
    if cut:
        logger.warning(
            "%d of %d %s captions that were looked at are longer than the model's %d tokens: they are "
            "cut there",
            cut,
            len(captions),
            split,
            tokenizer.context,
        )
