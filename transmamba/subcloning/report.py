"""What subcloning did, tensor by tensor: printed, and saved as subclone.json beside the student."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from .plan import Dropped, Kind

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_KINDS = (*get_args(Kind), "fresh")


@dataclass
class Row:
    target: str
    source: str
    kind: str
    shape: tuple[int, ...]
    elements: int


@dataclass
class Report:
    """What was cloned: rows of (target, source, kind, shape), the biases dropped, the share covered.
    `sublayers`: the names of the teacher's."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    total: int = 0
    sublayers: list[str] = field(default_factory=list)

    @property
    def covered(self) -> float:
        """Share of the student's parameters that came from the teacher, 0..1."""
        return sum(row.elements for row in self.rows if row.kind != "fresh") / max(self.total, 1)

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter(row.kind for row in self.rows)
        return {kind: counted.get(kind, 0) for kind in _KINDS}

    @property
    def cloned(self) -> set[str]:
        """Names of the student tensors that came, at least in part, from the teacher."""
        return {row.target for row in self.rows if row.kind != "fresh"}

    @property
    def unused(self) -> list[str]:
        """Sublayers of the teacher, such as `blocks.3.mlp`, from which nothing was taken."""
        taken = {".".join(row.source.split(".")[:3]) for row in self.rows}
        return [name for name in self.sublayers if name not in taken]

    def to_dict(self) -> dict[str, Any]:
        return {
            "covered": self.covered,
            "counts": self.counts,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "dropped_biases": [name for name in self._dropped_names() if name.endswith("bias")],
            "dropped": [dataclasses.asdict(drop) for drop in self.dropped],
            "unused": self.unused,
        }

    def _dropped_names(self) -> list[str]:
        """Each once, though several student layers may take from one block."""
        return list(dict.fromkeys(drop.source for drop in self.dropped))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1))

    def __str__(self) -> str:
        """One line for tensors that differ in their layer's and block's numbers alone, with how many they
        are; subclone.json has each."""
        alike = Counter((_starred(row.target), _starred(row.source), row.kind) for row in self.rows)
        drops = {drop.source: drop.why for drop in self.dropped}
        dropped = Counter((_starred(source), why) for source, why in drops.items())
        lines = [(target, f"{kind} {number}", source) for (target, source, kind), number in alike.items()]
        lines += [(source, f"dropped {number}", why) for (source, why), number in dropped.items()]
        first, second = (max((len(line[i]) for line in lines), default=0) for i in (0, 1))
        table = [f"{a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in lines]
        return "\n".join([*table, self.summary()])

    def summary(self) -> str:
        """How much was cloned, from how much of the teacher, and what was dropped, in a line each."""
        counts = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        lines = [f"{counts}; {100 * self.covered:.1f} % of the student's {self.total:,} parameters covered"]
        if self.sublayers:
            every, unused = len(self.sublayers), self.unused
            without = f"; nothing from {_shortened(unused)}" if unused else ""
            lines.append(f"from {every - len(unused)} of the teacher's {every} sublayers{without}")
        if self.dropped:
            names = self._dropped_names()
            lines.append(f"{len(names)} teacher tensors dropped: {_shortened(names)}")
        return "\n".join(lines)


def _starred(name: str) -> str:
    return _NUMBER.sub("*", name)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
