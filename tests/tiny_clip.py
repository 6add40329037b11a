"""A CLIP of open_clip's so small that converting it takes no time, for the tests of dual encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from transmamba.ecosystems import open_clip as library
from transmamba.ecosystems.open_clip_tokenizer import OpenClipTokenizer
from transmamba.ecosystems.origin import Origin

IMAGE = dict(image_size=16, layers=2, width=32, head_width=16, patch_size=4, mlp_ratio=2.0)
WORDS = ("[PAD]", "[UNK]", "[SEP]", "a", "red", "square", "two", "dogs", "very", "long", "caption")
TEXT = dict(context_length=12, vocab_size=49408, width=16, heads=2, layers=2)


def made(image: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **more: Any) -> Any:
    """A CLIP of open_clip's, its weights spread wide enough for texts to differ."""
    torch.manual_seed(0)
    cfg = dict(embed_dim=8, vision_cfg={**IMAGE, **(image or {})}, text_cfg={**TEXT, **(text or {})}, **more)
    model = library.build_open_clip(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn_like(parameter))
    library.say_made_from(model, cfg, Origin("mit", "owner/teacher"), OpenClipTokenizer.of(cfg["text_cfg"]))
    return model.eval()


def siglip() -> Any:
    """With a SigLIP's image tower: attention pooling, no projection, a bias of similarities."""
    vision = dict(timm_model_name="vit_tiny_patch16_224", timm_pool="avg", timm_proj="none", image_size=16)
    text = dict(pool_type="last", no_causal_mask=True, proj_bias=True)
    cfg = dict(embed_dim=192, vision_cfg=vision, text_cfg={**TEXT, **text}, custom_text=True)
    cfg["init_logit_bias"] = -10.0
    model: Any = library.build_open_clip(cfg)
    model.visual.trunk = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        depth=2,
        num_classes=0,
        class_token=False,
        global_pool="map",
    )
    library.say_made_from(model, cfg, Origin(), OpenClipTokenizer.of(cfg["text_cfg"]))
    return model.eval()


def word_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """A tokenizer of transformers with some words, as another library's tower brings it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]")
    PreTrainedTokenizerFast(tokenizer_object=found, **special).save_pretrained(folder)
