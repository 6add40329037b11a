"""One mixer: its sizes, and which parameters hold what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """Rows `start` to `stop` of a parameter; `suffix` names a tensor of an adapter that belongs to it."""

    path: str
    start: int = 0
    stop: int | None = None
    suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """kind:   what messages call it: `a Mamba-1 mixer`
    width:      channels of the stream (d)
    inner:      channels of the scan (D), of all heads
    state:      states a channel (N)
    rank:       of delta's projection (R); 0 where there is none
    heads:      decays (Mamba-2); None where every channel and state has its own
    groups:     of B and C
    taps:       of the convolution (K)
    directions: suffixes of the scans' tensors: ("",), or ("", "_b") of two directions
    places:     what is where: matrices (in, x, z, x_proj, d, b, c, dt_proj, out), and a, skip, dt_bias, conv,
                biases
    shapes:     of the parameters, by path
    table:      an embedding in which rows are looked up
    opens:      an embedding whose model takes tokens beside those that are embedded
    causal:     whether its tokens read those before them alone
    projected:  columns that the input projection makes, of which an affix has tokens
    counts_states: the module's attribute that does, where it may be set to more; None where it may not
    config_key: what the model's configuration calls it
    """

    kind: str
    width: int
    inner: int = 0
    state: int = 0
    rank: int = 0
    heads: int | None = None
    groups: int = 1
    taps: int = 0
    directions: tuple[str, ...] = ("",)
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    table: bool = False
    opens: bool = False
    causal: bool = True
    projected: int = 0
    counts_states: str | None = None
    config_key: str | None = None

    def place(self, what: str, suffix: str) -> Place:
        """The one of a direction."""
        return next(place for place in self.places[what] if place.suffix == suffix)

    def shape(self, place: Place) -> tuple[int, ...]:
        """Of a place's rows."""
        rows, *rest = self.shapes[place.path]
        stop = rows if place.stop is None else place.stop
        return (stop - place.start, *rest)

    def matrix(self, place: Place) -> tuple[int, int]:
        """(rows, columns), what is behind the rows taken together."""
        rows, *rest = self.shape(place)
        return rows, math.prod(rest)
