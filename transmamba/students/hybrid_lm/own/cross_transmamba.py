# SPDX-License-Identifier: Apache-2.0
"""Cross-Mamba: visual features that know the prompt, in time linear in both lengths. Shapes: P pictures,
N visual tokens of D channels, L words of E channels, M of them the longest prompt, H heads of X channels and
S states, K taps."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scan_transmamba import scan_by_token, wide


def prompt_of(words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts of words (P, L, E), where mask (P, L), bool, is set: side by side at the end of (P, M, E),
    and which of the M are real (P, M). M is the longest one's length: how much stands around them, such as
    padding or what is written behind them, changes no bit of what is made of them."""
    longest = max(1, int(mask.sum(dim=1).max())) if len(mask) else 1
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, -longest:]
    return words.gather(1, order[..., None].expand(-1, -1, words.shape[2])), mask.gather(1, order)


class CrossMamba(nn.Module):
    """vision + tanh(g) W norm(y silu(z)) with one of five y:

    state:     the prompt writes a state in each direction, which every visual token reads
    prefix:    one scan over the prompt and then the visual tokens
    reported:  visual tokens scanned in both directions, in steps whose size the prompt sets
    film:      visual channels scaled and shifted by the prompt's mean (no Mamba, nor is the next)
    attention: visual tokens attend to the prompt's words
    """

    def __init__(self, dim: int, language: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.mode, self.heads, self.states = config["mode"], config["num_heads"], config["state_size"]
        self.width = config["width"] or dim
        narrow, taps = self.heads * self.states, config["conv_kernel"]
        self.norm, self.norm_language = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(language, eps=1e-6)
        self.gate = nn.Linear(dim, self.width)
        self.norm_y = nn.RMSNorm(self.width, eps=1e-6)
        self.proj = nn.Linear(self.width, dim, bias=False)
        self.scale = nn.Parameter(torch.zeros(1))
        if self.mode == "film":
            self.in_proj, self.film = nn.Linear(dim, self.width), nn.Linear(language, 2 * self.width)
            return
        if self.mode == "attention":
            self.q_proj = nn.Linear(dim, self.width)
            self.k_proj, self.v_proj = nn.Linear(language, self.width), nn.Linear(language, self.width)
            return
        self.dt_proj = nn.Linear(language, self.heads)
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        if self.mode != "prefix":
            self.A_b_log = nn.Parameter(torch.zeros(self.heads))
        channels = self.width if self.mode == "reported" else narrow + self.width
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels)
        if self.mode == "reported":
            self.in_proj = nn.Linear(dim, self.width)
            self.select_B, self.select_C = nn.Linear(self.width, narrow), nn.Linear(self.width, narrow)
        else:
            self.write, self.read = nn.Linear(language, channels), nn.Linear(dim, narrow)
        if self.mode == "prefix":
            self.write_vision, self.dt_vision = nn.Linear(dim, channels), nn.Linear(dim, self.heads)

    def forward(self, vision: Tensor, words: Tensor, real: Tensor) -> Tensor:
        """vision (P, N, D), and of `prompt_of` words (P, M, E) and real (P, M) -> (P, N, D)"""
        words = _normed(self.norm_language, words).masked_fill(~real[..., None], 0)
        u = _normed(self.norm, vision)
        y = getattr(self, f"_{self.mode}")(u, words, real).flatten(2).to(u.dtype) * F.silu(self.gate(u))
        return vision + (self.scale.tanh() * self.proj(_normed(self.norm_y, y))).to(vision.dtype)

    def _state(self, u: Tensor, words: Tensor, real: Tensor) -> Tensor:
        """(P, N, H, X): what each visual token reads of the last states of two scans."""
        written, step = self.write(words).masked_fill(~real[..., None], 0), self._step(words, real)
        ahead, back = (
            self._scanned(written.flip(1) if flip else written, step.flip(1) if flip else step, rate)[1]
            for rate, flip in ((self.A_log, False), (self.A_b_log, True))
        )
        return torch.einsum("bnhs,bhps->bnhp", self._queries(self.read(u)), (ahead + back) / 2)

    def _prefix(self, u: Tensor, words: Tensor, real: Tensor) -> Tensor:
        written = self.write(words).masked_fill(~real[..., None], 0)
        both = torch.cat([written, self.write_vision(u)], dim=1)
        step = torch.cat([self._step(words, real), F.softplus(wide(self.dt_vision(u)))], dim=1)
        C = self._queries(self.read(u))
        C = torch.cat([C.new_zeros(len(C), words.shape[1], *C.shape[2:]), C], dim=1)
        return self._scanned(both, step, self.A_log, C)[0][:, words.shape[1] :]

    def _reported(self, u: Tensor, words: Tensor, real: Tensor) -> Tensor:
        raw = F.linear(words, self.dt_proj.weight).sum(dim=1, keepdim=True)  # 0 of padding
        raw = raw / real.sum(dim=1).clamp_min(1).view(-1, 1, 1)
        step = F.softplus(wide(raw) + wide(self.dt_proj.bias)).expand(-1, u.shape[1], -1)
        mixed, made = self.in_proj(u), []
        for rate, flip in ((self.A_log, False), (self.A_b_log, True)):
            x = self._convolved(mixed.flip(1) if flip else mixed)
            B, C = self._heads(self.select_B(x)), self._queries(self.select_C(x))
            y, _ = scan_by_token(wide(self._heads(x)), step, -wide(rate).exp(), wide(B), C)
            made.append(y.flip(1) if flip else y)
        return (made[0] + made[1]) / 2

    def _film(self, u: Tensor, words: Tensor, real: Tensor) -> Tensor:
        mean = words.sum(dim=1, keepdim=True) / real.sum(dim=1).clamp_min(1).view(-1, 1, 1)  # 0 of padding
        gamma, beta = self.film(mean).chunk(2, dim=-1)
        return (1 + gamma) * self.in_proj(u) + beta

    def _attention(self, u: Tensor, words: Tensor, real: Tensor) -> Tensor:
        q, k, v = (
            self._heads(layer(x)).transpose(1, 2)
            for layer, x in ((self.q_proj, u), (self.k_proj, words), (self.v_proj, words))
        )
        some = real.any(dim=1).view(-1, 1, 1, 1)  # without a prompt nothing is read
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None] | ~some)
        return made.masked_fill(~some, 0).transpose(1, 2)

    def _step(self, words: Tensor, real: Tensor) -> Tensor:
        """(P, L, H) step sizes, 0 of padding: it neither writes nor lets anything decay."""
        return F.softplus(wide(self.dt_proj(words))).masked_fill(~real[..., None], 0)

    def _scanned(
        self, written: Tensor, step: Tensor, rate: Tensor, C: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state (P, H, X, S) of what is written (P, T, H S + H X)."""
        B, x = self._convolved(written).split([self.heads * self.states, self.width], dim=-1)
        B, x = wide(self._heads(B)), wide(self._heads(x))
        return scan_by_token(x, step, -wide(rate).exp(), B, B if C is None else C)

    def _convolved(self, x: Tensor) -> Tensor:
        padded = F.pad(x.mT, (self.conv1d.kernel_size[0] - 1, 0))
        return F.conv1d(padded, self.conv1d.weight, self.conv1d.bias, groups=x.shape[-1]).mT

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _queries(self, x: Tensor) -> Tensor:
        return wide(self._heads(x)) * self.states**-0.5


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return norm(x.to(norm.weight.dtype))
