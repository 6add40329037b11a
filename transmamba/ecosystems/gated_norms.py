"""Mamba-2's gated norm in transformers before 5.23, which took the mean square of all channels together where
Mamba-2's is one of each group (https://arxiv.org/abs/2405.21060, section 8.1; mamba_ssm's `group_size`).

A hybrid of several groups, as every `hybrid_lm` is, is another model by such a norm, and nothing says so: its
tensors load, and what it writes is a little wrong. Importing this file mends the classes, once; hooks.py does
where they are imported. Newer classes stay as they are.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# transformers' model -> its mixer, that mixer's norm
MIXERS = {
    "bamba": ("BambaMixer", "BambaRMSNormGated"),
    "granitemoehybrid": ("GraniteMoeHybridMambaLayer", "GraniteMoeHybridRMSNormGated"),
    "mamba2": ("Mamba2Mixer", "MambaRMSNormGated"),
}
_GROUP = "group_size"


def mend(mixer: Any, norm: Any) -> bool:
    """Lets a mixer's class, instances that are there already too, norm each of its `n_groups` by itself.
    Whether there was anything to mend: not where the norm's class knows groups, or was mended before."""
    if _GROUP in inspect.signature(norm.__init__).parameters or hasattr(norm.forward, "by_group"):
        return False
    whole, forward, made = norm.forward, mixer.forward, mixer.__init__

    @functools.wraps(whole)
    def by_group(self: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        group = getattr(self, _GROUP, None)
        if group is None:  # of a mixer that is none of these
            return whole(self, hidden_states, gate)
        gated = hidden_states.float() if gate is None else hidden_states.float() * F.silu(gate.float())
        normed = F.rms_norm(gated.unflatten(-1, (-1, group)), (group,), None, self.variance_epsilon)
        return self.weight * normed.flatten(-2).to(hidden_states.dtype)

    by_group.by_group = True  # type: ignore[attr-defined]

    def told(self: Any) -> None:
        if not hasattr(self.norm, _GROUP):
            setattr(self.norm, _GROUP, self.intermediate_size // self.n_groups)

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        told(self)  # an adapter may call the norm alone

    @functools.wraps(forward)
    def grouped(self: Any, *args: Any, **kwargs: Any) -> Any:
        told(self)  # one that was there before
        return forward(self, *args, **kwargs)

    norm.forward, mixer.forward, mixer.__init__ = by_group, grouped, init
    return True


def mend_installed() -> None:
    """All of `MIXERS` in the installed transformers, which is either newer or not."""
    for model, (mixer, norm) in MIXERS.items():
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        if not mend(getattr(module, mixer), getattr(module, norm)):
            return


mend_installed()
