"""The operators under the names, arguments and layouts of mamba_ssm 2.3 and causal-conv1d 1.6.

Sequences are (B, D, L) here wherever they are there, as transposed views of the channel-last operators'
tensors. Unlike there, dtypes may be mixed, final and initial states have gradients, and CPUs work. The
ValueErrors are those of the operators, under the operators' names and layouts.
"""

from .conv import causal_conv1d_fn, causal_conv1d_update
from .mamba1 import mamba_inner_fn, selective_scan_fn, selective_state_update
from .mamba2 import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_chunk_scan_combined",
    "mamba_inner_fn",
    "mamba_split_conv1d_scan_combined",
    "selective_scan_fn",
    "selective_state_update",
]
