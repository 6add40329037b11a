"""Scans and convolutions of Mamba models in plain PyTorch; needs torch alone.

Every operator lives in its own folder: `reference.py` is the truth (a plain loop), `cpu.py` the fast
implementation, and `__init__.py` checks the arguments and picks. The environment variable
`TRANSMAMBA_KERNELS=reference|cpu` forces one path.
"""

from .bidirectional_scan import bidirectional_scan
from .bidirectional_ssd import bidirectional_ssd
from .causal_conv1d import causal_conv1d
from .selective_scan import selective_scan
from .ssd_scan import ssd_scan

__all__ = ["bidirectional_scan", "bidirectional_ssd", "causal_conv1d", "selective_scan", "ssd_scan"]
