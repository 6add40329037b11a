"""What language models say of each token that is asked for: of all models at once, a few tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.output import Logits, wide
from ..errors import UserError

# tokens whose logits exist at a time
CHUNK = 2048


def log_probabilities(
    said: Mapping[str, Logits], tokens: Tensor, most: int
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """(which of `tokens`, log-probabilities (n, V) of each model for what follows them), chunk by chunk.

    tokens: (N,) which of the B * L tokens
    most:   how many tokens a batch has at most, on any process: from it alone follows how often each head is
        called, so that processes that gather a spread head's weights do so together

    Raises UserError where two models have vocabularies of different sizes.
    """
    number = max(1, -(-most // CHUNK))
    size = -(-len(tokens) // number)
    for k in range(number):
        part = slice(min(k * size, len(tokens)), min((k + 1) * size, len(tokens)))
        at = tokens[part] if part.stop > part.start else tokens.new_zeros(1)
        made = {name: _log_softmax(logits, at) for name, logits in said.items()}
        sizes = {name: log.shape[-1] for name, log in made.items()}
        if len(set(sizes.values())) > 1:
            told = " and ".join(f"{name} {size:,}" for name, size in sizes.items())
            raise UserError(f"the models have vocabularies of different sizes: {told} words; compare others")
        if part.stop > part.start:
            yield part, made


def _log_softmax(logits: Logits, at: Tensor) -> Tensor:
    hidden = logits.hidden.flatten(0, -2)
    return F.log_softmax(wide(logits.head(hidden[at.to(hidden.device)])), dim=-1)


def likelihoods(log: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """((n,) log-probability of the wanted words, (n,) bool whether each is the likeliest); log (n, V)."""
    wanted = wanted.to(log.device)
    return log.gather(-1, wanted[:, None])[:, 0], log.argmax(dim=-1) == wanted


def divergence(log: Tensor, teacher: Tensor) -> Tensor:
    """(n,) KL(teacher ‖ model) in nats, of log-probabilities (n, V)."""
    teacher = teacher.to(log.device)
    return torch.linalg.vecdot(teacher.exp(), teacher - log)
