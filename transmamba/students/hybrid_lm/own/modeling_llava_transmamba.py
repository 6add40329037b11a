# SPDX-License-Identifier: Apache-2.0
"""A LLaVA whose pictures know the question: cross-Mamba between the prompt and the vision tower, made by
transmamba (a tower of its own needs `import transmamba` before):

    AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)

Only the prompt is read, so that no picture knows its answer. `prompt_mask` (B, L) says which words are the
prompt; with `labels` it is what stands before the first that is asked; `generate` takes all that it is given.

Shapes: B rows, L tokens, E channels; P pictures, N tokens of each, D channels.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaModel, LlavaModelOutputWithPast

from .configuration_llava_transmamba import CrossLlavaConfig
from .configuration_transmamba import HybridConfig
from .cross_transmamba import CrossMamba, prompt_of
from .modeling_transmamba import HybridModel

# what a decoder of our own class takes, beside what it reads
_OF_OWN = ("use_cache", "output_hidden_states")


def _know(text: Any) -> None:
    """Let transformers, which makes a LLaVA's parts by the classes of their configurations, make a decoder of
    our own class. Of its configuration, for the code beside a model may be loaded anew."""
    if text.model_type == HybridConfig.model_type:
        AutoModel.register(type(text), HybridModel, exist_ok=True)


class Crossing(nn.Module):
    """Cross-Mamba behind every n-th layer of the tower, or once before the projector."""

    def __init__(self, config: CrossLlavaConfig) -> None:
        super().__init__()
        asked, vision = config.transmamba["cross"], config.vision_config
        self.every, self.shuffled = asked["every"], asked.get("prompt", "own") == "shuffled"
        layers = getattr(vision, "num_hidden_layers", None) or vision.model_args["depth"]
        count = 1 if self.every is None else layers // self.every
        width, language = vision.hidden_size, config.text_config.hidden_size
        self.modules_at = nn.ModuleList(CrossMamba(width, language, asked) for _ in range(count))


class CrossLlavaModel(LlavaModel):
    config_class = CrossLlavaConfig

    def __init__(self, config: CrossLlavaConfig) -> None:
        _know(config.text_config)
        super().__init__(config)
        self.cross = None if config.transmamba["cross"] is None else Crossing(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            inputs_embeds = self._spliced(input_ids, pixel_values, inputs_embeds, prompt_mask)
        elif input_ids is not None and not _begun(past_key_values):
            self._rows(input_ids, 0, prompt_mask)
        if isinstance(self.language_model, HybridModel):
            kwargs = {name: value for name, value in kwargs.items() if name in _OF_OWN}
        made = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return LlavaModelOutputWithPast(
            last_hidden_state=made.last_hidden_state,
            past_key_values=made.past_key_values,
            hidden_states=made.hidden_states,
            attentions=made.attentions,
        )

    def _spliced(self, text: Tensor | None, pixels: Tensor, words: Tensor, prompt: Tensor | None) -> Tensor:
        """Words (B, L, E) with the pictures' tokens in their places."""
        if text is None:
            raise ValueError("pictures need input_ids, which say where they stand")
        if prompt is None:
            if self.cross is not None:
                raise ValueError(
                    "write prompt_mask, which words are the prompt, or labels: answers are not read"
                )
            prompt = torch.ones_like(text)
        places, rows = self._rows(text, len(pixels), prompt)
        behind = text.shape[1] - prompt.shape[1]
        prompt = nn.functional.pad(prompt.to(text.device, torch.bool), (0, behind)) & ~places
        of = words
        if self.cross is not None and self.cross.shuffled:
            of, prompt = words.roll(1, 0), prompt.roll(1, 0) & (len(text) > 1)
        seen = self.see(pixels, of[rows], prompt[rows])
        return words.masked_scatter(places[..., None], seen.to(words.dtype))

    def _rows(self, text: Tensor, count: int, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where the tokens of `count` pictures stand (B, L), and the row (P,) of each. Raises ValueError
        for a text with another number of them, as `_fits` has it."""
        places = text == self.config.image_token_id
        if prompt is not None:
            places[:, prompt.shape[1] :] = False  # what is written behind a prompt stands for no picture
        each, found = self.config.image_seq_length, places.sum(dim=1)
        whole = (found.sum() == count * each) & (found % each == 0).all()
        if not _fits(whole, "the texts have other image tokens than their pictures make"):
            raise ValueError(
                f"the texts have {found.tolist()} image tokens, their {count} pictures make {count * each}"
            )
        rows = torch.arange(len(text), device=text.device)
        return places, rows.repeat_interleave(found // each, output_size=count)

    def see(self, pixels: Tensor, words: Tensor, prompt: Tensor) -> Tensor:
        """What the decoder reads of pictures (P, C, H, W): (P, N, E), of words (P, L, E) those of the prompt
        (P, L)."""
        if self.cross is not None:
            words, prompt = prompt_of(words, prompt)
        every = None if self.cross is None else self.cross.every
        modules: Any = () if self.cross is None else self.cross.modules_at

        def behind(k: int, x: Tensor) -> Tensor:
            number, rest = divmod(k + 1, every or 1)
            return x if rest else modules[number - 1](x, words, prompt)

        with _behind(self.vision_tower, behind) if every is not None else contextlib.nullcontext():
            made = self.vision_tower(pixels, output_hidden_states=True, return_dict=True)
        seen = made.hidden_states[-1]
        if self.config.vision_feature_select_strategy == "default":
            seen = seen[:, 1:]
        if modules and every is None:
            seen = modules[0](seen, words, prompt)
        if (tokens := self.config.transmamba.get("image_tokens")) is not None:
            grid = seen.mT.unflatten(-1, (math.isqrt(seen.shape[1]), -1))
            seen = nn.functional.adaptive_avg_pool2d(grid, math.isqrt(tokens)).flatten(2).mT
        return self.multi_modal_projector(seen)


def _begun(cache: Any) -> bool:
    """Whether something was read before, which had its pictures then."""
    return cache is not None and int(cache.get_seq_length()) > 0


def _fits(whole: Tensor, otherwise: str) -> bool:
    """Whether `whole` (), which on a GPU a step of training does not wait for: there, and in what is
    compiled, it ends with an error of torch's, in the words `otherwise`: numbers the device alone knows."""
    if torch.compiler.is_compiling() or (whole.is_cuda and torch.is_grad_enabled()):
        torch._assert_async(whole, otherwise)
        return True
    return bool(whole)


@contextlib.contextmanager
def _behind(tower: Any, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within it what each of a tower's layers makes is changed."""
    tower = getattr(tower, "timm_model", getattr(tower, "vision_model", tower))
    inner = tower.encoder if hasattr(tower, "encoder") else tower
    layers = inner.layers if hasattr(inner, "layers") else inner.blocks

    def hook(k: int) -> Callable[[Any, Any, Any], Any]:
        def changed(_: Any, __: Any, made: Any) -> Any:
            return (change(k, made[0]), *made[1:]) if isinstance(made, tuple) else change(k, made)

        return changed

    hooks = [layer.register_forward_hook(hook(k), prepend=True) for k, layer in enumerate(layers)]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


class CrossLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = CrossLlavaConfig

    def __init__(self, config: CrossLlavaConfig) -> None:
        _know(config.text_config)
        super().__init__(config)
        self.model = CrossLlavaModel(config)
        self.post_init()

    def _supports_default_dynamic_cache(self) -> bool:
        """Not with a decoder of our own class, which makes its cache with the first tokens."""
        own = isinstance(self.model.language_model, HybridModel)
        return not own and bool(super()._supports_default_dynamic_cache())

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers', with `prompt_mask` (B, L) of the text or of its beginning, 1 for words of the
        prompt; image tokens are none."""
        if prompt_mask is None and labels is not None and input_ids is not None:
            prompt_mask = (labels == -100).long().cumprod(dim=1).bool()
            if attention_mask is not None:
                prompt_mask &= attention_mask.bool()
            self._check_asked(input_ids, prompt_mask)
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            prompt_mask=prompt_mask,
            **kwargs,
        )

    def _check_asked(self, text: Tensor, prompt: Tensor) -> None:
        """Refuse labels on all of a text with pictures: they would read none of its words, without a sign."""
        if self.model.cross is None:
            return
        unasked = (text == self.config.image_token_id).any(dim=1) & ~prompt.any(dim=1)
        mend = "so that its pictures have no prompt to read; write -100 on the prompt, or prompt_mask"
        if not _fits(~unasked.any(), f"labels ask for every word of a row, {mend}"):
            raise ValueError(f"labels ask for every word of row {int(unasked.nonzero()[0])}, {mend}")

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers'; what is given is the prompt, what is written is not."""
        text = inputs if inputs is not None else kwargs.get("input_ids")
        if kwargs.get("prompt_mask") is None and text is not None:
            mask = kwargs.get("attention_mask")
            kwargs["prompt_mask"] = torch.ones_like(text) if mask is None else mask
        return super().generate(inputs, **kwargs)
