"""Where pictures stand in texts: a text has N tokens of one number for each of its row's pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import UserError


def rows_of_pictures(inputs: Mapping[str, Tensor], token: int, tokens: int) -> Tensor | None:
    """`image_row` (P,) int64, the row of each picture; None without pictures. Where nothing says it, it
    follows from the texts.

    token:  the number that stands for a picture's tokens
    tokens: of a picture, N
    Raises UserError for a row whose text has another number of them than its pictures make, and for pictures
    that do not come row by row. A step on a GPU ends there, with an error of CUDA's: batches of the task have
    been looked at before. In a recorded step nothing can be asked, and nothing is.
    """
    text, images, rows = inputs["text"], inputs.get("image"), inputs.get("image_row")
    count = 0 if images is None else len(images)
    marks = (text == token).sum(dim=1)
    if text.is_cuda and torch.cuda.is_current_stream_capturing():
        return rows
    if rows is None:
        found = int(marks.sum())
        if found != count * tokens or bool((marks % tokens).any()):
            raise UserError(
                f"the texts have {found} image tokens ({marks.tolist()} by rows), their {count} pictures "
                f"make {count * tokens}, {tokens} each; give each picture its tokens in its row's text"
            )
        each = marks // tokens
        return torch.arange(len(text), device=text.device).repeat_interleave(each) if count else None
    wanted = tokens * torch.zeros_like(marks).index_add_(0, rows, torch.ones_like(rows))
    ordered = (rows[1:] >= rows[:-1]).all()
    if _on_the_device(text):
        torch._assert_async(ordered, "pictures do not come row by row")
        torch._assert_async((wanted == marks).all(), "image tokens of a row are not those of its pictures")
        return rows
    if not ordered:
        raise UserError(
            f"image_row is {rows.tolist()}; pictures stand row by row, in the order of their marks: sort them"
        )
    if not torch.equal(wanted, marks):
        row = int((wanted != marks).nonzero()[0])
        raise UserError(
            f"row {row} has {int(marks[row])} image tokens, its {int(wanted[row]) // tokens} pictures make "
            f"{int(wanted[row])}, {tokens} each; give each picture its tokens in its row's text"
        )
    return rows


def _on_the_device(text: Tensor) -> bool:
    """Whether it is asked without waiting for the answer: at each step the GPU would be idle meanwhile."""
    return text.is_cuda and torch.is_grad_enabled()
