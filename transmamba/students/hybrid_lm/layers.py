"""A hybrid's layers: attention or Mamba-2, then a SwiGLU MLP, by the names of transformers' classes.

Shapes: B rows, L tokens, D channels, H heads of q and G of k and v, of P channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.recording import recording
from ...errors import UserError
from ...layers.experts import Experts
from ...layers.mamba1 import CausalMamba
from ...layers.mixed import Mixed, Want
from ...views.rope import turned
from ...views.sublayers import attend
from .architectures import Kind, Mixers, architecture_of, head_size_of, normalises
from .far import FarScan
from .mixer import HybridMixer, decay_log
from .mlps import ReluMLP, behind
from .nearby import Reading
from .norms import RMSNorm

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
            mixed = near.attend(q, k, v)
            if self.far is not None and self.scan:
                far, share, weight = self.far(u, q, k, v, near, reading.context.segments)
                mixed = ((1 - share) * mixed + weight * far).to(v.dtype)
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
        if recording():
            raise UserError(
                "student.window_dropout draws anew at each step, which a recorded step cannot; write "
                "trainer.cuda_graphs=false"
            )
        return 1 if float(torch.rand((), device="cpu")) < self.dropped else int(self.window)


class HybridLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer is `self_attn` or `mamba`. The second may be
    experts, or missing; of a configuration that says `parallel` both read the same stream.

    number: its own
    """

    def __init__(self, config: Any, kind: Kind, half_life: float, tap: float, number: int) -> None:
        super().__init__()
        architecture, width, eps = architecture_of(config), config.hidden_size, config.rms_norm_eps
        self.kind = kind
        self.input_layernorm = RMSNorm(width, eps, multiplied=True)
        self._half_life = half_life
        self.mamba1 = kind in ("mamba", "switch_mamba")
        self.mamba: Any
        if self.mamba1:
            self.mamba = mamba1(config, kind)
        elif self.scans:
            self.mamba = HybridMixer(config, half_life, tap)
        else:
            self.self_attn = Attention(config, kind)
        self.neurons = config.shared_intermediate_size if architecture.fused else config.intermediate_size
        self.parallel = getattr(config, "parallel", False)
        second = behind(config, number)
        self._mlp_norm, self._mlp = architecture.mlp_norm, None if second is None else second[0]
        self.routes = second is not None and isinstance(second[1], Experts)
        if self.routes:
            self.neurons = config.intermediate_size
        if second is not None:
            self.add_module(architecture.mlp_norm, RMSNorm(width, eps, multiplied=True))
            self.add_module(*second)

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
        """What of Mamba-2 is no projection; all of Mamba, of experts and of an MLP that is like one."""
        if self.mamba1:
            self.mamba.reset_()
        elif self.scans and mixers == "attention":
            self.mamba.neutral_()
        elif self.scans:
            self.mamba.drawn_()
        elif self.self_attn.far is not None:
            self.self_attn.far.neutral_(decay_log(self._half_life))
        mlp = None if self._mlp is None else getattr(self, self._mlp)
        if isinstance(mlp, Experts | ReluMLP):
            mlp.reset_()

    def forward(self, x: Tensor, reading: Reading, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        """The stream (B, L, D) after the layer, or what its mixer alone adds, and the record of its mixer and
        of its experts' router."""
        normed = self.input_layernorm(x)
        if self.mamba1:
            mixed = self.mamba(normed, reading.context)
        elif self.scans:
            mixed = self.mamba(normed, reading.context, want.heads)
        else:
            mixed = self.self_attn(normed, reading)
        if want.alone:
            return mixed.output, mixed
        made = x + mixed.output
        if self._mlp is None:
            return made, mixed
        u = getattr(self, self._mlp_norm)(x if self.parallel else made)
        if not self.routes:
            return made + getattr(self, self._mlp)(u), mixed
        added, routed = getattr(self, self._mlp)(u, reading.context.mask)
        mixed.parts |= routed.parts()
        return made + added, mixed

    def routers(self) -> dict[str, int]:
        """Names of its routers in its record, and how many experts each has."""
        found = {"": getattr(self, self._mlp).shape.count} if self.routes and self._mlp else {}
        if self.kind == "switch_mamba":
            found |= {
                f"_{name}": getattr(self.mamba, f"{name}_proj").shape.count for name in self.mamba.switched
            }
        return found


def mamba1(config: Any, kind: Kind) -> CausalMamba:
    """Mamba as a configuration of the class of our own has it."""
    within: dict[str, Any] = {}
    if kind == "switch_mamba":
        within = {"inner": config.inner_experts, "experts": config.num_experts}
    return CausalMamba(
        config.hidden_size,
        expand=config.mamba_expand,
        d_state=config.mamba_d_state,
        d_conv=config.mamba_d_conv,
        **within,
    )
