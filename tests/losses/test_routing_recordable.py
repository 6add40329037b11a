"""What routes and balances, as a recorded step runs it: on tensors that lie on a GPU in name alone."""

from __future__ import annotations

import pytest
import torch
from on_the_device import OnTheDevice
from torch._subclasses.fake_tensor import FakeTensorMode

from transmamba.core.batch import Batch
from transmamba.core.layout import Sequence
from transmamba.core.output import Output, Stream
from transmamba.distillation.signals import Signals
from transmamba.layers.experts import ExpertsShape, Router, route
from transmamba.losses.balance import Balance
from transmamba.losses.router_z import RouterZ

ROWS, LENGTH, WIDTH, COUNT = 4, 10, 8, 4
ROUTERS = {"decoder": {(0, ""): COUNT}}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("capacity", [None, 1.25])
@pytest.mark.parametrize("each", [1, 2])
def test_a_router_and_its_losses_wait_for_nothing(each: int, capacity: float | None, padded: bool) -> None:
    shape = ExpertsShape(width=WIDTH, neurons=16, count=COUNT, each=each, normalised=each > 1)
    empty = Batch({}, {}, torch.arange(ROWS), {"samples": ROWS, "tokens": ROWS * LENGTH})
    with FakeTensorMode(), torch.no_grad():
        losses = [
            kind().build_routed(ROUTERS) for kind in (Balance, RouterZ)
        ]  # brought there, as training does
        for loss in losses:
            loss.to("cuda")
        assert set(losses[0].state_dict()) == {"running"}  # what checkpoints have
        with torch.device("cuda"):
            router = Router(WIDTH, COUNT)
            x, mask = torch.randn(ROWS, LENGTH, WIDTH), torch.ones(ROWS, LENGTH, dtype=torch.bool)
        with OnTheDevice() as watch:
            routed = route(router(x), shape, capacity, mask if padded else None)
            stream = Stream(Sequence(), mask if padded else None)
            stream.mixers[0] = routed.parts()
            signals = Signals(Output({"decoder": stream}), None, empty, {})
            terms = [loss(signals) for loss in losses]
    assert watch.operations > 20
    assert all(term.sum.device.type == "cuda" for term in terms)
