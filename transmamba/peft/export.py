"""An adapter as a standard LoRA of Hugging Face PEFT, where it is one: for servers that load no other."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor

from ..ecosystems.folders import let_read
from ..errors import UserError
from .base import ROOT
from .layer import MambaPeftLayer
from .merge import layers_of
from .methods.lora import LowRank

# of models in which PEFT lets LoRA on out_proj nowhere near: their one-call kernels read the weight past it
GUARDED = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
Pair = tuple[Tensor, Tensor]


def export_lora(model: Any, folder: str | Path, adapter_name: str = "default") -> None:
    """Write an adapter of `model`, a PeftModel, as a LoRA that stock PEFT loads, with the same logits.

    Several methods on one projection become one LoRA of their ranks' sum; rows that a partial LoRA leaves
    alone are zeros of B. lora_alpha is r, the scale is in B. Modules that were trained whole
    (`modules_to_save`) are written as PEFT writes them. Stock PEFT itself refuses to load LoRA on
    out_proj into some models, which is warned of; servers take it.

    Raises UserError for methods that are no LoRA, for one that stock PEFT's forward never reads (dt_proj),
    and for a folder that has something in it; then nothing is written.
    """
    folder = Path(folder)
    config = model.peft_config.get(adapter_name)
    if config is None:
        raise UserError(f"there is no adapter {adapter_name!r}; there are: {', '.join(model.peft_config)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a folder that is not, or is empty")
    other = [part.name for part in config.parts if not isinstance(part, LowRank)]
    if other:
        raise UserError(f"{', '.join(other)} is no LoRA; merge the adapter into the model and save that")
    ranks: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers_of(model.get_base_model()).items():
        for module, up, down in factors(layer, adapter_name):
            whole = ".".join(filter(None, (name, module)))
            embeds = layer.mixer.table
            ends = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
            pair = (up.mT, down.mT) if embeds else convolved(layer, module, down, up)
            for end, tensor in zip(ends, pair, strict=True):
                tensors[f"{ROOT}{whole}.{end}"] = tensor.contiguous()
            ranks[whole] = up.shape[1]
    for name, tensor in trained_whole(model.get_base_model(), adapter_name):
        tensors[f"{ROOT}{name}"] = tensor
    _warn(model, ranks)
    most = max(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != most}
    lora = LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=pattern,
        target_modules=targets(model.get_base_model(), list(ranks)),
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place, "lora")
        made.mkdir()
        save_file(tensors, made / "adapter_model.safetensors", metadata={"format": "pt"})
        lora.save_pretrained(str(made))
        let_read(made)
        made.replace(folder)


@torch.no_grad()
def factors(layer: MambaPeftLayer, adapter_name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module within the layer, up (rows, r), down (r, columns)) of what an adapter adds to each matrix."""
    pairs: dict[str, list[Pair]] = {}
    for method in layer.methods.get(adapter_name, ()):
        assert isinstance(method, LowRank), "asked by export_lora"
        of = layer.transmamba_adapters[adapter_name].of(method)
        for place in method.places(layer.mixer, method.what, method.words):
            owner, _, _ = place.path.rpartition(".")
            if owner.startswith("dt_proj"):
                raise UserError(
                    f"{method.name}: stock PEFT's LoRA on {owner} is never read; merge the adapter"
                )
            up, down = (factor.detach().cpu() for factor in method.factors(place, of))
            rows = layer.mixer.shapes[place.path][0]
            whole = up.new_zeros(rows, up.shape[1])
            whole[place.start : place.stop] = up * method.scale
            pairs.setdefault(owner, []).append((whole, down))
    for owner, found in pairs.items():
        yield owner, torch.cat([up for up, _ in found], dim=1), torch.cat([down for _, down in found])


def convolved(layer: MambaPeftLayer, module: str, down: Tensor, up: Tensor) -> Pair:
    """Factors as stock PEFT has them: of a convolution (d, C, k, k) the first is one, too, the second one of
    single pixels."""
    shape = layer.mixer.shapes[".".join(filter(None, (module, "weight")))]
    ones = [1] * (len(shape) - 2)
    return down.view(-1, *shape[1:]), up.view(*up.shape, *ones)


def trained_whole(model: Any, adapter_name: str) -> Iterator[tuple[str, Tensor]]:
    """What `modules_to_save` trains, by its name in the model that is not wrapped. Copies, for safetensors
    refuses tensors that share memory."""
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            for key, tensor in module.modules_to_save[adapter_name].state_dict().items():
                yield f"{name}.{key}", tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def targets(model: Any, names: list[str]) -> list[str]:
    """The ends of the modules' names, where these are no others' too; else the whole names."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    there = {
        name.replace(".base_layer", "")
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in ends or name in names
    }
    return ends if there == set(names) else sorted(names)


def _warn(model: Any, ranks: dict[str, int]) -> None:
    kind = getattr(getattr(model.get_base_model(), "config", None), "model_type", None)
    if kind in GUARDED and any(name.endswith("out_proj") for name in ranks):
        warnings.warn(
            f"stock PEFT refuses LoRA on out_proj of a {kind}; servers such as vLLM load it", stacklevel=3
        )
