"""Whole views of text: padded, packed, read token by token; towers that have nothing to read are not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from text_views import text_view
from torch import Tensor

from transmamba import adapt_teacher
from transmamba.core.output import Capture
from transmamba.views.view import View

TEXT = torch.randint(11, (2, 4), generator=torch.Generator().manual_seed(0))


def logits_of(view: View, **inputs: Tensor) -> Tensor:
    logits = view.run(inputs).logits
    assert logits is not None
    return logits()


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_word(side: str, rms: bool) -> None:
    """Learnt positions included: those of a text that is padded before it begin at 0 all the same."""
    view = text_view(rms, "untied")
    padding, real = torch.full((2, 2), 3), slice(2, 6) if side == "left" else slice(0, 4)
    padded = torch.cat([padding, TEXT] if side == "left" else [TEXT, padding], dim=1)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, real] = True
    found = logits_of(view, text=padded, text_mask=mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, real], logits_of(view, text=TEXT))
    assert view.run({"text": padded, "text_mask": mask}).stream.mask is mask


def test_a_packed_row_is_its_documents() -> None:
    view = text_view(False, "tied")
    packed = logits_of(view, text=TEXT.view(1, 8), text_segment=torch.tensor([[0] * 4 + [1] * 4]))
    torch.testing.assert_close(packed.view(2, 4, 11), logits_of(view, text=TEXT))


def test_words_never_read_those_to_come() -> None:
    view, other = text_view(False, "tied"), TEXT.clone()
    other[:, 2] = (other[:, 2] + 1) % 11
    changed = (logits_of(view, text=TEXT) != logits_of(view, text=other)).any(dim=2)
    assert changed.tolist() == [[False, False, True, True]] * 2


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_logits_by_rows_are_the_whole(rows: int) -> None:
    """Each with the last norm in it."""
    view = text_view(False, "tied")
    logits = view.run({"text": TEXT}).logits
    assert logits is not None
    parts = torch.cat([made for _, made in logits.chunks(rows)])
    torch.testing.assert_close(parts, logits().flatten(0, 1))
    assert view.vocabulary == 11


def test_a_tower_without_its_input_is_not_run(make_vit: Callable[..., Any]) -> None:
    picture, text = adapt_teacher(make_vit(embed_dim=8, num_heads=2)).view, text_view(False, "tied")
    both = View({**picture.towers, **text.towers}, dict(text.heads))
    images = torch.randn(2, 1, 8, 8)
    capture = {name: Capture(hidden=frozenset({1})) for name in ("image", "text")}
    seen: set[str] = set()
    output = both.run({"image": images}, capture, lambda tower, *_: seen.add(tower))
    assert set(output.streams) == seen == {"image"} and output.logits is None
    output = both.run({"image": images, "text": TEXT}, capture)
    assert set(output.streams) == {"image", "text"} and output.logits is not None
    alone = text.run({"text": TEXT}, capture)
    assert torch.equal(output.streams["text"].hidden[1], alone.stream.hidden[1])
