"""The student `hybrid_lm`, as a recipe has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ...config.registry import STUDENTS
from ...core.tower import StudentSpec
from ...ecosystems.sources import Source
from ...errors import UserError, refuse_all
from .architectures import ARCHITECTURES, make_config

if TYPE_CHECKING:
    from .model import HybridStudent


@STUDENTS.register("hybrid_lm")
@dataclass(frozen=True, kw_only=True)
class HybridLM:
    """A language model after a Llama, Mistral, SmolLM, Qwen2 or Qwen3, with Mamba-2 in place of attention but
    in the layers that keep it. Saved as a model of transformers, which loads it without transmamba, or with
    code of its own, which transformers loads with trust_remote_code=True.

    attention_layers: the teacher's layers that keep attention, counted from 0; none for a pure one
    architecture: transformers' class: `bamba`, or `granite` (GraniteMoeHybrid, which has biases of q, k and v
        elsewhere, too), or a class of `own`, whose code is saved, too: it can normalise q and k, and then B
        and C; `auto`: own for a Qwen3, granite for a Qwen2, else bamba
    depth:     layers, where they are fewer than the teacher's, taken from both of its ends
    half_life: tokens after which what a Mamba-2 layer remembers is half as large, to begin with
    conv_tap:  the convolution at the token itself, to begin with: below 1 SiLU bends less what it reads, and
        the gated norm's weight makes up for it
    """

    attention_layers: tuple[int, ...] = ()
    architecture: Literal["auto", "bamba", "granite", "own"] = "auto"
    depth: int | None = None
    half_life: float = 8.0
    conv_tap: float = 0.1

    def __post_init__(self) -> None:
        problems = problems_of(self.attention_layers, self.depth)
        if not self.half_life > 0:
            problems.append(f"half_life is {self.half_life}; write tokens, above 0")
        if not 0 < self.conv_tap <= 1:
            problems.append(f"conv_tap is {self.conv_tap}; write a number above 0, 1 at most")
        refuse_all(problems)

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError without a teacher, and for one that no class holds as a hybrid."""
        if spec.view is None:
            raise UserError("student hybrid_lm takes its shape from a teacher; name one")
        from .model import HybridStudent
        from .own_class import make_own_config
        from .shape import architecture_for, shape_of

        kind = architecture_for(spec.view, self.architecture)
        fused = not ARCHITECTURES[kind].mlp_bias
        shape = shape_of(spec.view, self.attention_layers, self.depth, fused, normed=kind == "own")
        if kind == "own":
            config = make_own_config(shape, "hybrid_lm", "linear_attention")
        else:
            config = make_config(kind, shape)
        return HybridStudent(config, half_life=self.half_life, tap=self.conv_tap)

    def preprocessing(self) -> Any:
        raise UserError("student hybrid_lm takes its words from a teacher; name one")

    @staticmethod
    def empty(source: Source) -> HybridStudent:
        """The student that a configuration describes, at its start."""
        from .model import HybridStudent
        from .stock import empty

        return empty(source, HybridStudent)

    @staticmethod
    def load(source: Source) -> HybridStudent:
        """The student in a folder or a repository that says it is one."""
        from .model import HybridStudent
        from .stock import load

        return load(source, HybridStudent)


def problems_of(attention_layers: tuple[int, ...], depth: int | None) -> list[str]:
    """What is wrong with the layers that keep attention, and with how many there are, whatever the
    teacher."""
    problems = []
    if len(set(attention_layers)) < len(attention_layers) or min(attention_layers, default=0) < 0:
        problems.append(
            f"attention_layers is {list(attention_layers)}; write the teacher's layers, each once, counted "
            "from 0"
        )
    if depth is not None and depth < 1:
        problems.append(f"depth is {depth}; write a number of layers, or leave it out")
    return problems
