"""How a distiller is spread over processes: what differs between plain, DDP, FSDP2 and ZeRO, and nothing
else."""

from .choose import strategy_of
from .strategy import Plain, Strategy

__all__ = ["Plain", "Strategy", "strategy_of"]
