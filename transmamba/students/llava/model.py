"""A LLaVA as a student: an image tower, a connector, and a decoder that reads both, either with Mamba or
kept.

It is a module of its own, for its parts return records; transformers' LlavaForConditionalGeneration loads its
tensors strictly (`stock`), and is what is saved. Shapes: B rows, L tokens, D channels; P pictures of all
rows, N tokens of each, D' channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.layout import Spliced
from ...core.output import Capture, Captures, Context, Output
from ...ecosystems.fewer_tokens import tokens_told
from ...layers.cell_means import CellMeans
from ...layers.prompt import Prompt
from ...subcloning.plan import Dropped, Take
from ...subcloning.selection import Selection, multiplicity
from ...views.view import View
from ..after import After
from ..carried import Carried
from ..hybrid_lm.model import HybridStudent
from ..hybrid_lm.stock import write
from ..hybrid_lm.swap import Swap
from ..image_part import ASKED
from ..reading import take_affine
from ..sizes import pair
from ..spread import is_spread
from .crossing import Crossing, prompts_of
from .kept import KeptTower, image_tower
from .marks import rows_of_pictures
from .parts import NONE_KEPT, OURS, decoder_view, image_view, spliced_of
from .stock import as_stock, save

IMAGE, CONNECTOR, DECODER = "vision_tower.", "multi_modal_projector.", "language_model."
NOTHING = Capture()
# of the decoder, the groups that a recipe names without saying whose
_OF_DECODER = ("attention", "mlp", "embedding", "head", "norms")


class LlavaStudent(Carried, nn.Module):
    """Reads `text` (B, L) with `text_mask` (B, L) and, with cross-Mamba, `prompt_mask` (B, L), and `image`
    (P, C, H, W) with `image_row` (P,), the row of each: all pictures of a batch, row by row, in the order of
    their marks; or in place of pictures `words` (B, L, D), see `spliced`. Its streams are `image` and
    `decoder`.

    config: transformers' LlavaConfig
    fresh:  whether a converted image tower starts from random weights
    start:  how new Mamba-2 layers of the decoder begin, as `HybridStudent` has it
    """

    base_model_prefix = ""  # PEFT asks it of a model within which there is one of transformers'
    merged_alone = True  # an adapter beside it has other names than the class that it is saved as

    def __init__(self, config: Any, *, fresh: bool = False, **start: Any) -> None:
        super().__init__()
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        self.config, self.fresh = config, fresh
        self.vision_tower: Any = image_tower(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        for linear in (self.multi_modal_projector.linear_1, self.multi_modal_projector.linear_2):
            nn.init.normal_(linear.weight, std=config.text_config.initializer_range)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.language_model = HybridStudent(config.text_config, **start)
        self.language_model.layout = Spliced(("image", "text"))
        layout: Any = self.vision_tower.layout
        self.means = CellMeans.of(layout.rows, layout.columns, tokens_told(config), "image_tokens")
        asked = getattr(config, OURS)["cross"]
        self.cross = None if asked is None else Crossing(asked, self.vision_tower, self.language_model.width)

    @property
    def kept(self) -> bool:
        """Whether the image tower is the teacher's own."""
        return isinstance(self.vision_tower, KeptTower)

    @property
    def tokens(self) -> int:
        """Of a picture, N."""
        return self._tower_tokens if self.means is None else self.means.tokens

    @property
    def _tower_tokens(self) -> int:
        """Of a picture that are read of the tower."""
        layout = self.vision_tower.layout
        full = self.kept and self.config.vision_feature_select_strategy == "full"
        return int(layout.length if full else layout.num_patches)

    @property
    def vocabulary(self) -> int:
        return self.language_model.vocabulary

    def get_input_embeddings(self) -> nn.Module:
        """Of words: what an adapter on the embedding adapts; pictures have one, too."""
        return self.language_model.model["embed_tokens"]

    # --- the student's interface ---

    @property
    def towers(self) -> dict[str, Any]:
        """A kept image tower has nothing to align, and is not among them."""
        image = {} if self.kept else {"image": self.vision_tower}
        return {**image, "decoder": self.language_model}

    def run(self, inputs: Mapping[str, Tensor], captures: Captures | None = None) -> Output:
        """Raises UserError where a row's text has another number of image tokens than its pictures make, and
        where cross-Mamba is not told which words are the prompt."""
        captures, output = captures or {}, Output()
        if "text" not in inputs:
            self._see(inputs, None, captures, output)
            return output
        x = inputs["words"] if "words" in inputs else self._words(inputs, captures, output)
        made = self.language_model.read(x, Context.of(inputs), captures.get("decoder", NOTHING))
        output.streams["decoder"], output.logits = made.streams["decoder"], made.logits
        return output

    def spliced(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same inputs with all that the decoder's layers read, `words` (B, L, D), in place of pictures:
        for whoever runs them several times with other layers."""
        rest = {name: tensor for name, tensor in inputs.items() if name not in ("image", "image_row")}
        return {**rest, "words": self._words(inputs, {}, Output())}

    def _words(self, inputs: Mapping[str, Tensor], captures: Captures, output: Output) -> Tensor:
        """What the decoder's first layer reads, (B, L, D): words, and in their places what is seen."""
        rows = rows_of_pictures(inputs, self.config.image_token_id, self.tokens)  # before anything is made
        x = self.language_model.embed(inputs["text"])
        prompts = None
        if self.cross is not None and rows is not None:
            prompts = prompts_of(inputs, x, rows, self.config.image_token_id, shuffled=self.cross.shuffled)
        seen = self._see(inputs, prompts, captures, output)
        if seen is not None:
            places = (inputs["text"] == self.config.image_token_id)[..., None]
            x = x.masked_scatter(places, seen.to(x.dtype))
        elif self._trains_pictures() or is_spread(self.vision_tower):
            # every rank has the same gradients and calls the same units, of nothing where it has none
            x = x + self._nothing(inputs["text"]).to(x.dtype)
        return x

    def _see(
        self, inputs: Mapping[str, Tensor], prompts: Prompt | None, captures: Captures, output: Output
    ) -> Tensor | None:
        """What the decoder reads of the pictures, (P, N, D); None without any."""
        if "image" not in inputs or not len(inputs["image"]):
            return None
        after, before = self._crossing(prompts)
        image = inputs["image"].to(self.multi_modal_projector.linear_1.weight.dtype)
        made = self.vision_tower.run({"image": image}, captures, after)
        output.streams["image"] = made.streams["image"]
        seen = before(self._read(made.logits.hidden))
        return self.multi_modal_projector(seen if self.means is None else self.means(seen))

    def _crossing(self, prompts: Prompt | None) -> tuple[After | None, Callable[[Tensor], Tensor]]:
        """What stands behind the tower's layers, and what before the connector."""
        if self.cross is None or prompts is None:
            return None, lambda x: x
        if self.cross.every is None:
            return None, partial(self.cross, 0, prompts)
        return partial(self.cross.behind, prompts), lambda x: x

    def _read(self, x: Tensor) -> Tensor:
        """What the connector reads, (P, N, D') of the tower's last stream."""
        layout = self.vision_tower.layout
        return x if self._tower_tokens == layout.length else x[:, layout.patches]

    def _trains_pictures(self) -> bool:
        parts = [self.vision_tower, self.multi_modal_projector, self.cross]
        trained = (p.requires_grad for part in parts if part is not None for p in part.parameters())
        return self.training and torch.is_grad_enabled() and any(trained)

    def _nothing(self, text: Tensor) -> Tensor:
        """0 times what is made of a black picture and its text (B, L)."""
        vision = self.config.vision_config
        height, width = pair(vision.image_size)
        image = {"image": torch.zeros(1, vision.num_channels, height, width, device=text.device)}
        prompts = None
        if self.cross is not None:
            words = self.language_model.embed(text[:1])
            every = torch.ones_like(text[:1], dtype=torch.bool)
            prompts = Prompt.of(words, every, longest=text.shape[1])
        seen = self._see(image, prompts, {}, Output())
        assert seen is not None, "there is one"
        return 0.0 * seen.sum()

    def generate(self, inputs: Mapping[str, Tensor], limit: int) -> Tensor:
        """The likeliest words after `text` (B, L), whose padding lies before it, by transformers' model of
        the same tensors: (B, at most limit)."""
        if "text" in inputs:
            rows_of_pictures(inputs, self.config.image_token_id, self.tokens)
        return write(self, inputs, limit)

    def forward(self, text: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of text (B, L) and its pictures (P, C, H, W)."""
        logits = self.run({"text": text, **({} if image is None else {"image": image})}).logits
        assert logits is not None, "there is text"
        return logits()

    def plan(self, view: View, select: Mapping[str, Selection]) -> Iterator[Take | Dropped]:
        """All tensors of the teacher's, or why not."""
        embedding, width = spliced_of(view), view.towers["image"].width
        keep = torch.arange(width)
        if self.kept:
            yield from _within(IMAGE, self.vision_tower.plan(view.towers["image"]), "image")
        elif self.fresh:
            yield Dropped(source="image", why="student.image.fresh: the tower starts from random weights")
        else:
            keep = select["image"].residual
            items = self.vision_tower.plan(image_view(view), select, ASKED)
            yield from _within(IMAGE, items, "image")
        first, last = embedding.connector.linears
        if self.vision_tower.width == width:
            yield from take_affine(f"{CONNECTOR}linear_1", "connector.0", first)
        elif self.fresh:
            yield Dropped(source="connector.0", why="student.image.fresh, and of another width")
        else:
            yield Take(
                target=f"{CONNECTOR}linear_1.weight",
                source="connector.0.weight",
                tensor=first.weight,
                index=(None, keep),
                scale=multiplicity(keep, width),
            )
            if first.bias is not None:
                yield Take(target=f"{CONNECTOR}linear_1.bias", source="connector.0.bias", tensor=first.bias)
        yield from take_affine(f"{CONNECTOR}linear_2", "connector.1", last)
        yield from _within(DECODER, self.language_model.plan(decoder_view(view), select), "decoder")

    def swap(self, view: View) -> Swap:
        """Of the decoder's layers: the teacher's pictures come by its own tower, the student's by its own."""
        return Swap(self.language_model, decoder_view(view), self, NONE_KEPT)

    def groups(self) -> dict[str, Callable[[str], bool]]:
        image, decoder = self.vision_tower.groups(), self.language_model.groups()
        mixers = {
            "image.mixers": _named(IMAGE, image["mixers"]),
            "decoder.mixers": _named(DECODER, decoder["mixers"]),
        }
        return {
            "image": lambda name: name.startswith(IMAGE),
            "connector": lambda name: name.startswith(CONNECTOR),
            "decoder": lambda name: name.startswith(DECODER),
            **mixers,
            "mixers": lambda name: any(each(name) for each in mixers.values()),
            **{name: _named(DECODER, decoder[name]) for name in _OF_DECODER},
            "cross": lambda name: name.startswith("cross."),
        }

    def units(self) -> list[nn.Module]:
        crossing = [] if self.cross is None else list(self.cross.modules_at)
        own = [self.multi_modal_projector, *crossing]
        return [*self.vision_tower.units(), *own, *self.language_model.units()]

    def compile_(self) -> None:
        """Of the decoder as it does it itself; of an image tower of ours each layer."""
        self.language_model.compile_()
        for unit in [] if self.kept else self.vision_tower.units():
            unit.compile()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.vision_tower.set_grad_checkpointing(enable)
        self.language_model.set_grad_checkpointing(enable)

    # --- transformers' class ---

    def stock(self) -> Any:
        """transformers' own model of the same tensors, not copies: for generation, and for saving."""
        return as_stock(self)

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json, safetensors, generation_config.json, and the processor where there is a tokenizer."""
        save(self, Path(folder))


def _within(prefix: str, items: Iterator[Take | Dropped], tower: str) -> Iterator[Take | Dropped]:
    """A part's items as those of the whole."""
    for item in items:
        if isinstance(item, Take):
            yield replace(item, target=prefix + item.target)
        else:
            yield item


def _named(prefix: str, group: Callable[[str], bool]) -> Callable[[str], bool]:
    """A part's group by the names of the whole."""
    return lambda name: name.startswith(prefix) and group(name.removeprefix(prefix))


__all__ = ["OURS", "LlavaStudent"]
