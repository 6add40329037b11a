"""A dual encoder of open_clip as a student, with Mamba in its image tower, its text tower the teacher's.

It is open_clip's own CustomTextCLIP, with that class's names and shapes, so that open_clip loads what is
saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from ...core.frames import embed_frames
from ...core.output import Capture, Captures, Output
from ...core.preprocessing import Preprocessing
from ...core.tower import Tower, scan_of, similarity_scalars
from ...ecosystems import open_clip as library
from ...ecosystems.open_clip_tokenizer import OpenClipTokenizer
from ...ecosystems.origin import Origin
from ...subcloning.plan import Dropped, Take
from ...subcloning.selection import Selection
from ...views.heads import Embedder
from ...views.view import View
from ..image_part import ASKED
from ..text_mamba import TextMamba
from .plan import plan_projection, plan_scalars, plan_text

if TYPE_CHECKING:
    from .names import Clip

_TRUNK, _TEXT = "visual.trunk.", "text."


class ClipStudent(CustomTextCLIP):
    """model_cfg: what open_clip builds it from
    config:    which of its towers are what, and begin as what
    """

    def __init__(self, model_cfg: Mapping[str, Any], config: Clip) -> None:
        given = copy.deepcopy({key: value for key, value in model_cfg.items() if key != "custom_text"})
        super().__init__(**given)
        self.config = config
        library.say_made_from(self, model_cfg, Origin())

    def carry(self, preprocessing: Preprocessing, licence: str | None, base_model: str | None) -> None:
        """What it has of its teacher beside weights."""
        cfg, _, _ = library.made_from(self)
        assert cfg is not None, "said when it was made"
        if isinstance(preprocessing.text, OpenClipTokenizer):
            cfg = {**cfg, "text_cfg": {**cfg["text_cfg"], **preprocessing.text.text_cfg(base_model)}}
        library.say_made_from(self, cfg, Origin(licence, base_model), preprocessing.text)
        library.say_looks(self, preprocessing)

    def no_weight_decay(self) -> set[str]:
        trunk: Any = self.visual.trunk
        own = {_TRUNK + name for name in trunk.no_weight_decay()}
        if isinstance(self.text, TextMamba):
            own |= {_TEXT + name for name in self.text.no_weight_decay()}
        return super().no_weight_decay() | own

    # --- the student's interface
    # ------------------------------------------------------------------------------

    @property
    def towers(self) -> dict[str, Tower]:
        trunk: Any = self.visual.trunk
        return {"image": trunk, **({"text": self.text} if isinstance(self.text, TextMamba) else {})}

    def run(self, inputs: Mapping[str, Tensor], captures: Captures) -> Output:
        output = Output(scalars=similarity_scalars(self))
        if "image" in inputs:
            trunk: Any = self.visual.trunk
            made = trunk.run({"image": inputs["image"]}, captures)
            assert made.logits is not None, "a trunk's pooled token"
            output.streams["image"] = made.streams["image"]
            output.embeddings["image"] = F.normalize(self.visual.head(made.logits()), dim=-1)
        if "frames" in inputs:
            run = partial(self.run, captures={})
            output.embeddings["image"] = embed_frames(inputs, captures, run, scan_of(self))
        if "text" in inputs:
            output.embeddings["text"] = F.normalize(self._read(inputs, captures, output), dim=-1)
        return output

    def _read(self, inputs: Mapping[str, Tensor], captures: Captures, output: Output) -> Tensor:
        """(B, E) of the texts, and their stream where the tower is ours."""
        if isinstance(self.text, TextMamba):
            output.streams["text"], hidden = self.text.run(inputs, captures.get("text", Capture()))
            return self.text.embed(hidden, inputs)
        read = self.text(inputs["text"])
        return read[0] if isinstance(read, tuple) else read

    def plan(self, view: View, select: Mapping[str, Selection]) -> Iterator[Take | Dropped]:
        if self.config.image.fresh:
            yield Dropped(source="image", why="student.image.fresh: the tower starts from random weights")
        else:
            yield from self._plan_image(view, select)
        if self.config.text.fresh:
            yield Dropped(source="text", why="student.text.fresh: the tower starts from random weights")
        elif isinstance(self.text, TextMamba):
            head = view.heads["text"]
            assert isinstance(head, Embedder), "seen when the shape was taken"
            yield from self.text.plan(view.towers["text"], head, _TEXT)
        elif "text" in view.opaque:  # its own code, so its own names
            for name, tensor in view.opaque["text"].module.named_parameters(prefix="text"):
                yield Take(target=name, source=name, tensor=tensor)
        elif "text" in view.towers:
            yield from plan_text(self.text, view.towers["text"], view.heads["text"])
        yield from plan_scalars(view)

    def _plan_image(self, view: View, select: Mapping[str, Selection]) -> Iterator[Take | Dropped]:
        trunk: Any = self.visual.trunk
        for item in trunk.plan(view, select, ASKED):
            if isinstance(item, Take):
                yield replace(item, target=_TRUNK + item.target)
            elif item.source != "head.projection":
                yield item
        yield from plan_projection(self.visual, view, select["image"].residual)

    def groups(self) -> dict[str, Callable[[str], bool]]:
        trunk: Any = self.visual.trunk
        mixers = trunk.groups()["mixers"]
        return {
            "image": lambda name: name.startswith("visual."),
            "text": lambda name: name.startswith("text."),
            "mixers": lambda name: (
                (name.startswith(_TRUNK) and mixers(name.removeprefix(_TRUNK)))
                or (isinstance(self.text, TextMamba) and name.startswith(_TEXT) and ".attn." in name)
            ),
            "head": lambda name: name.startswith(("visual.head.", "text.text_projection", "text.proj")),
            "scale": lambda name: name in ("logit_scale", "logit_bias"),
        }

    def units(self) -> list[nn.Module]:
        trunk: Any = self.visual.trunk
        text = self.text.blocks if isinstance(self.text, TextMamba) else [self.text]
        return [*trunk.units(), *text]
