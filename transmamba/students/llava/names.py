"""The student `llava`, as a recipe has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...config.registry import STUDENTS
from ...core.tower import StudentSpec
from ...ecosystems.timm import check_options
from ...errors import UserError, refuse_all
from ...layers.cross_base import CrossMambaConfig
from ...layers.cross_rivals import of_equal_size
from ..hybrid_lm.architectures import Mixers
from ..hybrid_lm.names import HybridLM, numbers_of
from ..hybrid_lm.selected import LayersFile, Pattern
from ..saved import Saved


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """What becomes of the image tower; of each kind there are the layers before the one that the teacher's
    connector reads.

    kind:   `kept`, the teacher's own, `vim` or `ssd_vit`
    fresh:  of a vim or ssd_vit: start from random weights, whatever `init` says
    attention_layers: of an ssd_vit, the blocks that keep attention
    kwargs: of its constructor, as of the student of that kind; they go before the teacher's shape
    """

    kind: Literal["kept", "vim", "ssd_vit"] = "kept"
    fresh: bool = False
    attention_layers: tuple[int, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.kwargs)
        problems = []
        if self.attention_layers and self.kind != "ssd_vit":
            problems.append(f"attention_layers are for an ssd_vit, not for a {self.kind}; leave them out")
        if self.kind == "kept" and self.kwargs:
            problems.append(
                "kwargs are for a vim or an ssd_vit; a kept tower is the teacher's, leave them out"
            )
        if self.kind == "kept" and self.fresh:
            problems.append("fresh is for a vim or an ssd_vit; a kept tower is the teacher's, leave it out")
        refuse_all(problems)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What becomes of the decoder.

    kind: `kept`, with the teacher's attention in all layers, or `hybrid`, with Mamba-2 in most of them
    attention_layers, architecture, mixers, half_life, conv_tap: of a hybrid, as of the student hybrid_lm
    """

    kind: Literal["kept", "hybrid"] = "kept"
    attention_layers: tuple[int, ...] | Pattern | LayersFile = ()
    architecture: Literal["auto", "bamba", "granite"] = "auto"
    mixers: Mixers = "attention"
    half_life: float | Literal["fitted"] | None = None
    conv_tap: float = 0.1

    def __post_init__(self) -> None:
        hybrid = self.asked(0)  # whose checks these are
        if self.kind == "kept" and hybrid != HybridLM(architecture=self.architecture):
            refuse_all(
                [
                    "attention_layers, mixers, half_life and conv_tap are for a hybrid; a kept decoder has "
                    "the teacher's attention in all layers, leave them out"
                ]
            )

    def asked(self, depth: int) -> HybridLM:
        """Of a decoder of so many layers, as the student hybrid_lm is asked for it."""
        everywhere = tuple(range(depth)) if self.kind == "kept" and depth else self.attention_layers
        return HybridLM(
            attention_layers=everywhere,
            architecture=self.architecture,
            mixers=self.mixers,
            half_life=self.half_life,
            conv_tap=self.conv_tap,
        )


@dataclass(frozen=True, kw_only=True)
class Cross(CrossMambaConfig):
    """Cross-Mamba, by which pictures know the question: `CrossMambaConfig`'s keys, and where it stands.

    every: behind every n-th layer of the image tower, of all its tokens; left out: once before the connector,
        of the tokens that it reads
    prompt: `own`, or `shuffled`: a control, in which it reads the prompt of the row before in the batch,
        while the decoder reads the right one; in a batch of one row, none
    """

    every: int | None = None
    prompt: Literal["own", "shuffled"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every is not None and self.every < 1:
            refuse_all([f"every is {self.every}; write a number of layers, at least 1, or leave it out"])


@STUDENTS.register("llava")
@dataclass(frozen=True, kw_only=True)
class Llava(Saved):
    """A vision-language model after a LLaVA of transformers (a CLIP or SigLIP tower, a connector, a Llama,
    Mistral, SmolLM, Qwen2 or Qwen3), with Mamba in its tower, in its decoder, or in both. Saved as
    transformers' own LlavaForConditionalGeneration, with its processor; one whose tower is a vim or ssd_vit
    loads after `import transmamba`. After a teacher with `image_tokens` it reads as many of a picture, and is
    a class of our own; so it is after a Qwen3. What is trained, each stage's `trainable`: image, connector,
    decoder, mixers (of both), attention, mlp, embedding, head, norms (of the decoder), cross, image.mixers,
    decoder.mixers.

    image:   its image tower
    decoder: its language model
    cross:   cross-Mamba between the two, or null: with it the student is a class of our own, which
        transformers loads with trust_remote_code=True
    """

    made: ClassVar[tuple[str, str]] = ("llava", "LlavaStudent")
    group_names: ClassVar[tuple[str, ...]] = (
        *("image", "connector", "decoder", "image.mixers", "decoder.mixers", "mixers"),
        *("attention", "mlp", "embedding", "head", "norms", "cross"),
    )

    image: ImageTower = field(default_factory=ImageTower)
    decoder: Decoder = field(default_factory=Decoder)
    cross: Cross | None = None

    def problems_from_scratch(self) -> list[str]:
        """What of it cannot be where no weights are taken from the teacher."""
        found = self.decoder.asked(0).problems_from_scratch()
        return [said.replace("student.", "student.decoder.") for said in found]

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError without a teacher, for one that is no LLaVA, and for a part that cannot be."""
        if spec.view is None:
            raise UserError("student llava takes its shape from a teacher; name one")
        from .model import LlavaStudent
        from .parts import decoder_view, llava_config, spliced_of, vision_config

        spliced_of(spec.view)
        dtype = spec.dtype or torch.get_default_dtype()
        vision, full = vision_config(self.image, spec)
        words = decoder_view(spec.view)
        hybrid = self.decoder.asked(len(words.towers["decoder"].ends))
        with _of_decoder():
            text, start = hybrid.shaped(words, dtype)
        cross = None
        if self.cross is not None:  # with the width that follows, so that the saved class need not know how
            widths = int(vision.hidden_size), int(text.hidden_size)
            cross = asdict(of_equal_size(*widths, self.cross))
        config = llava_config(spec.view, vision, text, full, cross)
        with numbers_of(dtype):
            return LlavaStudent(config, fresh=self.image.fresh, **start)

    def preprocessing(self) -> Any:
        raise UserError("student llava takes its preprocessing from a teacher; name one")


@contextmanager
def _of_decoder() -> Iterator[None]:
    """Within it what hybrid_lm says of its options is said of the decoder's."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("student.", "student.decoder.")) from error
