"""A student is not written by a model that transformers makes otherwise of its tensors."""

from __future__ import annotations

from typing import Any

import llavas
import pytest
import torch
import torch.nn.functional as F
import transformers
from hybrids import hybrid, llama, moved, texts
from torch import Tensor
from transformers.models.bamba.modeling_bamba import BambaRMSNormGated

from transmamba import UserError


def student_of(kind: str) -> tuple[Any, dict[str, Tensor]]:
    if kind == "hybrid_lm":
        return moved(hybrid(llama(), 1)).eval(), {"text": texts()}
    student = llavas.llava(llavas.make(), image=dict(kind="vim"), decoder=dict(kind="hybrid"))
    return llavas.moved(student).eval(), llavas.together(left=True)


def whole_norm(self: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
    """As transformers before 5.23."""
    gated = hidden_states.float() * F.silu(gate.float())
    return self.weight * F.rms_norm(gated, gated.shape[-1:], None, self.variance_epsilon)


@pytest.mark.parametrize("kind", ("hybrid_lm", "llava"))
def test_a_norm_of_all_heads_together_is_refused_before_a_word_is_written(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, inputs = student_of(kind)
    with monkeypatch.context() as patched:
        patched.setattr(BambaRMSNormGated, "forward", whole_norm)
        with pytest.raises(UserError, match="makes another model of this student's tensors") as refused:
            student.generate(inputs, 4)
    assert transformers.__version__ in str(refused.value) and "\n" not in str(refused.value)
    assert student.generate(inputs, 4).shape[0] == len(inputs["text"])  # and is asked again


@pytest.mark.parametrize("kind", ("hybrid_lm", "llava"))
@pytest.mark.parametrize("weights", (torch.float32, torch.bfloat16))
def test_rounding_is_no_other_model(kind: str, weights: torch.dtype) -> None:
    student, inputs = student_of(kind)
    student.to(weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        assert student.generate(inputs, 4).shape[0] == len(inputs["text"])


def test_modes_of_its_parts_stay() -> None:
    student, inputs = student_of("hybrid_lm")
    student.train()
    student.model["embed_tokens"].eval()
    student.generate(inputs, 2)
    assert student.training and not student.model["embed_tokens"].training and student.lm_head.training
