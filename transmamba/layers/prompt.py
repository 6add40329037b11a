"""A batch's prompts, cut out of their texts: what may be read of a text before it is answered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """tokens:  (B, M, E) the prompts' tokens side by side from position 0 on, zeros behind
    lengths: (B,) int64, how many of the M are real"""

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, language: Tensor, mask: Tensor, *, longest: int | None = None) -> Prompt:
        """The tokens of `language` (B, L, E) where `mask` (B, L), bool, is set, in their order.

        Left padding, right padding and answers, also those between two turns, are gone from the result,
        which therefore depends on neither what they hold nor where they stand; no gradient reaches them.
        M, at least 1, is the longest prompt's length, which asks the device, once; a caller that knows a
        bound gives it as `longest`, and then M = min(longest, L), which waits for nothing.

        Raises UserError for shapes or dtypes that do not fit; RuntimeError where a prompt exceeds `longest`.
        """
        _check(language, mask)
        if not language.shape[1]:  # one token of padding: scans and their gradients need no case of their own
            language, mask = F.pad(language, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        lengths = mask.sum(1)
        if longest is None:
            longest = int(lengths.max()) if len(lengths) else 1
        else:
            torch._assert_async((lengths <= longest).all(), f"a prompt is longer than longest={longest}")
        # stable: the prompt's tokens first, in the order that they have in the text
        order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, longest)]
        real = torch.arange(order.shape[1], device=mask.device) < lengths.unsqueeze(1)
        tokens = language.gather(1, order.unsqueeze(-1).expand(-1, -1, language.shape[2]))
        return cls(tokens=tokens.masked_fill(~real.unsqueeze(-1), 0), lengths=lengths)

    @property
    def real(self) -> Tensor:
        """(B, M) bool, which of the tokens are no padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths.unsqueeze(1)

    def mean(self, values: Tensor) -> Tensor:
        """(B, 1, X), the mean over each prompt of `values` (B, M, X); 0 for a prompt without tokens."""
        total = values.masked_fill(~self.real.unsqueeze(-1), 0).sum(1, keepdim=True)
        return total / self.lengths.clamp(min=1).view(-1, 1, 1)


def _check(language: Tensor, mask: Tensor) -> None:
    if language.dim() != 3:
        raise UserError(f"language: shape {tuple(language.shape)}, expected (B, L, E), a text's embeddings")
    if mask.dtype != torch.bool:
        raise UserError(f"mask: dtype {mask.dtype}, expected torch.bool, True on the prompt's tokens")
    if mask.shape != language.shape[:2]:
        wanted = tuple(language.shape[:2])
        raise UserError(f"mask: shape {tuple(mask.shape)}, expected {wanted}, (B, L) of language")
