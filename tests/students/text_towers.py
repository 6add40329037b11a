"""Small CLIP text teachers with random weights, and TextMambas that start from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from transmamba import adapt_teacher
from transmamba.core.output import Context
from transmamba.layers.mixed import Mixed
from transmamba.students.text_mamba import TextMamba, TextShape, text_shape
from transmamba.subcloning.plan import Dropped, Take
from transmamba.subcloning.subclone import execute
from transmamba.views.heads import Embedder
from transmamba.views.sublayers import Attention
from transmamba.views.view import Tower, View

WORDS, VOCABULARY, EMBEDDED, EOT = 9, 60, 20, 59
IMAGE: dict[str, Any] = dict(layers=1, width=16, head_width=8, patch_size=4, image_size=8)
TEXT: dict[str, Any] = dict(layers=3, width=24, heads=3, context_length=WORDS, vocab_size=VOCABULARY)
HF_TEXT: dict[str, Any] = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    vocab_size=VOCABULARY,
    max_position_embeddings=WORDS,
    bos_token_id=58,
    eos_token_id=EOT,
    pad_token_id=1,
)
HF_IMAGE: dict[str, Any] = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)


def of_open_clip(quick_gelu: bool = False, **text: Any) -> nn.Module:
    return open_clip.CustomTextCLIP(EMBEDDED, IMAGE, TEXT | text, quick_gelu=quick_gelu)


def of_clip() -> nn.Module:
    act = dict(hidden_act="quick_gelu")
    return CLIPModel(
        CLIPConfig(text_config=HF_TEXT | act, vision_config=HF_IMAGE | act, projection_dim=EMBEDDED)
    )


def of_siglip() -> nn.Module:
    return SiglipModel(SiglipConfig(text_config=HF_TEXT, vision_config=HF_IMAGE))


TANH = dict(act_kwargs=dict(approximate="tanh"), norm_kwargs=dict(eps=1e-6))
TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "open_clip": of_open_clip,
    "open_clip quick_gelu": lambda: of_open_clip(quick_gelu=True),
    "open_clip eos, LayerScale": lambda: of_open_clip(pool_type="eos", eos_id=EOT, ls_init_value=0.1),
    "open_clip SigLIP": lambda: of_open_clip(no_causal_mask=True, pool_type="last", proj_bias=True, **TANH),
    "transformers CLIP": of_clip,
    "transformers SigLIP": of_siglip,
}


def texts(padding: int = 0) -> Tensor:
    """(4, WORDS): words, then the end of text, then padding."""
    text = torch.randint(2, EOT - 1, (4, WORDS), generator=torch.Generator().manual_seed(3))
    for row, length in enumerate((4, 6, 7, WORDS)):
        text[row, length - 1] = EOT
        text[row, length:] = padding
    return text


def viewed(model: nn.Module, fold: bool = False) -> View:
    teacher = adapt_teacher(model.eval())
    return (teacher.fold() if fold else teacher).view


def parts(view: View) -> tuple[Tower, Embedder]:
    head = view.heads["text"]
    assert isinstance(head, Embedder)
    return view.towers["text"], head


@torch.no_grad()
def cloned(view: View, **change: Any) -> tuple[TextMamba, list[Take], list[Dropped]]:
    """The TextMamba that starts from this teacher, and what its plan said."""
    torch.manual_seed(0)
    student = TextMamba(TextShape(**{**text_shape(view), **change})).eval()
    items = list(student.plan(*parts(view)))
    takes = [item for item in items if isinstance(item, Take)]
    parameters = dict(student.named_parameters())
    for take in takes:
        execute(take, parameters)
    return student, takes, [item for item in items if isinstance(item, Dropped)]


class Attends(nn.Module):
    """A teacher's attention in the place of a mixer."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = dataclasses.replace(attention, norm=nn.Identity(), scale=None)  # type: ignore[arg-type]
        self.qkv = nn.Linear(1, 1)  # whose type is the stream's

    def forward(self, u: Tensor, context: Context) -> Mixed:
        return Mixed(self.attention(u, context, lambda name, tensor: None))
