"""A hybrid's layers: attention or Mamba-2, then a SwiGLU MLP, by the names of transformers' classes.

Shapes: B rows, L tokens, D channels, H heads of q and G of k and v, of P channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...layers.mixed import Mixed, Want
from ...views.rope import turned
from ...views.sublayers import attend
from .architectures import Kind, Mixers, architecture_of, head_size_of, normalises
from .far import FarScan
from .mixer import HybridMixer, decay_log
from .nearby import Reading
from .norms import GatedSilu, RMSNorm

PLAIN = Want()


class Attention(nn.Module):
    """Causal, rotary, with fewer heads of k and v, and q and k normalised head by head before they are turned
    (as in Qwen3), where the configuration says so.

    kind:    window_attention reads the last tokens and the first ones alone; window_mamba has a scan of all
        that lies between, too, which `scan: false` in the configuration switches off
    dropped: in training, how likely a window is to shrink to the token itself, so that the scan stands in
        for the rest
    """

    def __init__(self, config: Any, kind: Kind) -> None:
        super().__init__()
        self.window = None if kind == "full_attention" else config.window
        self.dropped = 0.0
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        size, width, bias = head_size_of(config), config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(self.heads * size, width, bias=bias)
        self.normed = normalises(config)
        if self.normed:
            self.q_norm = RMSNorm(size, config.rms_norm_eps)
            self.k_norm = RMSNorm(size, config.rms_norm_eps)

        self.far = FarScan(config) if kind == "window_mamba" else None
        self.scan = getattr(config, "scan", True)

    def forward(self, u: Tensor, reading: Reading) -> Mixed:
        """u (B, L, D) -> `Mixed`, without inner tensors."""
        q, k, v = self.read(u, reading)
        if self.window is None:
            mixed = attend(q, k, v, reading.allowed)
        else:
            near = reading.nearby[self._drawn()]
            mixed = attend(q, k, v, near.allowed)
            if self.far is not None and self.scan:
                far, share = self.far(u, q, k, v, near, reading.context.segments)
                mixed = mixed + share * (far - mixed)
        return Mixed(self.o_proj(mixed.transpose(1, 2).flatten(2)))

    def read(self, u: Tensor, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, L, P), k and v (B, G, L, P), the first two turned by their positions."""
        assert reading.waves is not None, "made for layers of attention"
        q = self.q_proj(u).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            projection(u).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
            for projection in (self.k_proj, self.v_proj)
        )
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        return turned(q, *reading.waves), turned(k, *reading.waves), v

    def _drawn(self) -> int:
        """The window of this pass. Drawn on the host, from the generator that the trainer has seeded."""
        assert self.window is not None, "asked by the caller"
        if not (self.training and self.dropped):
            return int(self.window)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise UserError(
                "student.window_dropout draws anew at each step, which a recorded step cannot; write "
                "trainer.cuda_graphs=false"
            )
        return 1 if float(torch.rand((), device="cpu")) < self.dropped else int(self.window)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, width: int, neurons: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, neurons, bias=bias)
        self.up_proj = nn.Linear(width, neurons, bias=bias)
        self.down_proj = nn.Linear(neurons, width, bias=bias)
        self.gate = GatedSilu()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate(self.gate_proj(x), self.up_proj(x)))


class FusedSwiGLU(nn.Module):
    """The same with gate and up in one matrix, the gate first."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.input_linear = nn.Linear(width, 2 * neurons, bias=False)
        self.output_linear = nn.Linear(neurons, width, bias=False)
        self.gate = GatedSilu()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.input_linear(x).chunk(2, dim=-1)
        return self.output_linear(self.gate(gate, up))


class HybridLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer is `self_attn` or `mamba`."""

    def __init__(self, config: Any, kind: Kind, half_life: float, tap: float) -> None:
        super().__init__()
        architecture, width, eps = architecture_of(config), config.hidden_size, config.rms_norm_eps
        self.kind = kind
        self._mlp_norm, self._mlp = architecture.mlp_norm, architecture.mlp
        self.input_layernorm = RMSNorm(width, eps, multiplied=True)
        self._half_life = half_life
        if self.scans:
            self.mamba = HybridMixer(config, half_life, tap)
        else:
            self.self_attn = Attention(config, kind)
        self.add_module(architecture.mlp_norm, RMSNorm(width, eps, multiplied=True))
        self.neurons = config.shared_intermediate_size if architecture.fused else config.intermediate_size
        mlp: nn.Module
        if architecture.fused:
            mlp = FusedSwiGLU(width, self.neurons)
        else:
            mlp = SwiGLU(width, self.neurons, config.mlp_bias)
        self.add_module(architecture.mlp, mlp)

    @property
    def scans(self) -> bool:
        """Whether it has Mamba-2 in the place of attention."""
        return self.kind == "linear_attention"

    def dropped(self, chance: float) -> None:
        """How likely the window of one that has a scan, too, is to shrink."""
        if self.kind == "window_mamba":
            self.self_attn.dropped = chance

    @torch.no_grad()
    def begin_(self, mixers: Mixers) -> None:
        """What of Mamba-2 is no projection."""
        if self.scans and mixers == "attention":
            self.mamba.neutral_()
        elif self.scans:
            self.mamba.drawn_()
        elif self.self_attn.far is not None:
            self.self_attn.far.neutral_(decay_log(self._half_life))

    def forward(self, x: Tensor, reading: Reading, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        """The stream (B, L, D) after the layer, or what its mixer alone adds, and the mixer's record."""
        normed = self.input_layernorm(x)
        if self.scans:
            mixed = self.mamba(normed, reading.context, want.heads)
        else:
            mixed = self.self_attn(normed, reading)
        if want.alone:
            return mixed.output, mixed
        x = x + mixed.output
        return x + getattr(self, self._mlp)(getattr(self, self._mlp_norm)(x)), mixed
