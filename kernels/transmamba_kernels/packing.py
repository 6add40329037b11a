"""Rows that hold several sequences, or end in padding: masks and ids that all operators read alike."""

from __future__ import annotations

import torch
from torch import Tensor


def seq_idx_from_cu_seqlens(cu_seqlens: Tensor, length: int) -> Tensor:
    """(1, length) int32: which sequence each token of one packed row belongs to.

    cu_seqlens: (S + 1,), integers from 0 to `length`, where each sequence begins and the last one ends;
    tokens behind the last end count as one sequence more. (Elsewhere a negative id is padding.)

    Raises ValueError for a shape that does not fit.
    """
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens: shape {tuple(cu_seqlens.shape)}, expected (S + 1,) with S of at least 1"
        )
    tokens = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True, out_int32=True).unsqueeze(0)


def real_tokens(length: int, seq_idx: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """(B, L) bool: False for padding, which are the tokens behind a row's `lengths` and those whose id is
    negative; None without either.
    """
    real = None if lengths is None else _in_rows(lengths, length)
    if seq_idx is None:
        return real
    return seq_idx >= 0 if real is None else real & (seq_idx >= 0)


def zero_padding(tensor: Tensor, real: Tensor | None) -> Tensor:
    """(B, L, ...) with zeros, and no gradient, in the padding; the tensor itself where `real` is None."""
    if real is None:
        return tensor
    return tensor.masked_fill(~real.view(*real.shape, *[1] * (tensor.dim() - 2)), 0)


def segments(seq_idx: Tensor | None, lengths: Tensor | None, reverse: bool = False) -> Tensor | None:
    """(B, L) int32: how many sequences have begun up to each token behind the first that is met, in the order
    of the scan; None without `seq_idx`.

    Two tokens share a state if and only if they share this number, which their ids alone do not say: an id
    may come back. Padding goes with what was met before it, so that no state is emptied on the way through
    it; what is met behind a negative id begins a sequence.
    """
    if seq_idx is None:
        return None
    changes = seq_idx[:, 1:] != seq_idx[:, :-1]
    if lengths is not None:
        changes = changes & _in_rows(lengths, seq_idx.shape[1])[:, 1:]
    begins = torch.zeros(seq_idx.shape, dtype=torch.int32, device=seq_idx.device)
    if reverse:
        begins[:, :-1] = changes & (seq_idx[:, :-1] >= 0)
        return begins.flip(1).cumsum(1, dtype=torch.int32).flip(1)
    begins[:, 1:] = changes & (seq_idx[:, 1:] >= 0)
    return begins.cumsum(1, dtype=torch.int32)


def _in_rows(lengths: Tensor, length: int) -> Tensor:
    """(B, L) bool: True for the tokens in front of each row's right padding."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)
