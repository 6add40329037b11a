"""Scans and convolutions of Mamba models, norms and experts, and a divergence over vocabularies for their
distillation, in Triton and in plain PyTorch; needs torch alone.

Every operator lives in its own folder: `reference.py` is the truth (a plain loop), `cpu.py` the fast PyTorch
implementation, `gpu.py` launches Triton's kernels, and `__init__.py` checks the arguments and picks. The
environment variable `TRANSMAMBA_KERNELS=reference|cpu|triton` forces one path. `compat` has the names and
layouts of mamba_ssm and causal-conv1d; `patch_transformers` gives these operators to transformers' models.
"""

from .bidirectional_conv1d import bidirectional_conv1d
from .bidirectional_scan import bidirectional_scan
from .bidirectional_ssd import bidirectional_ssd
from .causal_conv1d import causal_conv1d, causal_conv1d_update
from .gated_product import gated_product, normed_gated_product
from .grouped_experts import grouped_experts
from .mamba2_step import mamba2_step
from .packing import seq_idx_from_cu_seqlens
from .rms_norm import rms_norm
from .selective_scan import selective_scan
from .selective_state_update import selective_state_update
from .silu_mul import silu_mul
from .skinny_linear import skinny_linear
from .softmax_kl import softmax_kl
from .ssd_scan import ssd_scan
from .ssd_state_update import ssd_state_update
from .transformers_patch import patch_transformers

__all__ = [
    "bidirectional_conv1d",
    "bidirectional_scan",
    "bidirectional_ssd",
    "causal_conv1d",
    "causal_conv1d_update",
    "gated_product",
    "grouped_experts",
    "mamba2_step",
    "normed_gated_product",
    "patch_transformers",
    "rms_norm",
    "selective_scan",
    "selective_state_update",
    "seq_idx_from_cu_seqlens",
    "silu_mul",
    "skinny_linear",
    "softmax_kl",
    "ssd_scan",
    "ssd_state_update",
]
