"""Small random LLaVAs, the students that start from them, and texts with none, one and two pictures."""

from __future__ import annotations

from typing import Any

import torch
from hybrids import moved as away
from hybrids import relative
from torch import Tensor

from transmamba import convert
from transmamba.core.batch import Batch
from transmamba.students.llava.model import LlavaStudent

__all__ = [
    "ALONE",
    "MARK",
    "TEACHERS",
    "batch",
    "crossed",
    "llava",
    "loud",
    "made_by",
    "make",
    "moved",
    "relative",
    "rows",
    "seen",
    "together",
]

MARK, WORDS, SIDE = 60, 67, 16
# a process that loads a student of its own class (argument 2) without us, and runs it (on argument 1)
ALONE = """
import sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
given, folder = torch.load(sys.argv[1]), sys.argv[2]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**given, use_cache=False).logits, folder + "/logits.pt")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert processor.tokenizer.padding_side == "left"
assert not [name for name in sys.modules if name.startswith("transmamba.")]
"""
VISION: dict[str, Any] = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=8,
)
DECODER: dict[str, Any] = dict(
    vocab_size=WORDS,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=2,
    bos_token_id=1,
    pad_token_id=0,
    tie_word_embeddings=False,
)
# name -> vision, decoder, what else its config says, tokens of a picture
TEACHERS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "CLIP, Llama": ("CLIP", "Llama", {}, 4),
    "SigLIP, Qwen2": ("Siglip", "Qwen2", dict(vision_feature_select_strategy="full"), 4),
    "CLIP, all tokens of the last layer": (
        "CLIP",
        "Llama",
        dict(vision_feature_layer=-1, vision_feature_select_strategy="full"),
        5,
    ),
    "SigLIP, first layer, tied": (
        "Siglip",
        "Llama",
        dict(vision_feature_layer=1, vision_feature_select_strategy="full", multimodal_projector_bias=False),
        4,
    ),
}


def make(name: str = "CLIP, Llama", **decoder: Any) -> Any:
    """transformers' own, in evaluation mode, with norms and biases that are not what they begin with."""
    import transformers

    vision, words, more, _ = TEACHERS[name]
    asked = {**DECODER, "tie_word_embeddings": name.endswith("tied"), **decoder}
    config = transformers.LlavaConfig(
        vision_config=getattr(transformers, f"{vision}VisionConfig")(**VISION),
        text_config=getattr(transformers, f"{words}Config")(**asked),
        image_token_index=MARK,
        **more,
    )
    torch.manual_seed(0)
    model: Any = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = None
    return model


def llava(model: Any, **options: Any) -> LlavaStudent:
    """Of a model of transformers', or of a teacher."""
    student, _ = convert(model, "llava", **options)
    assert isinstance(student, LlavaStudent)
    return student


def crossed(mode: str = "state", every: int | None = None, **options: Any) -> LlavaStudent:
    """With cross-Mamba, or a rival of it."""
    cross = dict(mode=mode, num_heads=2, state_size=4, every=every)
    return llava(make(), cross=cross, decoder={"kind": "hybrid", "attention_layers": [1]}, **options)


def loud(student: LlavaStudent) -> LlavaStudent:
    """The same, what pictures have read so loud that words follow from it."""
    for name, parameter in student.named_parameters():
        if name.endswith(".scale"):
            parameter.data.fill_(2)
        if name.startswith("cross.") and name.endswith(".proj.weight"):
            parameter.data.mul_(10)
    return student


def moved(student: LlavaStudent) -> LlavaStudent:
    """The same away from its start, where steps and skips are all alike and gates are shut."""
    found: LlavaStudent = away(student, 0.1)
    return found


def words(count: int, seed: int) -> Tensor:
    return torch.randint(3, MARK, (count,), generator=torch.Generator().manual_seed(seed))


def rows(tokens: int = 4) -> list[tuple[Tensor, Tensor]]:
    """(text (L,), its pictures (P, C, H, W)) of one picture, none, two."""
    hole = torch.full((tokens,), MARK)
    texts = [
        torch.cat([words(2, 1), hole, words(5, 2)]),
        words(6, 3),
        torch.cat([hole, words(3, 4), hole, words(2, 5)]),
    ]
    seen = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    return list(zip(texts, (seen[:1], seen[1:1], seen[1:]), strict=True))


def together(tokens: int = 4, *, left: bool = True) -> dict[str, Tensor]:
    """All of `rows` as a batch's inputs, padded with words."""
    each = rows(tokens)
    longest = max(len(text) for text, _ in each)
    text = torch.full((len(each), longest), 7)
    mask = torch.zeros(len(each), longest, dtype=torch.bool)
    for row, (ids, _) in enumerate(each):
        place = slice(longest - len(ids), None) if left else slice(len(ids))
        text[row, place], mask[row, place] = ids, True
    prompt = mask & (text != MARK)
    for row in range(len(each)):
        prompt[row, mask[row].nonzero()[-2:, 0]] = False  # two words of each are its answer
    return {
        "text": text,
        "text_mask": mask,
        "prompt_mask": prompt,
        "image": torch.cat([seen for _, seen in each]),
        "image_row": torch.tensor([0, 2, 2]),
    }


def batch(inputs: dict[str, Tensor]) -> Batch:
    """With the two words of an answer to each text."""
    mask = inputs["text_mask"]
    answers = mask & ~inputs["prompt_mask"] & (inputs["text"] != MARK)
    asked = torch.zeros_like(mask)
    asked[:, :-1] = answers[:, 1:]
    targets = torch.where(asked, inputs["text"].roll(-1, dims=1), -100)
    counts = dict(samples=len(mask), tokens=int(mask.sum()), answers=int(asked.sum()))
    counts["pictures"] = len(inputs.get("image_row", ()))
    return Batch(inputs, {"tokens": targets}, torch.arange(len(mask)), counts)


@torch.no_grad()
def made_by(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    """Logits of a student, or of a model of transformers' without its cache."""
    if isinstance(model, LlavaStudent):
        logits = model.run(inputs).logits
        assert logits is not None
        return logits()
    mask = inputs["text_mask"] if "text_mask" in inputs else torch.ones_like(inputs["text"])
    seen = {"pixel_values": inputs["image"]} if len(inputs.get("image", ())) else {}
    places = (mask.long().cumsum(1) - 1).clamp_min(0)
    found: Tensor = model(
        input_ids=inputs["text"],
        attention_mask=mask.long(),
        position_ids=places,
        use_cache=False,
        **seen,
        **more,
    ).logits
    return found


def seen(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    """What the decoder of a student, or of its class, reads of each picture, (P, N, D): the words at their
    marks."""
    kept: list[Tensor] = []
    connector = getattr(model, "model", model).multi_modal_projector
    hook = connector.register_forward_hook(lambda _, __, made: kept.append(made))
    made_by(model, inputs, **more)
    hook.remove()
    return kept[-1]
