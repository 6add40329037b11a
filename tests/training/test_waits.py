"""What a recorded step cannot hold is refused before the first step, not after some."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from transmamba.core.tower import StudentSpec
from transmamba.errors import UserError
from transmamba.students.moe_mamba import MoeMamba
from transmamba.training.step import Stepper


def stepper(graphed: bool, **options: Any) -> Stepper:
    model = MoeMamba(experts=4, blocks=2, width=32, **options).build(StudentSpec())
    distiller = nn.ModuleDict({"student": model})
    strategy: Any = SimpleNamespace(accelerator=None, model=model, distiller=distiller, optimizer=None)
    return Stepper(strategy, seed=0, change=lambda batch, seed: batch, graphed=graphed)


def test_experts_within_mamba_are_not_recorded() -> None:
    with pytest.raises(UserError) as told:
        stepper(graphed=True, variant="inner")
    assert str(told.value) == (
        "trainer.cuda_graphs is true, but the loop over experts of student.variant inner waits for how many "
        "tokens chose each, which a recorded step cannot; write trainer.cuda_graphs=false"
    )
    assert stepper(graphed=False, variant="inner").graphed is None
    for variant in ("sequential", "parallel"):
        assert stepper(graphed=True, variant=variant).graphed is not None
