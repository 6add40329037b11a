# SPDX-License-Identifier: Apache-2.0
"""A causal language model some of whose layers have Mamba-2 in the place of attention, or attention to the
last tokens and the first ones alone, made by transmamba from a model with attention in all of them:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Shapes: B rows, T new tokens, D channels, V words.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .blocks_transmamba import Blocks, portions
from .cache_transmamba import HybridCache
from .configuration_transmamba import HybridConfig
from .experts_transmamba import HybridExperts
from .fixed_cache_transmamba import FixedHybridCache
from .layers_transmamba import HybridAttention, HybridMLP, HybridRMSNorm, Pass
from .mamba_transmamba import HybridMamba
from .mixer_transmamba import HybridMamba2


class HybridDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = HybridRMSNorm(config.hidden_size, config.rms_norm_eps)
        kind = config.layer_kinds[layer]
        self.scans = kind in ("linear_attention", "mamba", "switch_mamba")
        if self.scans:
            self.mamba: nn.Module = (HybridMamba2 if kind == "linear_attention" else HybridMamba)(
                config, layer
            )
        else:
            self.self_attn = HybridAttention(config, layer)
        self.parallel = config.parallel
        routes = layer in config.expert_layers
        self.alone = config.mlp == "none" and not routes
        if not self.alone:
            self.post_attention_layernorm = HybridRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.mlp = HybridExperts(config) if routes else HybridMLP(config)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        mixer = self.mamba if self.scans else self.self_attn
        made = x + mixer(self.input_layernorm(x), shared)
        if self.alone:
            return made
        return made + self.mlp(self.post_attention_layernorm(x if self.parallel else made))


class HybridPreTrainedModel(PreTrainedModel):
    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("HybridDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _is_stateful = True


class HybridModel(HybridPreTrainedModel):
    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        depth = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([HybridDecoderLayer(config, k) for k in depth])
        self.norm = HybridRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Tokens' places follow the mask; `position_ids` may say no other ones."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("write one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        remembers = self.config.use_cache and not self.training if use_cache is None else use_cache
        if remembers and past_key_values is None:
            past_key_values = HybridCache(self.config.num_hidden_layers)
        real, places = self._placed(x, attention_mask, position_ids, past_key_values)
        padded = attention_mask is not None and not bool(attention_mask.all())
        read: list[list[Tensor]] = []
        for part in self._portions(real, past_key_values, padded):
            shared = self._shared(x[:, part], real[:, part], places[:, part], past_key_values, padded)
            read.append(self._read(x[:, part], shared, output_hidden_states))
            if past_key_values is not None:
                past_key_values.count(shared.real)
        seen = read[0] if len(read) == 1 else [torch.cat(each, dim=1) for each in zip(*read, strict=True)]
        return BaseModelOutputWithPast(
            last_hidden_state=seen[-1],
            past_key_values=past_key_values,
            hidden_states=tuple(seen) if output_hidden_states else None,
        )

    def _read(self, x: Tensor, shared: Pass, every: bool | None) -> list[Tensor]:
        """The last layer's output, normed, and with `every` before it what each layer reads."""
        seen = []
        for layer in self.layers:
            seen += [x] if every else []
            x = layer(x, shared)
        return [*seen, self.norm(x)]

    def _portions(self, real: Tensor, cache: HybridCache | None, padded: bool) -> list[slice]:
        """Behind tokens that are remembered new ones are read some at a time: under one mask the work of a
        window's layer would grow with their square."""
        tokens = real.shape[1]
        if cache is None or not self._windows or (cache.read == 0 and not (padded and _parted(real))):
            return [slice(0, tokens)]
        cache.check(tokens)  # before the first of them is read
        return portions(tokens)

    @property
    def _windows(self) -> bool:
        return not {"window_attention", "window_mamba"}.isdisjoint(self.config.layer_kinds)

    def _placed(
        self, x: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: HybridCache | None
    ) -> tuple[Tensor, Tensor]:
        """Which tokens (B, T) are no padding, and their places, -1 for padding."""
        if cache is not None and not isinstance(cache, HybridCache):
            raise ValueError(f"past_key_values is a {type(cache).__name__}; this model makes a HybridCache")
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"attention_mask is {tuple(mask.shape)}; write (rows, tokens), 0 for padding")
        rows, tokens = x.shape[:2]
        real = torch.ones(rows, tokens, dtype=torch.bool, device=x.device)
        if mask is not None:
            real = mask[:, -tokens:].to(x.device, torch.bool)
        places = (HybridCache(0) if cache is None else cache).places(real)
        if position_ids is not None:
            apart = (position_ids.to(x.device) - places).masked_fill(~real, 0)
            first = apart.gather(1, real.long().argmax(dim=1, keepdim=True))
            if bool(((apart != first) & real).any()):
                raise ValueError("position_ids are not one after the other; packed texts are not told apart")
        return real, places

    def _shared(
        self, x: Tensor, real: Tensor, places: Tensor, cache: HybridCache | None, padded: bool
    ) -> Pass:
        cos, sin = self.rotary_emb(x, places.clamp_min(0))
        anew = cache is None or cache.read == 0
        joined = anew and (not padded or not _parted(real))
        blocks = None
        if joined and self._windows:
            given = real if padded else None
            blocks = Blocks.of(places, self.config.window, self.config.sinks, given)
            blocks = None if blocks is None else blocks.added(x.dtype)
        signed = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], dim=-1)
        cos, sin = (part[:, None].to(x.dtype) for part in (cos, signed))
        return Pass(real, places, cos, sin, cache, anew and not padded, joined, blocks)


def _parted(real: Tensor) -> bool:
    """Whether a row (B, T) has padding between its tokens."""
    begins = real & ~F.pad(real, (1, -1))
    return bool((begins.sum(dim=1) > 1).any())


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def fixed_cache(self, length: int) -> FixedHybridCache:
        """Of at most `length` tokens, for `past_key_values` of a forward pass or of generate: tensors that
        stay where they are, so that a token can be recorded as a CUDA graph once the prompt has been read
        (`FixedHybridCache.advance` before each replay)."""
        return FixedHybridCache(self.config.num_hidden_layers, length)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # its own is made with the first tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Logits (B, T, V) of `input_ids` (B, T), or of the last `logits_to_keep` tokens; with `labels`
        (B, T), -100 where nothing is asked, the mean loss of next words too.

        attention_mask: (B, tokens read before + T), 1 for tokens, 0 for padding
        """
        if output_attentions:
            raise ValueError("this model keeps no attention weights")
        made = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(made.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            words, asked = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].to(logits.device).flatten()
            loss = F.cross_entropy(words, asked)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=made.past_key_values,
            hidden_states=made.hidden_states,
        )
        return output.to_tuple() if return_dict is False else output
