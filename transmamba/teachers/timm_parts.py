"""timm's layers as parts of a canonical view: norms, linears, attention, MLPs, attention pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..views.heads import AttentionPool
from ..views.sublayers import Affine, Attention, Mlp, Norm
from .check import affine, plain_linear
from .teacher import refuse


def norm_view(module: nn.Module) -> Norm | None:
    """A LayerNorm or RMSNorm module as a `Norm`; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight, module.bias, module.eps)
    if "RmsNorm" in type(module).__name__ or isinstance(module, nn.RMSNorm):
        weight: Any = getattr(module, "weight", None)
        eps: Any = module.eps
        if eps is None:  # torch's RMSNorm then takes the smallest step of its input's type
            eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps
        return Norm(weight, None, float(eps), rms=True)
    raise refuse("norm", "only LayerNorm and RMSNorm are known", kind=type(module).__name__)


def parted(linear: nn.Linear, parts: int) -> list[Affine]:
    """A linear whose outputs are those of several, one after the other."""
    weights = linear.weight.chunk(parts)
    biases: Any = (None,) * parts if linear.bias is None else linear.bias.chunk(parts)
    return [Affine(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def attention(attn: Any, norm: nn.Module, scale: Tensor | None, name: str) -> Attention:
    """timm's plain `Attention` behind its norm, with its LayerScale (D,).

    Raises UserError for another kind, a gate, and a norm before its output projection.
    """
    if type(attn).__name__ != "Attention" or getattr(attn, "gate", None) is not None:
        raise refuse("attention", "only plain softmax attention is known", kind=type(attn).__name__)
    if not isinstance(attn.norm, nn.Identity):
        raise refuse("attention", "a norm before the output projection is not covered")
    q, k, v = parted(plain_linear(attn.qkv, f"{name}.qkv"), 3)
    return Attention(
        norm=_norm(norm),
        q=q,
        k=k,
        v=v,
        o=affine(attn.proj, f"{name}.proj"),
        heads=attn.num_heads,
        q_norm=norm_view(attn.q_norm),
        k_norm=norm_view(attn.k_norm),
        scale=scale,
    )


def mlp(module: Any, norm: nn.Module, scale: Tensor | None, name: str) -> Mlp:
    """timm's `Mlp`, or one with a gate (`SwiGLU`, `GluMlp` and so `SwiGLUPacked`), behind its norm, with its
    LayerScale (D,).

    Raises UserError for another kind, and one with a norm inside.
    """
    kind = type(module).__name__
    if kind not in ("Mlp", "SwiGLU", "GluMlp"):
        raise refuse("MLP", "only one of two linears, or SwiGLU and GluMlp, is known", kind=kind)
    if not isinstance(module.norm, nn.Identity):
        raise refuse("MLP", "a norm before its second linear is not covered", kind=kind)
    gate = None
    if kind == "SwiGLU":
        gate, up = affine(module.fc1_g, f"{name}.fc1_g"), affine(module.fc1_x, f"{name}.fc1_x")
    elif kind == "GluMlp":
        first, second = parted(plain_linear(module.fc1, f"{name}.fc1"), 2)
        up, gate = (first, second) if module.gate_last else (second, first)
    else:
        up = affine(module.fc1, f"{name}.fc1")
    down = affine(module.fc2, f"{name}.fc2")
    return Mlp(norm=_norm(norm), up=up, down=down, act=module.act, scale=scale, gate=gate)


def _norm(module: nn.Module) -> Norm:
    norm = norm_view(module)
    assert norm is not None, "a pre-norm block has a norm"
    return norm


def attention_pool(module: Any, *, special: bool = True, name: str = "attn_pool") -> AttentionPool:
    """timm's `AttentionPoolLatent` of one latent token; its tensors are the module's own.

    special: whether it reads the special tokens too, not the patches alone

    Raises UserError for another kind, several latents, positions of its own, and one without an MLP.
    """
    kind = type(module).__name__
    if kind != "AttentionPoolLatent":
        raise refuse(name, "only timm's AttentionPoolLatent is known", kind=kind)
    if module.latent_len != 1 or module.pool not in ("token", "avg"):
        raise refuse(name, "only one latent token is known", latent_len=module.latent_len, pool=module.pool)
    if module.pos_embed is not None:
        raise refuse(name, "positions of its own are not covered", kind=kind)
    if type(module.mlp).__name__ != "Mlp" or not isinstance(module.mlp.norm, nn.Identity):
        raise refuse(name, "only one with a plain MLP is known", mlp=type(module.mlp).__name__)
    k, v = parted(plain_linear(module.kv, f"{name}.kv"), 2)
    return AttentionPool(
        latent=module.latent[0],
        q=affine(module.q, f"{name}.q"),
        k=k,
        v=v,
        o=affine(module.proj, f"{name}.proj"),
        heads=module.num_heads,
        norm=norm_view(module.norm),
        up=affine(module.mlp.fc1, f"{name}.mlp.fc1"),
        down=affine(module.mlp.fc2, f"{name}.mlp.fc2"),
        act=module.mlp.act,
        q_norm=norm_view(module.q_norm),
        k_norm=norm_view(module.k_norm),
        special=special,
    )
