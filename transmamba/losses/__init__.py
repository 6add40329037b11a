"""One file a loss: a frozen configuration dataclass whose `build(geometry)` makes the module."""
