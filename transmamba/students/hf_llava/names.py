"""The student `hf_llava`, as a recipe has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from torch import nn

from ...config.load import Part
from ...config.registry import STUDENTS, TEACHERS
from ...core.tower import StudentSpec
from ...ecosystems.sources import Source, read_source
from ...errors import refuse_all

# what a tower that is drawn may say, by transformers' names
_SIZES = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers")
_TOWER_KEYS = (*_SIZES, "num_attention_heads", "hidden_act", "layer_norm_eps", "num_channels")


@STUDENTS.register("hf_llava")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceLlava:
    """A LLaVA of transformers, to train or to fine-tune as it is: teachers, baselines. Either a whole one, or
    an image tower and a language model put together by a new connector (arXiv 2304.08485).

    model:    an id, or a folder with config.json and safetensors
    revision: branch, tag or commit on the Hub, of `model`
    tower:    in its place, as a `teacher` is written, what has an image tower of CLIP's or SigLIP's kind,
        such as {name: auto, model: RUN}. Its last block and what follows it are left out, as LLaVA does
    vision:   in place of `tower`, the sizes of a CLIP tower that is drawn: image_size, patch_size,
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads
    decoder:  the language model: an id, a folder, a .gguf file
    image_token: what stands for a picture in a text. It is added to the decoder's words where they lack it
    """

    as_it_is: ClassVar[bool] = True  # it takes no teacher's weights
    group_names: ClassVar[tuple[str, ...]] = ("image", "connector", "decoder", "head")

    model: str | None = None
    revision: str | None = None
    tower: Annotated[Any, Part(TEACHERS)] | None = None
    vision: dict[str, Any] = field(default_factory=dict)
    decoder: str | None = None
    image_token: str = "<image>"

    def __post_init__(self) -> None:
        problems = []
        parts = [name for name in ("tower", "vision", "decoder") if getattr(self, name) not in (None, {})]
        if self.model is not None and parts:
            problems.append(f"{' and '.join(parts)}: leave out beside model, which has its own")
        if self.model is None and (self.decoder is None or (self.tower is None) != bool(self.vision)):
            problems.append("write a model, or a decoder with one of tower and vision")
        if self.revision is not None and self.model is None:
            problems.append("revision goes with a model; leave it out")
        unknown = sorted(self.vision.keys() - set(_TOWER_KEYS))
        if unknown:
            problems.append(f"vision has no {', '.join(unknown)}; known: {', '.join(_TOWER_KEYS)}")
        lacking = [key for key in (*_SIZES, "num_attention_heads") if self.vision and key not in self.vision]
        if lacking:
            problems.append(f"vision lacks {', '.join(lacking)}")
        if not self.image_token.strip():
            problems.append("image_token is empty; write one, such as <image>")
        refuse_all(problems)

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError for what is no LLaVA, and for parts that none can be made of."""
        if self.model is not None:
            return self.load(read_source(self.model, revision=self.revision))
        from .compose import compose

        return compose(self)

    def preprocessing(self) -> Any:
        """How its pictures and texts are read."""
        if self.model is not None:
            from .model import reads_of

            return reads_of(read_source(self.model, revision=self.revision))
        from .compose import reads

        return reads(self)

    @staticmethod
    def load(source: Source) -> nn.Module:
        """A LLaVA in a folder or a repository."""
        from .model import load

        return load(source)

    @staticmethod
    def empty(source: Source) -> nn.Module:
        """The same from its configuration alone, its parameters without numbers."""
        from .model import empty

        return empty(source)
