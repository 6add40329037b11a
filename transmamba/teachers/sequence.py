"""A Transformer that learnt functions in context: the student `sequence` of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config.registry import TEACHERS
from ..core.layout import Sequence as Text
from ..core.points import PointShape
from ..ecosystems import points as library
from ..ecosystems.damaged import damage_of
from ..ecosystems.origin import origin_of_folder
from ..ecosystems.sources import Source, read_source
from ..errors import UserError
from ..views.embeddings import PointEmbedding
from ..views.heads import Readout
from ..views.sublayers import Affine, Attention, Mlp, Norm, Sublayer
from ..views.view import Tower, View
from .teacher import Teacher, refuse

_KIND = "sequence"
_EPS = 1e-5


@TEACHERS.register("sequence")
@dataclass(frozen=True, kw_only=True)
class SequenceTeacher:
    """A Transformer of points that the student `sequence` made: of attention and MLPs in turn.

    model: a run's folder, or its student/
    """

    model: str

    def build(self) -> Teacher:
        """Raises UserError for a folder without such a model, and for one with layers that scan."""
        source = read_source(self.model)
        if SequenceTeacher.recognise(source) is None or source.folder is None:
            raise UserError(
                f"teacher {self.model!r} is no model of points; write the run of a student sequence"
            )
        said = source.config["transmamba"]
        if wrong := sorted(set(said["pattern"]) - set("AF")):
            raise refuse(
                repr(self.model),
                f"it has layers {wrong[0]}, which scan; a teacher is of attention and MLPs alone",
                pattern=said["pattern"],
            )
        try:
            state = load_file(source.folder / library.WEIGHTS)
            view = view_of(said, state)
        except (OSError, KeyError, SafetensorError) as error:
            damaged = damage_of(str(source.folder))
            raise UserError(
                damaged or f"teacher {self.model!r}: {library.WEIGHTS} lacks {error}; train it again"
            ) from error
        return Teacher(
            view,
            source=self.model,
            preprocessing=PointShape(
                width=said["inputs"],
                outputs=said["outputs"],
                length=said["length"],
                positions=said["positions"],
            ),
            num_params=sum(tensor.numel() for tensor in state.values()),
            licence=origin_of_folder(source.folder).licence,
        )

    @staticmethod
    def recognise(source: Source) -> SequenceTeacher | None:
        ours = library.recognise(source) and source.config["transmamba"]["student"] == _KIND
        return SequenceTeacher(model=source.text) if ours else None


def view_of(said: Mapping[str, Any], state: Mapping[str, Tensor]) -> View:
    """Of a model's config.json and tensors."""
    named = partial(_affine, state)
    sublayers = tuple(
        _sublayer(state, f"layers.{k}", letter, said["heads"]) for k, letter in enumerate(said["pattern"])
    )
    read_in = named("read_in")
    assert read_in.bias is not None, "a linear with a bias"
    embedding = PointEmbedding(
        read_in.weight, read_in.bias, state["positions"] if said["positions"] else None
    )
    tower = Tower(embedding, sublayers, _norm(state, "norm"), Text())
    return View({"points": tower}, {"points": Readout(named("read_out"))})


def _sublayer(state: Mapping[str, Tensor], into: str, letter: str, heads: int) -> Sublayer:
    norm, named = _norm(state, f"{into}.norm"), partial(_affine, state)
    if letter == "F":
        up, down = named(f"{into}.mixer.up_proj"), named(f"{into}.mixer.down_proj")
        return Mlp(norm, up, down, gelu_tanh)
    q, k, v, o = (named(f"{into}.mixer.{name}_proj") for name in "qkvo")
    return Attention(norm, q, k, v, o, heads=heads, causal=True)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh, as in GPT-2."""
    return F.gelu(x, approximate="tanh")


def _affine(state: Mapping[str, Tensor], name: str) -> Affine:
    return Affine(state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: Mapping[str, Tensor], name: str) -> Norm:
    return Norm(state[f"{name}.weight"], state[f"{name}.bias"], _EPS)
