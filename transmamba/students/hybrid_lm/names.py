"""The student `hybrid_lm`, as a recipe has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...config.registry import STUDENTS
from ...core.tower import StudentSpec
from ...errors import UserError, refuse_all
from ..saved import Saved
from .architectures import ARCHITECTURES, Mixers, make_config
from .selected import LayersFile, Pattern
from .upcycled import Upcycled

# tokens: of a scan that has all to remember, and of one behind a window
_HALF_LIFE, _BEHIND = 8.0, 1024.0
# of `groups.groups_of`, without that which only a window has
GROUP_NAMES = ("mixers", "attention", "mlp", "router", "embedding", "head", "norms")


@STUDENTS.register("hybrid_lm")
@dataclass(frozen=True, kw_only=True)
class HybridLM(Saved):
    """A language model after a Llama, Mistral, SmolLM, Qwen2 or Qwen3, with Mamba-2 in place of attention but
    in the layers that keep it. Saved as a model of transformers, which loads it without transmamba, or with
    code of its own, which transformers loads with trust_remote_code=True.

    attention_layers: the teacher's layers that keep attention, counted from 0; none for a pure one. Or
        {file: layers.json, keep: 8}: the first of those that `transmamba select-layers` has put in order. Or
        a published pattern: every_2nd_from_1, every_4th_from_0
    architecture: transformers' class: `bamba`, or `granite` (GraniteMoeHybrid, which has biases of q, k and v
        elsewhere, too), or a class of `own`, whose code is saved, too: it can normalise q and k, and then B
        and C; `auto`: own for a Qwen3, granite for a Qwen2, else bamba
    depth:     layers, where they are fewer than the teacher's, taken from both of its ends
    width:     channels of the stream, where they are fewer than the teacher's: those that matter most
        (`init.importance`), the same ones in all layers. So are the next three, in each layer by itself
    heads:     of attention and of Mamba-2, which stay as large as the teacher's
    kv_heads:  of k and v; left out: as many heads of q on each as the teacher has
    neurons:   of each MLP
    mixers:    how Mamba-2 layers begin: `attention`, as the teacher's without its softmax, with half_life and
        conv_tap as below; `mamba2`: what reads and writes the stream is attention's, convolutions, steps,
        decays, skips and norms are as Mamba-2's own code draws them (so begins MambaInLlama, arXiv
        2408.15237); `random`: projections are drawn, too
    half_life: tokens after which what a Mamba-2 layer remembers is half as large, to begin with; left out: 8,
        behind a window 1024. `fitted`: of each head those with which it is nearest to the teacher's on some
        training texts, and what skips its scan likewise
    conv_tap:  the convolution at the token itself, to begin with: below 1 SiLU bends less what it reads, and
        the gated norm's weight makes up for it
    window:    how many tokens back a token reads exactly in each Mamba-2 layer, itself included, by the
        teacher's attention; the layer's scan is then of all that has left the window (docs/language.md).
        0 for none. Needs the class of `own`
    sinks:     how many of the first tokens of its document it reads exactly as well
    experts:   what the teacher's MLPs become, each in its own layer; left out: they stay. Saved as a
        GraniteMoeHybrid, or with the code of `own` where that holds no such experts (`switch`, every second
        layer, no layer with attention, a Qwen3)
    window_dropout: how likely a window is to shrink to the token itself in a micro-batch of training, at the
        beginning of a stage; from there it falls to 0 at its end
    """

    made: ClassVar[tuple[str, str]] = ("hybrid_lm", "HybridStudent")
    # its plan asks for each of a teacher's blocks once, in order: they need not all be in memory
    streams: ClassVar[bool] = True

    attention_layers: tuple[int, ...] | Pattern | LayersFile = ()
    architecture: Literal["auto", "bamba", "granite", "own"] = "auto"
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    neurons: int | None = None
    mixers: Mixers = "attention"
    half_life: float | Literal["fitted"] | None = None
    conv_tap: float = 0.1
    window: int = 0
    sinks: int = 0
    window_dropout: float = 0.0
    experts: Upcycled | None = None

    def __post_init__(self) -> None:
        problems = problems_of(self.attention_layers, self.depth)
        for name in ("width", "heads", "kv_heads", "neurons"):
            if (count := getattr(self, name)) is not None and count < 1:
                problems.append(f"{name} is {count}; write a number of at least 1, or leave it out")
        if isinstance(self.half_life, float | int) and not self.half_life > 0:
            problems.append(f"half_life is {self.half_life}; write tokens, above 0, or fitted")
        if self.half_life == "fitted" and (self.heads, self.kv_heads) != (None, None):
            problems.append(
                "half_life fitted is found for the teacher's own heads; leave heads and kv_heads out"
            )
        if not 0 < self.conv_tap <= 1:
            problems.append(f"conv_tap is {self.conv_tap}; write a number above 0, 1 at most")
        if self.mixers != "attention" and (self.half_life not in (None, 8.0) or self.conv_tap != 0.1):
            problems.append(
                f"mixers is {self.mixers}, whose decays and convolutions are drawn; leave half_life and "
                "conv_tap out"
            )
        refuse_all([*problems, *self._window_problems(), *self._expert_problems()])

    @property
    def group_names(self) -> tuple[str, ...]:
        return (*GROUP_NAMES, "far") if self.window else GROUP_NAMES

    def _expert_problems(self) -> list[str]:
        """What of experts the architecture that is asked for does not hold."""
        experts = self.experts
        if experts is None or self.architecture not in ("bamba", "granite"):
            return []
        if self.architecture == "bamba":
            return ["experts are given, which bamba has no place for; write architecture auto"]
        if experts.routing == "switch" or experts.every > 1:
            said = f"routing {experts.routing}, every {experts.every}"
            return [f"experts have {said}; granite has topk_norm in every layer: write architecture own"]
        return []

    def _window_problems(self) -> list[str]:
        """What is wrong with a window, and with what goes with one."""
        problems = []
        for name in ("window", "sinks"):
            if getattr(self, name) < 0:
                problems.append(f"{name} is {getattr(self, name)}; write a number of tokens, 0 for none")
        if not 0 <= self.window_dropout < 1:
            problems.append(f"window_dropout is {self.window_dropout}; write 0 or a number below 1")
        if not self.window:
            given = [name for name in ("sinks", "window_dropout") if getattr(self, name)]
            return problems + [
                f"{name} is given, but window is 0; write a window, or leave it out" for name in given
            ]
        if self.architecture in ("bamba", "granite"):
            problems.append(
                f"window is {self.window}, which {self.architecture} has no place for; write architecture own"
            )
        if self.mixers != "attention":
            problems.append(
                f"mixers is {self.mixers}, but behind a window the scan reads the teacher's own queries, "
                "keys and values; leave mixers out, or write window 0"
            )
        if self.half_life == "fitted":
            problems.append(
                "half_life is fitted, for scans without a window alone; write tokens, or leave it out"
            )
        if self.conv_tap != 0.1:
            problems.append(
                f"conv_tap is {self.conv_tap}, but a scan behind a window has no convolution; leave it out"
            )
        return problems

    def problems_from_scratch(self) -> list[str]:
        """What of it cannot be where no weights are taken from the teacher."""
        none = "but init is null, init.layers 0 or scratch given, so that a student takes none of its weights"
        problems = []
        if self.half_life == "fitted":
            problems.append(
                f"student.half_life is fitted, to a teacher's heads, {none}; write tokens, such as 8"
            )
        if self.experts is not None and self.experts.redrawn:
            problems.append(
                f"student.experts.redrawn is {self.experts.redrawn}, a share of the teacher's neurons, "
                f"{none}; leave it out"
            )
        return problems

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError without a teacher, for one that no class holds as a hybrid, and for a file of
        layers that is none, or another teacher's."""
        if spec.view is None:
            raise UserError("student hybrid_lm takes its shape from a teacher; name one")
        from .model import HybridStudent

        dtype = spec.dtype or torch.get_default_dtype()
        config, start = self.shaped(spec.view, dtype)
        with numbers_of(dtype):
            return HybridStudent(config, **start)

    def shaped(self, view: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        """transformers' configuration after a teacher's view, and how `HybridStudent` begins. Raises
        UserError as `build` does.

        dtype: of its numbers
        """
        from .mixer import norm_weight
        from .own_class import make_own_config
        from .shape import architecture_for, check_upcycled, shape_of

        if self.experts is not None:
            check_upcycled(view)
        pure = self.attention_layers == ()
        kind = "own" if self.window else architecture_for(view, self.architecture, self.experts, pure)
        fused = not ARCHITECTURES[kind].mlp_bias
        shape = shape_of(view, self, fused, normed=kind == "own")
        if norm_weight(shape.eps, self.conv_tap) > torch.finfo(dtype).max:
            raise UserError(
                f"student.conv_tap is {self.conv_tap}, for which {dtype} cannot hold the norm's weight; "
                "write a larger one, such as 0.1"
            )
        if self.window:
            nearby = {"window": self.window, "sinks": self.sinks}
            config = make_own_config(shape, "hybrid_lm", "window_mamba", **nearby)
        elif kind == "own":
            config = make_own_config(shape, "hybrid_lm", "linear_attention")
        else:
            config = make_config(kind, shape)
        half_life = self.half_life if isinstance(self.half_life, float | int) else None
        start: dict[str, Any] = dict(
            half_life=half_life or (_BEHIND if self.window else _HALF_LIFE),
            tap=self.conv_tap,
            fitted=self.half_life == "fitted",
            mixers=self.mixers,
            window_dropout=self.window_dropout,
        )
        if self.experts is not None:
            self.experts.check_redrawn(shape.neurons)
            start |= dict(
                capacity=self.experts.capacity,
                router_std=self.experts.deviation,
                redrawn=self.experts.redrawn,
            )
        return config, start

    def preprocessing(self) -> Any:
        raise UserError("student hybrid_lm takes its words from a teacher; name one")


@contextmanager
def numbers_of(dtype: torch.dtype) -> Iterator[None]:
    """Within it new parameters are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def problems_of(attention_layers: tuple[int, ...] | Pattern | LayersFile, depth: int | None) -> list[str]:
    """What is wrong with the layers that keep attention, and with how many there are, whatever the
    teacher."""
    problems = []
    layers = attention_layers if isinstance(attention_layers, tuple) else ()
    if len(set(layers)) < len(layers) or min(layers, default=0) < 0:
        problems.append(
            f"attention_layers is {list(layers)}; write the teacher's layers, each once, counted from 0"
        )
    if depth is not None and depth < 1:
        problems.append(f"depth is {depth}; write a number of at least 1, or leave it out")
    return problems
