"""The warm-up of sparse dimension tuning: which numbers of the scan are worth training.

SDT, https://arxiv.org/abs/2410.09016: all of A_log is trained for a while; channels are ranked by the sum of
the squares of what that changed, and states within a channel by the square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import UserError
from .families.mixer import Place
from .layer import MambaPeftLayer
from .merge import layers_of
from .methods.sdt import SDT


def choose(model: Any, losses: Iterable[Callable[[], Tensor]], rate: float = 1e-2) -> None:
    """Choose what the active adapter's `sdt` trains: a step a loss, on deltas that are thrown away.

    losses: functions that run `model` on a batch and give its loss, one after the other
    rate:   of AdamW in these steps

    In Mamba-2 the rows of B and C are tried, too: columns are chosen by what changed there. Processes that
    train together (torch.distributed) all call it, with as many losses each: gradients are their mean, and
    so all choose the same. Raises UserError where the adapter has no `sdt`, or one that is trained already,
    where no losses are given, and where no gradient reaches what is tried, as under reentrant checkpoints.
    """
    chosen: list[tuple[MambaPeftLayer, str, SDT]] = []
    for layer in layers_of(model).values():
        for name in layer.active_adapters:
            chosen += [(layer, name, m) for m in layer.methods.get(name, ()) if isinstance(m, SDT)]
    if not chosen:
        raise UserError("no active adapter has the method 'sdt'; write it among the methods")
    for layer, name, method in chosen:
        refuse_trained(layer, name, method)
    trials = {}
    for layer, _, method in chosen:
        for place in tried(layer, method):
            whole = torch.zeros(
                layer.mixer.shapes[place.path], device=next(layer.base_layer.parameters()).device
            )
            layer.trial.setdefault(place.path, whole.requires_grad_())
            trials[id(layer.trial[place.path])] = layer.trial[place.path]
    try:
        optimizer, count = torch.optim.AdamW(list(trials.values()), lr=rate, weight_decay=0.0), 0
        for loss in losses:
            optimizer.zero_grad()
            gradients = everywhere(loss, list(trials.values()))
            for tensor, gradient in zip(trials.values(), averaged(gradients), strict=True):
                tensor.grad = gradient
            optimizer.step()
            count += 1
        if not count:
            raise UserError("no losses were given to choose by; give one a step")
        for layer, name, method in chosen:
            _write(layer, name, method)
            agree(layer, name, method)
    finally:
        for layer, _, _ in chosen:
            layer.trial.clear()


def refuse_trained(layer: MambaPeftLayer, name: str, method: SDT) -> None:
    """UserError where deltas have been trained: they belong to the numbers that were chosen before."""
    tensors = layer.transmamba_adapters[name].of(method)
    if any(bool(tensor.any()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise UserError(
            f"the sdt of adapter {name!r} is trained already, and what is chosen now would move its deltas "
            "to other numbers; call choose before training, or on a new adapter"
        )


def gradients_of(loss: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of the loss by the tensors alone, so that what else is trained gets none. Raises UserError where one is
    not reached: reentrant checkpoints hide the graph within from anything but a whole backward."""
    found: Sequence[Tensor | None] = [None]
    if loss.requires_grad:
        try:
            found = torch.autograd.grad(loss, tensors, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
    reached = [gradient for gradient in found if gradient is not None]
    if len(reached) < len(tensors):
        raise UserError(
            "sdt cannot choose: no gradient of a loss reaches some mixers; turn gradient checkpointing off, "
            "or give it use_reentrant=False; if it is off, write losses that run this model"
        )
    return reached


def together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def everywhere(loss: Callable[[], Tensor], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """`gradients_of` its loss. Raises UserError, too, where another process has none: it will not be there
    when these are added up."""
    try:
        made = gradients_of(loss(), tensors)
    except Exception:
        all_well(False, tensors[0].device)
        raise
    if not all_well(True, tensors[0].device):
        raise UserError("sdt cannot choose: another process failed at its loss; its own message says why")
    return made


def all_well(well: bool, device: torch.device) -> bool:
    """Whether it goes well in all processes that train together."""
    if not together():
        return well
    flag = torch.tensor(int(well), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)


def averaged(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Over the processes that train together: each has looked at batches of its own."""
    if not together():
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = (flat / distributed.get_world_size()).split([gradient.numel() for gradient in gradients])
    return [part.view_as(like) for part, like in zip(parts, gradients, strict=True)]


def agree(layer: MambaPeftLayer, name: str, method: SDT) -> None:
    """The first process's choice everywhere: equal sums may still round, or be tied, otherwise elsewhere, and
    DDP is told to leave buffers alone."""
    if not together():
        return
    for tensor in layer.transmamba_adapters[name].of(method).values():
        if not tensor.is_floating_point():
            distributed.broadcast(tensor, src=0)


def tried(layer: MambaPeftLayer, method: SDT) -> list[Place]:
    """Whole parameters: A_log, and where it has one number a head what makes B and C."""
    places = [method.rates(layer.mixer, suffix) for suffix in layer.mixer.directions]
    if layer.mixer.heads is not None:
        places += [method.reader(layer.mixer, "b", suffix) for suffix in layer.mixer.directions]
    return places


@torch.no_grad()
def _write(layer: MambaPeftLayer, name: str, method: SDT) -> None:
    mixer, tensors = layer.mixer, layer.transmamba_adapters[name].of(method)
    for suffix in mixer.directions:
        key, rates = f"{method.name}{suffix}", method.rates(mixer, suffix)
        squares = layer.trial[rates.path].square().view(mixer.matrix(rates))
        rows, states = tensors[f"{key}_rows"], tensors[f"{key}_states"]
        rows.copy_(squares.sum(dim=1).topk(len(rows)).indices.sort().values)
        states.copy_(squares[rows].topk(states.shape[1], dim=1).indices.sort(dim=1).values)
        columns = tensors[f"{key}_columns"]
        if mixer.heads is None:  # the channels of the scan are the columns that B and C read
            columns.copy_(rows)
            continue
        moved = torch.zeros(mixer.matrix(method.reader(mixer, "b", suffix))[1], device=rows.device)
        for what in ("b", "c"):
            place = method.reader(mixer, what, suffix)
            moved += layer.trial[place.path][place.start : place.stop].square().sum(dim=0)
        columns.copy_(moved.topk(len(columns)).indices.sort().values)
