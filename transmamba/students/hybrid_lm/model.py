"""A causal language model of Mamba-2 and attention layers, or of attention to all tokens and to near ones,
with the tensors of a stock transformers class or of our own (`own/`).

It is a module of its own, for its layers return records and take packed documents apart; that class loads its
tensors strictly (`stock`), and is what is saved. Shapes: B rows, L tokens, D channels, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core import layout
from ...core.layout import Layout
from ...core.output import Branches, Capture, Captures, Context, Logits, Output, Stream
from ...layers.mixed import Mixed, Want, kept
from ...subcloning.plan import Dropped, Take, depth_map
from ...subcloning.selection import Selection
from ...views.rope import Rope
from ...views.view import Tower, View
from ..adaptable import Adaptable, own, own_parts
from ..carried import Carried
from .architectures import Kind, Mixers, architecture_of, kinds_of, rotary_of
from .groups import groups_of
from .layers import HybridLayer
from .mlps import begin_experts
from .nearby import Reading
from .norms import Between, RMSNorm
from .plan import plan
from .shape import blocks_of
from .start import Walk, calibrate
from .stock import as_stock, save, write
from .swap import Swap

NOTHING = Capture()
# parts of a mixer that it makes where a loss reads them alone
_BY_HEAD = frozenset(("q", "k", "dt", "dA", "D"))


class HybridStudent(Adaptable, Carried, nn.Module):
    """Reads `text` (B, L) with `text_mask` (B, L) or `text_segment` (B, L); its stream is `decoder`.

    config:    transformers', of a class in `architectures`
    half_life: tokens after which a new Mamba-2 layer's state is half as large
    tap:       the convolution's tap at the token itself in a new layer; small ones keep SiLU straight
    fitted:    whether `calibrate_` chooses each head's half-life and skip
    mixers:    how new Mamba-2 layers begin, see `names.HybridLM`
    window_dropout: of layers with a window and a scan, see `names.HybridLM`
    capacity:  of experts in training, see `layers.experts`
    router_std: of the numbers that routers begin with, and `redrawn`, the share of experts' neurons that
        `plan` draws anew, see `upcycled.Upcycled`
    """

    def __init__(
        self,
        config: Any,
        *,
        half_life: float = 8.0,
        tap: float = 0.1,
        fitted: bool = False,
        mixers: Mixers = "attention",
        window_dropout: float = 0.0,
        capacity: float | None = None,
        router_std: float | None = None,
        redrawn: float = 0.0,
    ) -> None:
        super().__init__()
        self.redrawn = redrawn
        self.fitted, self.mixers, self.window_dropout = fitted, mixers, window_dropout
        self.config, architecture = config, architecture_of(config)
        self.layout: Layout = layout.Sequence()
        layers = [HybridLayer(config, kind, half_life, tap, k) for k, kind in enumerate(kinds_of(config))]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(layers),
                architecture.last_norm: RMSNorm(config.hidden_size, config.rms_norm_eps, multiplied=True),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._last_norm = architecture.last_norm
        rotary = rotary_of(config)
        # no buffer, which would be rounded with the model
        self._rope = Rope(rotary.inv_freq.float(), float(rotary.attention_scaling))
        self.grad_checkpointing = False
        self._begin()
        begin_experts(self, capacity, router_std)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model["embed_tokens"].weight  # type: ignore[assignment]

    @torch.no_grad()
    def _begin(self) -> None:
        """Matrices as transformers draws them, biases 0, the rest of a mixer as `mixers` says."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for layer in self._layers:
            layer.begin_(self.mixers)

    @property
    def _layers(self) -> Sequence[Any]:
        layers: Any = self.model["layers"]
        return layers

    def layer(self, k: int) -> Any:
        return self._layers[k]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(layer.kind for layer in self._layers)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Those that keep the teacher's attention."""
        return tuple(k for k, kind in enumerate(self.kinds) if kind == "full_attention")

    @property
    def routers(self) -> dict[str, dict[tuple[int, str], int]]:
        """By stream, of each layer's routers how many experts they choose from."""
        every = ((k, layer.routers()) for k, layer in enumerate(self._layers))
        return {"decoder": {(k, name): count for k, found in every for name, count in found.items()}}

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    # --- the student's interface ---

    @property
    def towers(self) -> dict[str, HybridStudent]:
        return {"decoder": self}

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def parts(self) -> dict[str, int]:
        whole = {"layer": self.width}  # what `mixer` adds with the MLP behind it
        if "linear_attention" not in self.kinds:
            return whole
        narrow = self.config.mamba_n_groups * self.config.mamba_d_state
        inner = self.config.mamba_n_heads * self.config.mamba_d_head
        by_head = dict.fromkeys(("dt", "dA", "D"), self.config.num_attention_heads)
        states = dict.fromkeys(("q", "k"), self.config.mamba_d_state)  # of a head
        return {**whole, "B": narrow, "C": narrow, "values": inner, **states, **by_head}

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        """Of the layers alone that do not have the teacher's attention."""
        attention = [s for s, kind in enumerate(kinds) if kind == "attention"]
        chosen = depth_map(self.num_layers, len(attention))
        return {k: attention[t] for k, t in enumerate(chosen) if k not in self.attention_layers}

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        layer, named = self._layers[k], capture.mixers.get(k, frozenset())
        reading = self._reading(context, hidden, {layer.kind})
        whole = "layer" in named
        output, mixed = layer(hidden, reading, Want(alone=not whole, heads=bool(named & _BY_HEAD)))
        added = {"layer": output - hidden} if whole else {}
        return mixed.output, kept({**mixed.parts, **added}, named)

    def run(self, inputs: Mapping[str, Tensor], captures: Captures | None = None) -> Output:
        if "text" not in inputs:
            return Output()
        capture = (captures or {}).get("decoder", NOTHING)
        return self.read(self.embed(inputs["text"]), Context.of(inputs), capture)

    def embed(self, text: Tensor) -> Tensor:
        """Words (B, L, D) of text (B, L)."""
        return self.model["embed_tokens"](text)

    def read(self, x: Tensor, context: Context, capture: Capture) -> Output:
        """What `run` gives, of a stream x (B, L, D) that others may have put something into."""
        stream = Stream(self.layout, context.mask)
        x, put = self.opened(x, context)
        context = context if put is None else put.context(context)
        reading = self._reading(context, x, set(self.kinds))
        for k, layer in enumerate(self._layers):
            want = Want(heads=bool(capture.mixers.get(k, frozenset()) & _BY_HEAD))
            x, mixed = self._through(layer, x, reading, want)
            if k in capture.hidden:
                stream.hidden[k] = own(x, put)
            if k in capture.branches:
                here = own(x, put)
                stream.branches[k] = Branches(here if capture.tokens is None else here[:, capture.tokens])
            if k in capture.mixers:
                named = kept({"output": mixed.output, **mixed.parts}, capture.mixers[k])
                stream.mixers[k] = own_parts(named, put)
        return Output({"decoder": stream}, Logits(own(x, put), self._head))

    def generate(self, inputs: Mapping[str, Tensor], limit: int) -> Tensor:
        """The likeliest words after `text` (B, L), whose padding lies before it, by transformers' model of
        the same tensors: (B, at most limit)."""
        return write(self, inputs, limit)

    def forward(self, text: Tensor) -> Tensor:
        """Logits (B, L, V) of text (B, L)."""
        logits = self.run({"text": text}).logits
        assert logits is not None, "there is text"
        return logits()

    def _reading(self, context: Context, x: Tensor, kinds: set[Kind]) -> Reading:
        """Of a stream x (B, L, D), what layers of these kinds read."""
        if kinds == {"linear_attention"}:
            return Reading(context)
        config, windows = self.config, set()
        if kinds & {"window_attention", "window_mamba"}:  # one that drops out reads the token itself
            windows = {config.window} | ({1} if self.training and self.window_dropout else set())
        return Reading.of(context, x, self.rope_on(x.device), windows, getattr(config, "sinks", 0))

    def rope_on(self, device: torch.device) -> Rope:
        if self._rope.frequencies.device != device:
            self._rope = replace(self._rope, frequencies=self._rope.frequencies.to(device))
        return self._rope

    def _head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.model[self._last_norm](hidden))

    def _through(self, layer: nn.Module, x: Tensor, reading: Reading, want: Want) -> tuple[Tensor, Mixed]:
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, x, reading, want, use_reentrant=False)
        return layer(x, reading, want)

    def narrower(self, theirs: Tower) -> bool:
        """Whether it has fewer channels, heads or neurons than a teacher's tower, so that some are chosen."""
        attention, mlp = blocks_of(theirs)[0]
        heads = self.config.num_attention_heads, self.config.num_key_value_heads
        shared = attention.kv_heads or attention.heads
        wanted = (theirs.width, attention.heads, shared, len(mlp.up.weight))
        return (self.width, *heads, self._layers[0].neurons) != wanted

    def swap(self, view: View) -> Swap:
        return Swap(self, view)

    def plan(self, view: View, select: Mapping[str, Selection] | None = None) -> Iterator[Take | Dropped]:
        """What takes which tensor of a teacher's decoder: all of them but positions in Mamba-2 layers. Raises
        UserError for a teacher of another shape.

        select: which coordinates a narrower one keeps; without it they are evenly spaced
        """
        return plan(self, view, None if select is None else select["decoder"])

    def calibrate_(
        self,
        walk: Walk,
        kinds: Sequence[str],
        texts: Sequence[Mapping[str, Tensor]],
        layers: int,
        kept: Tensor,
    ) -> None:
        """What `plan` cannot say of a start like attention, see `start.calibrate`."""
        if self.mixers == "attention":
            calibrate(self, walk, kinds, texts, layers, kept)

    def groups(self) -> dict[str, Callable[[str], bool]]:
        return groups_of(self)

    def units(self) -> list[nn.Module]:
        return list(self._layers)

    def set_progress(self, done: float) -> None:
        """How much of a stage is done, from 0 to 1: windows drop out less and less."""
        for layer in self._layers:
            layer.dropped(self.window_dropout * (1 - done))

    def compile_(self) -> None:
        """What lies between its layers' matrix products and scans, which have kernels of their own; not what
        comes in many shapes, for each of which torch.compile would begin anew: norms of heads, and the one
        before the head of words."""
        for layer in self._layers:
            for module in layer.modules():
                if isinstance(module, Between) and getattr(module, "multiplied", True):
                    module.fuse()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    # --- transformers' class ---

    def stock(self) -> Any:
        """transformers' own model of the same tensors, not copies: for generation, and for saving."""
        return as_stock(self)

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json, safetensors, generation_config.json, and the tokenizer where there is one."""
        save(self, Path(folder))
