"""Small random decoders, and the hybrids that start from them."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transmamba import adapt_teacher, convert
from transmamba.students.hybrid_lm.model import HybridStudent

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
from decoders_made import SHAPE, WORDS, make

__all__ = [
    "WITHOUT_US",
    "WITH_US",
    "WORDS",
    "hybrid",
    "llama",
    "make",
    "moved",
    "quiet_texts",
    "qwen3",
    "relative",
    "texts",
    "with_us",
]

# of a program in a fresh process that loads a student by transformers, its first and last lines
WITHOUT_US = dict(first="", last="assert not [n for n in sys.modules if n.startswith('transmamba')]")
WITH_US = dict(first="import transmamba", last="")


def with_us() -> bool:
    """Whether the installed transformers needs us for Mamba-2's norms: its class knows no groups."""
    from transformers.models.bamba.modeling_bamba import BambaRMSNormGated

    return "group_size" not in inspect.signature(BambaRMSNormGated.__init__).parameters


def llama(**changes: Any) -> Any:
    """A Llama of `SHAPE`, with norms and biases that are not what they begin with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _moved(LlamaForCausalLM, LlamaConfig(**{**SHAPE, **changes}))


def qwen3(**changes: Any) -> Any:
    """A Qwen3, alike."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _moved(Qwen3ForCausalLM, Qwen3Config(**{**SHAPE, "head_dim": 8, **changes}))


def _moved(kind: Any, config: Any) -> Any:
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def hybrid(model: Any, *attention_layers: int, **options: Any) -> HybridStudent:
    """Its student with attention in these layers alone."""
    student, _ = convert(
        adapt_teacher(model), "hybrid_lm", attention_layers=list(attention_layers), **options
    )
    assert isinstance(student, HybridStudent)
    return student


@torch.no_grad()
def moved(student: Any, by: float = 0.05) -> Any:
    """The same away from its start, where convolutions read one token, and steps and skips are all alike."""
    seeded = torch.Generator().manual_seed(4)
    for parameter in student.parameters():
        parameter.add_(by * torch.randn(parameter.shape, generator=seeded))
    return student


def texts(rows: int = 2, length: int = 30, seed: int = 0) -> Tensor:
    """(rows, length) words, none of them special."""
    return torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def quiet_texts(model: Any) -> None:
    """Let generation of a model with these few words not warn of what it has not."""
    model.generation_config.pad_token_id = 0


@torch.no_grad()
def relative(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).abs().max() / wanted.abs().max())
