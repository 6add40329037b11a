"""A LLaVA small enough to be made in a test, with a tokenizer that knows where pictures stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_language import TEMPLATE, tokenizer_folder

IMAGE = "<image>"
SIDE, PATCH, PATCHES = 16, 8, 4


def llava_tokenizer(folder: Path, **options: Any) -> int:
    """Byte pairs with `<image>` as one token more: its number."""
    from transformers import AutoTokenizer

    tokenizer_folder(folder, **options)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens({"additional_special_tokens": [IMAGE]})
    made.save_pretrained(folder)
    return int(made.convert_tokens_to_ids(IMAGE))


def llava_folder(
    folder: Path,
    *,
    vision: str = "CLIP",
    language: str = "Llama",
    context: int = 160,
    seed: int = 1,
    strategy: str = "default",
    template: str | None = TEMPLATE,
    noise: float = 0.15,
    layers: int = 2,
    **options: Any,
) -> Path:
    """A LLaVA of pictures of 16 x 16 pixels in 4 patches, over a Llama, random, with its tokenizer."""
    import torch
    import transformers

    place = llava_tokenizer(folder, template=template, **options)
    words = place + 1
    tower: dict[str, Any] = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    decoder: dict[str, Any] = dict(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    config = transformers.LlavaConfig(
        vision_config=getattr(transformers, f"{vision}VisionConfig")(**tower),
        text_config=getattr(transformers, f"{language}Config")(**decoder),
        image_token_index=place,
        vision_feature_select_strategy=strategy,
    )
    torch.manual_seed(seed)
    model: Any = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": f"{vision}ImageProcessor",
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.25, 0.25, 0.25],
                "size": {"height": SIDE, "width": SIDE},
                "do_center_crop": False,
            }
        )
    )
    return folder
