"""Tensors in pieces of rows, one of each process, as FSDP2's checkpoints hold them: what so many processes
have saved is read by as many, or by another number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Saved = dict[str, Any]
_NAME = "pieces_{}.pt"


def write_pieces(saved: Saved, folder: Path, rank: int) -> None:
    torch.save(saved, folder / _NAME.format(rank))


def read_pieces(folder: Path) -> list[Saved]:
    """What every process has saved, in the order of ranks; mapped, so that nobody reads more of the others'
    than the rows it takes."""
    count = len(list(folder.glob(_NAME.format("*"))))
    if not count:
        raise ValueError("it holds no pieces of FSDP2")
    files = [folder / _NAME.format(rank) for rank in range(count)]
    return [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]


def piece_of(value: Any) -> Tensor:
    """This process's piece, in memory of its own, or the whole of what is not in pieces."""
    return (value.to_local() if is_in_pieces(value) else value).detach().clone()


def whole_of(value: Any) -> Tensor:
    """A tensor in pieces, put together."""
    return value.full_tensor() if is_in_pieces(value) else value


def is_in_pieces(value: Any) -> bool:
    return hasattr(value, "to_local")


def cut_again(pieces: Sequence[Tensor], own: Any) -> Any:
    """The tensor that these are all the pieces of, in pieces as `own` is: this process takes the rows that
    are its own now, whoever has saved them."""
    from torch.distributed.tensor import DTensor

    mesh, rows = own.device_mesh, own.shape[0]
    size = -(-rows // mesh.size())  # FSDP2 cuts as torch.chunk does
    first = min(mesh.get_local_rank() * size, rows)
    last, start, mine = min(first + size, rows), 0, []
    for piece in pieces:
        mine.append(piece[max(first - start, 0) : max(last - start, 0)])
        start += len(piece)
    local = torch.cat(mine).to(own.device)
    return DTensor.from_local(
        local, mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
    )


def weights_of(every: Sequence[Saved], own: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The saved weights and buffers, in pieces as `own` are. Raises ValueError for the first that one of both
    lacks, or has in another shape."""
    # a buffer is each process's: one that was not there before takes the first's
    mine = every[rank if rank < len(every) else 0]["weights"]
    found = {}
    for name in sorted(mine.keys() | own.keys()):
        value = own.get(name)
        pieces = [each["weights"][name] for each in every] if name in mine else []
        if not is_in_pieces(value):
            pieces = [mine[name]] if name in mine else []
        there, here = _shape(pieces), None if value is None else list(value.shape)
        if there != here:
            raise ValueError(f"{name} is {there} there, {here} here")
        found[name] = cut_again(pieces, value) if is_in_pieces(value) else mine[name]
    return found


def _shape(pieces: Sequence[Tensor]) -> list[int] | None:
    """Of the tensor that these are all the pieces of; None of none."""
    if not pieces:
        return None
    first = list(pieces[0].shape)
    return [sum(len(piece) for piece in pieces), *first[1:]] if first else first


def state_of(saved: Sequence[Mapping[str, Tensor]], parameter: Any) -> dict[str, Any]:
    """The optimizer's state of a parameter, of what every process has saved of it, in pieces as it is; empty
    where it was never moved."""
    moved = [state for state in saved if state]
    if not moved:
        return {}
    return {
        key: cut_again([state[key] for state in moved], parameter) if value.dim() else value.clone()
        for key, value in moved[0].items()
    }
