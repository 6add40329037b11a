"""A student without attention, in whose layers the teacher's attention can be put back, in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...subcloning.plan import Take, depth_map
from ...subcloning.subclone import execute
from ...views.sublayers import Attention as Sublayer
from ...views.view import View
from .layers import Attention
from .plan import plan_attention
from .shape import blocks_of, teacher_shape

if TYPE_CHECKING:
    from .model import HybridStudent

NONE_KEPT = "student.attention_layers: []"


@runtime_checkable
class Swappable(Protocol):
    """A student whose layers may get their attention back."""

    def swap(self, view: View) -> Swap:
        """Of a teacher's view, folded where the student began from a folded one."""


class Whole(Protocol):
    """A student around a hybrid: a LLaVA around its decoder."""

    def run(self, inputs: Mapping[str, Tensor]) -> Any: ...

    def spliced(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of which all is made that the hybrid's layers have no part in; `run` goes on from there."""


class Swap:
    """A student and, for each of its layers, the teacher's attention as the student would have it.

    view:   of the teacher, or of that part of it which the student follows
    whole:  the model that the student is the decoder of
    none:   the option of a recipe by which no layer keeps attention

    layers: the teacher's layer behind each of the student's; shape: the teacher's, by which a file knows it

    Raises UserError for a student that has attention, and for a teacher of another width.
    """

    def __init__(
        self, student: HybridStudent, view: View, whole: Whole | None = None, none: str = NONE_KEPT
    ) -> None:
        if student.attention_layers:
            kept = ", ".join(map(str, student.attention_layers))
            raise UserError(
                f"the student keeps attention in layers {kept}; layers are selected from a student that has "
                f"none ({none})"
            )
        tower = view.towers["decoder"]
        if tower.width != student.width:
            raise UserError(
                f"the student is {student.width} wide, the teacher {tower.width}; name the student's own "
                "teacher"
            )
        blocks = blocks_of(tower)
        self.student, self.whole, self.shape = student, whole, teacher_shape(view)
        self.layers = tuple(depth_map(student.num_layers, len(blocks)))
        self._attention = [self._of(tower.sublayers[2 * t], f"blocks.{t}.attention") for t in self.layers]

    @property
    def model(self) -> Any:
        """What reads batches."""
        return self.student if self.whole is None else self.whole

    def opened(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch's inputs for `model`, as far as they are the same whichever layers have attention."""
        return inputs if self.whole is None else self.whole.spliced(inputs)

    @torch.no_grad()
    def _of(self, theirs: object, source: str) -> nn.Module:
        """The student's module with the tensors of one of the teacher's."""
        made = Attention(self.student.config, "full_attention")
        parameters = dict(made.named_parameters(prefix="self_attn"))
        for name, parameter in parameters.items():
            if name.endswith("bias"):
                parameter.zero_()
        assert isinstance(theirs, Sublayer), "looked at with the shape"
        heads = torch.arange(theirs.heads).unflatten(0, (theirs.kv_heads or theirs.heads, -1))
        for item in plan_attention("self_attn", source, theirs, heads, None, 0):
            assert isinstance(item, Take), "attention is kept whole"
            execute(item, parameters)
        like = next(self.student.parameters())
        return made.to(like.device, like.dtype).requires_grad_(False).eval()

    @contextlib.contextmanager
    def keeping(self, layers: Sequence[int]) -> Iterator[HybridStudent]:
        """Within it the student has the teacher's attention in these of its own layers."""
        student = self.student
        before = {k: (student.layer(k).kind, getattr(student.layer(k), "self_attn", None)) for k in layers}
        for k in layers:
            layer = student.layer(k)
            layer.self_attn, layer.kind = self._attention[k], "full_attention"
        try:
            yield student
        finally:
            for k, (kind, attention) in before.items():
                layer = student.layer(k)
                layer.kind = kind
                if attention is None:
                    del layer.self_attn
                else:  # of a window
                    layer.self_attn = attention
