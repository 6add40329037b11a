"""`python -m transmamba_kernels.bench`: times, memory and shares of what the machine can do, beside peers."""

from .command import add_arguments, main, run
from .measure import bench_kernels

__all__ = ["add_arguments", "bench_kernels", "main", "run"]
