"""The student `moe_mamba`: Mamba and Switch-MoE layers in turn, from random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from ..config.registry import STUDENTS
from ..core.text import TextOnly
from ..core.tower import StudentSpec
from ..ecosystems.byte_tokenizer import BYTES
from ..ecosystems.language_tokenizer import HuggingFaceTokenizer
from ..errors import UserError, refuse_all
from ..layers.capacity import capacity_problems
from .hybrid_lm.names import GROUP_NAMES
from .saved import Saved

Variant = Literal["sequential", "parallel", "inner"]
Projection = Literal["conv", "gate", "out"]
_WITHIN: tuple[Projection, ...] = ("conv", "out")


@STUDENTS.register("moe_mamba")
@dataclass(frozen=True, kw_only=True)
class MoeMamba(Saved):
    """MoE-Mamba (arXiv 2401.04081): a Mamba layer, then experts of which a router chooses one by its raw
    probability, each behind a norm of its own; no positions. Its text was not read first-hand: what is its,
    and what ours (docs/experts.md). Nothing is taken from a teacher's weights; with one (`init: null`) the
    words are the teacher's. Saved with its code: transformers loads it with trust_remote_code=True.

    experts:  of a layer; 1: an MLP of as many neurons in their place, the control of equal active parameters;
        0: a second Mamba layer there, pure Mamba, which at 3 * width neurons has nearly as many, too
    blocks:   pairs of layers
    width:    channels of the stream
    neurons:  of an expert, down(relu(up)), without biases; left out: 3 * width. Not of the variant `inner`
    variant:  `sequential`; `parallel`: the experts read what Mamba reads; `inner`: experts are within every
        first of two Mamba layers, in the place of its projections `within`
    within:   of those to the convolution, to the gate and out of the layer (conv, gate, out), of the variant
        `inner` alone; left out: conv and out
    capacity: in training an expert takes so many times its even share of a micro-batch's tokens and no more;
        null: however many choose it. Never in evaluation
    expand, state, conv: Mamba's inner channels a channel, states a channel, taps
    tokenizer: without a teacher: `bytes`, or a folder or id of transformers with one; left out: bytes, and
        with a teacher its own
    """

    begins_anew: ClassVar[bool] = True  # it draws its weights, whatever the teacher
    made: ClassVar[tuple[str, str]] = ("hybrid_lm", "HybridStudent")
    group_names: ClassVar[tuple[str, ...]] = GROUP_NAMES

    experts: int = 8
    blocks: int = 6
    width: int = 256
    neurons: int | None = None
    variant: Variant = "sequential"
    within: tuple[Projection, ...] | None = None
    capacity: float | None = 1.0
    expand: int = 2
    state: int = 16
    conv: int = 4
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        problems = []
        for name in ("blocks", "width", "neurons", "expand", "state"):
            if (count := getattr(self, name)) is not None and count < 1:
                problems.append(f"{name} is {count}; write a number of at least 1")
        if not 2 <= self.conv <= 4:
            problems.append(f"conv is {self.conv}; write 2, 3 or 4 taps")
        if self.experts < 0:
            problems.append(f"experts is {self.experts}; write 0 for pure Mamba, 1 for an MLP, or more")
        if self.variant == "inner" and self.experts < 2:
            problems.append(f"experts is {self.experts} of variant inner; write at least 2")
        if self.variant == "parallel" and not self.experts:
            problems.append(
                "experts is 0 of variant parallel, which then has nothing beside Mamba; write 1 or more"
            )
        if self.tokenizer == "":
            problems.append("tokenizer is empty; write bytes, a folder or an id, or leave it out")
        if self.within is not None and len({*self.within}) < max(1, len(self.within)):
            problems.append(f"within is {list(self.within)}; write some of conv, gate and out, each once")
        count = self.experts if self.experts > 1 else None
        refuse_all([*problems, *self._idle_problems(), *capacity_problems(self.capacity, count)])

    def _idle_problems(self) -> list[str]:
        """What is asked for, and would change nothing."""
        problems = []
        if self.within is not None and self.variant != "inner":
            problems.append(
                f"within is {list(self.within)}, of which variant {self.variant} has nothing; leave it out, "
                "or write variant inner"
            )
        if self.neurons is not None and self.variant == "inner":
            problems.append(
                f"neurons is {self.neurons}, but in variant inner experts are Mamba's own projections; leave "
                "it out, or write expand"
            )
        elif self.neurons is not None and not self.experts:
            problems.append(f"neurons is {self.neurons}, but with experts 0 there are none; leave it out")
        if self.experts < 2 and self.capacity not in (None, 1.0):
            problems.append(
                f"capacity is {self.capacity}, but with experts {self.experts} nothing is routed; leave it "
                "out"
            )
        return problems

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError for a teacher that is no language model, and for a tokenizer beside it."""
        from .hybrid_lm.model import HybridStudent
        from .hybrid_lm.own_class import AUTO_MAP, own_config

        reads = self.preprocessing() if spec.view is None else spec.preprocessing
        words = _words(spec.view) if spec.view is not None else reads.text.vocabulary
        if spec.view is not None and self.tokenizer is not None:
            raise UserError(
                f"student.tokenizer is {self.tokenizer!r}, but with a teacher the words are the teacher's; "
                "leave it out, or write teacher: null"
            )
        config: Any = own_config()(
            vocab_size=words,
            hidden_size=self.width,
            intermediate_size=self.neurons or 3 * self.width,
            mamba_expand=self.expand,
            mamba_d_state=self.state,
            mamba_d_conv=self.conv,
            tie_word_embeddings=False,
            eos_token_id=None if reads is None else reads.text.eos,
            bos_token_id=None,
            auto_map=AUTO_MAP,
            transmamba={"student": "moe_mamba", "null": 0},
            **self._layers(),
        )
        student = HybridStudent(config, capacity=self.capacity)
        student.reads = reads
        return student

    def _layers(self) -> dict[str, Any]:
        """What the configuration says of the layers."""
        if self.variant == "inner":
            kinds = ["switch_mamba", "mamba"] * self.blocks
            found = {"inner_experts": self.within or _WITHIN, "num_experts": self.experts}
            return {"layer_kinds": kinds, "mlp": "none", **found}
        if not self.experts:
            return {"layer_kinds": ["mamba"] * (2 * self.blocks), "mlp": "none"}
        kinds, parallel = ["mamba"] * self.blocks, self.variant == "parallel"
        if self.experts == 1:
            return {"layer_kinds": kinds, "mlp": "relu", "parallel": parallel}
        return {
            "layer_kinds": kinds,
            "mlp": "relu",
            "parallel": parallel,
            "num_experts": self.experts,
            "expert_layers": range(self.blocks),
        }

    def preprocessing(self) -> TextOnly:
        return TextOnly(HuggingFaceTokenizer(BYTES if self.tokenizer is None else self.tokenizer))


def _words(view: Any) -> int:
    """How many a teacher has. Raises UserError for one without."""
    tower = view.towers.get("decoder")
    if tower is None:
        raise UserError(
            f"student moe_mamba reads texts; this teacher has {', '.join(view.towers)}; take a language model"
        )
    return int(tower.embedding.weight.shape[0])
