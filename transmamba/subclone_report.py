"""What subcloning did, tensor by tensor: printed, and saved as subclone.json beside the student."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .student import Dropped

if TYPE_CHECKING:
    from .calibration import Calibrated


@dataclass
class Row:
    target: str
    source: str
    kind: str
    shape: tuple[int, ...]
    elements: int


@dataclass
class Report:
    """What was cloned: rows of (target, source, kind, shape), the biases dropped, the share covered; and what
    was calibrated after that."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    total: int = 0
    calibrated: list[Calibrated] = field(default_factory=list)

    @property
    def covered(self) -> float:
        """Share of the student's parameters that came from the teacher, 0..1."""
        return sum(row.elements for row in self.rows if row.kind != "fresh") / max(self.total, 1)

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter(row.kind for row in self.rows)
        return {kind: counted.get(kind, 0) for kind in ("copied", "sliced", "permuted", "fresh")}

    @property
    def cloned(self) -> set[str]:
        """Names of the student tensors that came, at least in part, from the teacher."""
        return {row.target for row in self.rows if row.kind != "fresh"}

    def to_dict(self) -> dict[str, Any]:
        return {
            "covered": self.covered,
            "counts": self.counts,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "dropped_biases": [name for name in self._dropped_names() if name.endswith("bias")],
            "dropped": [dataclasses.asdict(drop) for drop in self.dropped],
            "calibrated": [dataclasses.asdict(fitted) for fitted in self.calibrated],
        }

    def _dropped_names(self) -> list[str]:
        """Each once, though several student layers may take from one block."""
        return list(dict.fromkeys(drop.source for drop in self.dropped))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1))

    def __str__(self) -> str:
        width = max((len(row.target) for row in self.rows), default=6)
        rows = [f"{row.target:<{width}}  {row.kind:<8}  {row.source}" for row in self.rows]
        drops = [f"{drop.source:<{width}}  dropped   {drop.why}" for drop in self.dropped]
        return "\n".join([*rows, *drops, self.summary()])

    def summary(self) -> str:
        """How much was cloned, what was dropped, and how well calibration fits, in a line each."""
        counts = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        lines = [f"{counts}; {100 * self.covered:.1f} % of the student's {self.total:,} parameters covered"]
        if self.dropped:
            names = self._dropped_names()
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            lines.append(f"{len(names)} teacher tensors dropped: {shown}")
        if self.calibrated:
            number = len(self.calibrated)
            before = sum(fitted.before for fitted in self.calibrated) / number
            after = sum(fitted.after for fitted in self.calibrated) / number
            lines.append(f"{number} matrices calibrated: mean relative error {before:.3f} -> {after:.3f}")
        return "\n".join(lines)
