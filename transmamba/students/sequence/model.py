"""A model of sequences of points: read in by a linear, residual layers of a pattern, read out by a linear.

Shapes: B rows, L points, d numbers of a point, D channels, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core import layout
from ...core.output import Branches, Capture, Captures, Context, Logits, Output, Stream
from ...core.points import PointShape
from ...errors import UserError
from ...layers.mixed import Mixed, Want, kept
from ...subcloning.plan import Dropped, Take
from ...views.view import Tower, View
from ..hybrid_lm.start import Walk
from .layers import EPS, Mixers, SequenceLayer, SequenceShape
from .plan import behind, plan
from .start import calibrate

NOTHING = Capture()
ALONE = Want(alone=True)


class SequenceModel(nn.Module):
    """Reads `points` (B, L, d); its stream is `points`, its logits are the values that it predicts,
    (B, L, O).

    mixers: how Mamba-2 layers begin, see `names.Sequence`
    kinds:  of the teacher's sublayers; none without one
    """

    def __init__(self, shape: SequenceShape, mixers: Mixers = "mamba2", kinds: Sequence[str] = ()) -> None:
        super().__init__()
        self.shape, self.mixers = shape, mixers
        self.layout = layout.Sequence()
        self.read_in = nn.Linear(shape.inputs, shape.width)
        self.positions = nn.Parameter(torch.empty(shape.positions, shape.width)) if shape.positions else None
        places = behind(shape.pattern, kinds) if mixers == "attention" and kinds else {}
        after = {k for k, s in places.items() if kinds[s] == "attention"}  # nothing else can be begun so
        self.layers = nn.ModuleList(
            SequenceLayer(letter, shape, k in after) for k, letter in enumerate(shape.pattern)
        )
        self.norm = nn.LayerNorm(shape.width, eps=EPS)
        self.read_out = nn.Linear(shape.width, shape.outputs)
        self.grad_checkpointing = False
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.02)
        for layer in self._layers:
            layer.begin_(len(self._layers))

    @property
    def _layers(self) -> Sequence[Any]:
        layers: Any = self.layers
        return layers

    def layer(self, k: int) -> Any:
        return self._layers[k]

    @property
    def points(self) -> PointShape:
        """What it reads, and says of it."""
        return PointShape(
            width=self.shape.inputs,
            outputs=self.shape.outputs,
            length=self.shape.length,
            positions=self.shape.positions,
        )

    # --- the student's interface ---

    @property
    def towers(self) -> dict[str, SequenceModel]:
        return {"points": self}

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def parts(self) -> dict[str, int]:
        return {}

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        """Of the layers alone that scan."""
        return {k: s for k, s in behind(self.shape.pattern, kinds).items() if self.shape.pattern[k] in "MS"}

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output, mixed = self._layers[k](hidden, ALONE)
        return output, kept(mixed.parts, capture.mixers.get(k, frozenset()))

    def run(self, inputs: Mapping[str, Tensor], captures: Captures | None = None) -> Output:
        """Raises UserError for points of another width, and for more than it has positions."""
        if "points" not in inputs:
            return Output()
        capture = (captures or {}).get("points", NOTHING)
        x, stream = self._read_in(inputs["points"]), Stream(self.layout)
        for k, layer in enumerate(self._layers):
            x, mixed = self._through(layer, x)
            if k in capture.hidden:
                stream.hidden[k] = x
            if k in capture.branches:
                stream.branches[k] = Branches(x if capture.tokens is None else x[:, capture.tokens])
            if k in capture.mixers:
                stream.mixers[k] = kept({"output": mixed.output, **mixed.parts}, capture.mixers[k])
        return Output({"points": stream}, Logits(x, self._head))

    def _read_in(self, points: Tensor) -> Tensor:
        if points.shape[-1] != self.shape.inputs:
            raise UserError(f"points have {points.shape[-1]} numbers; this model reads {self.shape.inputs}")
        x = self.read_in(points)
        if self.positions is None:
            return x
        if x.shape[1] > len(self.positions):
            raise UserError(
                f"a sequence has {x.shape[1]} points; this model has {len(self.positions)} positions"
            )
        return x + self.positions[: x.shape[1]]

    def _head(self, hidden: Tensor) -> Tensor:
        return self.read_out(self.norm(hidden))

    def _through(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Mixed]:
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, x, use_reentrant=False)
        return layer(x)

    def forward(self, points: Tensor) -> Tensor:
        """Values (B, L, O) of points (B, L, d)."""
        logits = self.run({"points": points}).logits
        assert logits is not None, "there are points"
        return logits()

    def plan(self, view: View, select: Mapping[str, Any] | None = None) -> Iterator[Take | Dropped]:
        """What takes which tensor of a teacher of points. Raises UserError for one of other sizes."""
        return plan(self, view)

    def calibrate_(
        self,
        walk: Walk,
        kinds: Sequence[str],
        prompts: Sequence[Mapping[str, Tensor]],
        layers: int,
        kept: Tensor,
    ) -> None:
        """What `plan` cannot say of a start like attention, see `start.calibrate`."""
        if self.mixers == "attention":
            calibrate(self, walk, kinds, prompts, layers)

    def narrower(self, theirs: Tower) -> bool:
        """Never: no channels are chosen."""
        return False

    def groups(self) -> dict[str, Callable[[str], bool]]:
        scans, kept_, mlps = (self._named(letters) for letters in ("MS", "A", "F"))
        return {
            "mixers": lambda name: name.startswith(scans),
            "attention": lambda name: name.startswith(kept_),
            "mlp": lambda name: name.startswith(mlps),
            "embedding": lambda name: name.startswith(("read_in.", "positions")),
            "head": lambda name: name.startswith("read_out."),
            "norms": lambda name: (".norm." in name and ".mixer." not in name) or name.startswith("norm."),
        }

    def _named(self, letters: str) -> tuple[str, ...]:
        return tuple(f"layers.{k}.mixer." for k, letter in enumerate(self.shape.pattern) if letter in letters)

    def units(self) -> list[nn.Module]:
        return list(self._layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json and model.safetensors, which `transmamba.load_student` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        said = {"transmamba": {"student": "sequence", **self.shape.written()}}
        (folder / "config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
