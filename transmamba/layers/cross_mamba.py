"""Cross-Mamba: visual features that know the prompt, by scans whose cost is linear in both lengths.

Of TransMamba's cross-Mamba module (arXiv 2502.15130, v1) no code is public, and what is reported at second
hand is the form of mode `reported` alone: Q = S^C(x), K = S^B(x), V = x, delta from the other modality. Modes
`state` and `prefix`, and all that is open in `reported` (which modality is x, how delta crosses to another
length, directions, residual and gate) are [proposal, not the paper's].

Every mode adds tanh(g) W y to the visual stream, where g starts at 0: a new module gives back its input.
Shapes: B rows, N visual tokens of D channels, M prompt tokens of E channels, H heads of P channels (H P is
the width), S states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transmamba_kernels import causal_conv1d, ssd_scan

from ..core.output import wide
from .cross_base import Crossed, CrossMamba, CrossMambaConfig, convolution, step_sizes
from .cross_rivals import RIVALS, of_equal_size
from .prompt import Prompt

__all__ = [
    "MODES",
    "CrossMamba",
    "CrossMambaConfig",
    "Crossed",
    "PrefixScan",
    "ReportedScan",
    "StateRead",
    "cross_mamba",
]


class PromptWriter(CrossMamba):
    """A mode whose prompt writes a state: B, x and delta come from the language, C from vision."""

    def __init__(
        self, dim: int, language_dim: int, config: CrossMambaConfig, decays: tuple[str, ...]
    ) -> None:
        super().__init__(dim, language_dim, config, decays)
        written = self.heads * self.states + self.width
        self.write = nn.Linear(language_dim, written)  # B and x
        self.read = nn.Linear(dim, self.heads * self.states)  # C
        self.conv1d = convolution(written, config.conv_kernel)

    def _end(self, prompt: Prompt, decay: str, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """What the prompt leaves: the window (B, H S + H P, K - 1) and the state (B, H, P, S)."""
        mixed, window = causal_conv1d(
            self.write(prompt.tokens),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            reverse=reverse,
            lengths=prompt.lengths,
            return_final_state=True,
        )
        B, x = self.written(mixed)
        _, state = ssd_scan(
            x,
            F.linear(prompt.tokens, self.dt_proj.weight),
            self.decay(decay),
            B,
            B,  # in C's place: the outputs on the prompt are not wanted
            delta_bias=wide(self.dt_proj.bias),
            delta_softplus=True,
            lengths=prompt.lengths,
            return_final_state=True,
            reverse=reverse,
        )
        return window, state


class StateRead(PromptWriter):
    """h_s = exp(dt_s A) h_(s-1) + dt_s x_s (x) B_s over the prompt; y_t = <C_t, h> of each visual token t.

    [proposal, not the paper's] h is the mean of the last states of two scans, one in each direction and with
    its own decays; each convolution looks back as its scan does. Linear cross-attention with decay: what a
    visual token reads depends on no other visual token.
    """

    def __init__(self, dim: int, language_dim: int, config: CrossMambaConfig) -> None:
        super().__init__(dim, language_dim, config, ("A_log", "A_b_log"))

    def _mix(self, u: Tensor, prompt: Prompt) -> Tensor:
        _, ahead = self._end(prompt, "A_log")
        _, back = self._end(prompt, "A_b_log", reverse=True)
        C = self.queries(self.read(u))
        return torch.einsum("bnhs,bhps->bnhp", C, ((ahead + back) / 2).to(C.dtype))


class PrefixScan(PromptWriter):
    """One scan over [prompt; visual tokens], whose outputs on the visual tokens are kept.

    [proposal, not the paper's] Each modality has its own projections; decays and convolution belong to the
    one scan. It is run in two parts, the first of which hands state and window over to the second, so that
    no padding of a short prompt stands between them.
    """

    def __init__(self, dim: int, language_dim: int, config: CrossMambaConfig) -> None:
        super().__init__(dim, language_dim, config, ("A_log",))
        self.write_vision = nn.Linear(dim, self.write.out_features)
        self.dt_vision = step_sizes(dim, self.heads, config.length)

    def _mix(self, u: Tensor, prompt: Prompt) -> Tensor:
        window, state = self._end(prompt, "A_log")
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        B, x = self.written(causal_conv1d(self.write_vision(u), weight, bias, initial_state=window))
        return ssd_scan(
            x,
            F.linear(u, self.dt_vision.weight),
            self.decay("A_log"),
            B,
            self.queries(self.read(u)),
            delta_bias=wide(self.dt_vision.bias),
            delta_softplus=True,
            initial_state=state,
        )


class ReportedScan(CrossMamba):
    """Q = S^C(x), K = S^B(x), V = x of the visual tokens, in steps that the language sets.

    That much is reported of the paper, at second hand. [proposal, not the paper's] A step's raw size is its
    projection's mean over the prompt, one for all visual tokens of a row, for a prompt of M tokens has no
    natural step for each of N; without a prompt it is the bias. Two directions, averaged, with own decays.
    """

    def __init__(self, dim: int, language_dim: int, config: CrossMambaConfig) -> None:
        super().__init__(dim, language_dim, config, ("A_log", "A_b_log"))
        self.in_proj = nn.Linear(dim, self.width)  # x
        self.select_B = nn.Linear(self.width, self.heads * self.states)
        self.select_C = nn.Linear(self.width, self.heads * self.states)
        self.conv1d = convolution(self.width, config.conv_kernel)

    def _mix(self, u: Tensor, prompt: Prompt) -> Tensor:
        delta = prompt.mean(F.linear(prompt.tokens, self.dt_proj.weight)).repeat(1, u.shape[1], 1)
        mixed, outputs = self.in_proj(u), []
        for name, reverse in (("A_log", False), ("A_b_log", True)):
            x = causal_conv1d(mixed, self.conv1d.weight[:, 0], self.conv1d.bias, reverse=reverse)
            y = ssd_scan(
                x.unflatten(-1, (self.heads, -1)),
                delta,
                self.decay(name),
                self.select_B(x).unflatten(-1, (self.heads, -1)),
                self.queries(self.select_C(x)),
                delta_bias=wide(self.dt_proj.bias),
                delta_softplus=True,
                reverse=reverse,
            )
            outputs.append(y)
        return (outputs[0] + outputs[1]) / 2


MODES: dict[str, Any] = {
    "state": StateRead,
    "prefix": PrefixScan,
    "reported": ReportedScan,
    **RIVALS,
}


def cross_mamba(dim: int, language_dim: int, config: CrossMambaConfig | None = None) -> Crossed:
    """The module of `config.mode` for visual tokens of `dim` and language embeddings of `language_dim`."""
    config = of_equal_size(dim, language_dim, config or CrossMambaConfig())
    made: Crossed = MODES[config.mode](dim, language_dim, config)
    return made
