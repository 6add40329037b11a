"""What is said of a model of transformers that no view expresses."""

from __future__ import annotations

from ..errors import Inexpressible, UserError

# model_type -> timm's model of the same weights
_ELSEWHERE = {
    "siglip2": "vit_base_patch16_siglip_gap_224.v2_webli, its image tower",
    "vit_mae": "vit_base_patch16_224.mae",
    "timm_wrapper": "hf-hub:OWNER/NAME, the repository's own id",
}
# model_type -> what of it no view has
_BIASES = "relative position biases in its attention"
_LACKING = {
    "beit": _BIASES,
    "data2vec-vision": _BIASES,
    "dinov3_vit": "rotary positions in two dimensions",
    "dinov3_convnext": "convolutions",
    "swin": f"shifted windows and {_BIASES}",
    "swinv2": f"shifted windows and {_BIASES}",
}


def unknown_type(name: str, model_type: str) -> UserError:
    """What to write instead of a model that no view can express: Inexpressible where transformers knows its
    type, so that it could be read."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = str(model_type)  # a config by another hand may hold anything there
    ours = model_type.startswith("transmamba_")
    kind = Inexpressible if ours or model_type in CONFIG_MAPPING_NAMES else UserError
    elsewhere, lacking = _ELSEWHERE.get(model_type), _LACKING.get(model_type)
    hint = f"; timm has the same weights, write {elsewhere}" if elsewhere else ""
    why = f"it has {lacking}, and " if lacking else ""
    why = "it is a student of ours, parts of which no view has, and " if ours else why
    return kind(
        f"teacher {name!r} (model_type={model_type}) cannot be expressed: {why}only ViT, DeiT and DINOv2 are "
        f"known, CLIP and SigLIP, and decoders such as Llama{hint}"
    )
