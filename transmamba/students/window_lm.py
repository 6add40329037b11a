"""The student `window_lm`: what a converted layer is compared with, attention that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..config.registry import STUDENTS
from ..core.tower import StudentSpec
from ..errors import UserError, refuse_all
from .hybrid_lm.names import GROUP_NAMES, HybridLM, problems_of
from .hybrid_lm.selected import LayersFile, Pattern
from .saved import Saved


@STUDENTS.register("window_lm")
@dataclass(frozen=True, kw_only=True)
class WindowLM(Saved):
    """The rival of `hybrid_lm`: the teacher with all of its weights, whose other layers read the last tokens
    of a text and its first ones alone (StreamingLLM, arXiv 2309.17453). Saved with its code: transformers
    loads it with trust_remote_code=True, and says so where that is missing.

    A layer remembers window + sinks tokens of 2 * kv_heads * channels a head numbers each; a Mamba-2 layer of
    `hybrid_lm` heads * channels a head * states numbers, the scan behind a window kv_heads in place of heads.

    attention_layers: the teacher's layers that read everything, or whence they come, as of `hybrid_lm`
    window:    how many tokens back a token reads in the other layers, itself included
    sinks:     how many of the first tokens of its document it reads as well
    depth:     layers, where they are fewer than the teacher's, taken from both of its ends
    """

    made: ClassVar[tuple[str, str]] = ("hybrid_lm", "HybridStudent")
    group_names: ClassVar[tuple[str, ...]] = GROUP_NAMES

    attention_layers: tuple[int, ...] | Pattern | LayersFile = ()
    window: int = 92
    sinks: int = 4
    depth: int | None = None

    def __post_init__(self) -> None:
        problems = problems_of(self.attention_layers, self.depth)
        if self.window < 1:
            problems.append(f"window is {self.window}; write how many tokens, 1 for the token itself alone")
        if self.sinks < 0:
            problems.append(f"sinks is {self.sinks}; write how many first tokens, 0 for none")
        refuse_all(problems)

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError without a teacher, and for one that the class does not hold."""
        if spec.view is None:
            raise UserError("student window_lm takes its shape from a teacher; name one")
        from .hybrid_lm.model import HybridStudent
        from .hybrid_lm.own_class import make_own_config
        from .hybrid_lm.shape import shape_of

        asked = HybridLM(attention_layers=self.attention_layers, depth=self.depth)
        shape = shape_of(spec.view, asked, fused=False, normed=True)
        nearby = {"window": self.window, "sinks": self.sinks}
        return HybridStudent(make_own_config(shape, "window_lm", "window_attention", **nearby))

    def preprocessing(self) -> Any:
        raise UserError("student window_lm takes its words from a teacher; name one")
