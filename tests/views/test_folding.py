"""Folded views: the same function without norm weights and LayerScale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from text_views import text_view
from timm_vits import TIMM, images_for

from transmamba import adapt_teacher
from transmamba.config.registry import TEACHERS
from transmamba.core.output import Capture
from transmamba.errors import UserError
from transmamba.views.folding import fold
from transmamba.views.heads import Embedder
from transmamba.views.sublayers import Affine, Norm
from transmamba.views.view import View

# what has RMSNorms is absorbed, all else is centred
RMS: dict[str, dict[str, Any]] = {
    "rms_norm": TIMM["rms_norm"],
    "rms_everything": dict(norm_layer="rmsnorm", init_values=0.1, qk_norm=True, global_pool="avg"),
    "rms_pre_norm": dict(norm_layer="rmsnorm", pre_norm=True),
}
CENTRED = {case: options for case, options in TIMM.items() if case not in ("rms_norm", "no_final_norm")}
CENTRED["pre_norm_everything"] = dict(pre_norm=True, init_values=0.1, reg_tokens=2, global_pool="avg")


def norms_of(view: View) -> list[Norm]:
    (tower,), (head,) = view.towers.values(), view.heads.values()
    norms = [*(sublayer.norm for sublayer in tower.sublayers), tower.norm, getattr(head, "norm", None)]
    return [norm for norm in norms if norm is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [*CENTRED, *RMS])
def test_fold_keeps_the_function(case: str, dtype: torch.dtype, make_vit: Callable[..., Any]) -> None:
    """A stream of LayerNorms is centred, one of RMSNorms is as it was; no norm has a weight of its own."""
    options = {**CENTRED, **RMS}[case]
    model = make_vit(**options).to(dtype)
    view = adapt_teacher(model).view
    folded = fold(view)
    images = images_for(options).to(dtype)
    capture = {"image": Capture(hidden=frozenset(range(6)))}
    with torch.no_grad():
        before, after = view.run({"image": images}, capture), folded.run({"image": images}, capture)
        logits = model(images)
    accuracy = 1e-5 if dtype is torch.float32 else 1e-10
    scale = float(logits.abs().max())
    assert after.logits is not None and len(after.stream.hidden) == 6
    torch.testing.assert_close(after.logits(), logits, rtol=0, atol=accuracy * scale)
    for s, stream in before.stream.hidden.items():
        wanted = stream if case in RMS else stream - stream.mean(dim=-1, keepdim=True)
        torch.testing.assert_close(
            after.stream.hidden[s], wanted, rtol=0, atol=accuracy * float(stream.abs().max())
        )
    assert len(norms_of(folded)) == 7
    assert all(norm.rms and norm.weight is None and norm.bias is None for norm in norms_of(folded))
    assert all(sublayer.scale is None for sublayer in folded.towers["image"].sublayers)


def test_folding_changes_nothing_of_the_view_it_is_given(make_vit: Callable[..., Any]) -> None:
    view = adapt_teacher(make_vit(pre_norm=True, init_values=0.1)).view
    copies = [
        (tensor, tensor.clone()) for tensor in [norm.weight for norm in norms_of(view)] if tensor is not None
    ]
    fold(view)
    assert copies and all(torch.equal(tensor, copy) for tensor, copy in copies)
    assert not any(norm.rms for norm in norms_of(view))


def test_no_final_norm_cannot_be_folded(make_vit: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="cannot be folded"):
        fold(adapt_teacher(make_vit(**TIMM["no_final_norm"])).view)


def test_one_rms_norm_among_layer_norms_cannot_be_folded(make_vit: Callable[..., Any]) -> None:
    view = adapt_teacher(make_vit()).view
    tower = view.towers["image"]
    mlp = tower.sublayers[3]
    rms = dataclasses.replace(mlp, norm=Norm(mlp.norm.weight, None, 1e-6, rms=True))
    mixed = dataclasses.replace(tower, sublayers=(*tower.sublayers[:3], rms, *tower.sublayers[4:]))
    with pytest.raises(UserError, match="cannot be folded"):
        fold(View({"image": mixed}, view.heads))


@pytest.mark.shared_data
def test_mnist_view_cannot_be_folded(shared_data: Path) -> None:
    path = shared_data / "checkpoints" / "vit_mnist_mit" / "vit_mnist_model.pth"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with pytest.raises(UserError, match="cannot be folded"):
        fold(TEACHERS["vit_mnist_mit"](checkpoint=str(path)).build().view)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("rms", [False, True])
def test_text_is_folded_too(rms: bool, head: str) -> None:
    """Words and positions are centred; a head that shared the table of words has its own then."""
    view = text_view(rms, head)
    text = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
    capture = {"text": Capture(hidden=frozenset(range(4)))}
    before, after = (each.run({"text": text}, capture) for each in (view, fold(view)))
    assert before.logits is not None and after.logits is not None
    torch.testing.assert_close(after.logits(), before.logits(), rtol=1e-9, atol=1e-9)
    for s, stream in before.stream.hidden.items():
        wanted = stream if rms else stream - stream.mean(dim=-1, keepdim=True)
        torch.testing.assert_close(after.stream.hidden[s], wanted, rtol=1e-9, atol=1e-9)
    assert all(norm.rms and norm.weight is None and norm.bias is None for norm in norms_of(fold(view)))


def test_embeddings_are_folded_too(make_vit: Callable[..., Any]) -> None:
    """One vector a picture, as CLIP's towers give it."""
    model = make_vit(pre_norm=True).double()
    classifier = adapt_teacher(model).view
    embedder = Embedder("cls", Affine(torch.randn(5, 64, dtype=torch.float64)))
    view = View(classifier.towers, {"image": embedder})
    images = images_for({}).double()
    with torch.no_grad():
        before, after = (each.run({"image": images}) for each in (view, fold(view)))
        stream = model.forward_features(images)[:, 0]
    assert before.logits is None and view.num_classes is None
    wanted = F.normalize(stream @ embedder.projection.weight.T, dim=-1)
    torch.testing.assert_close(before.embeddings["image"], wanted)
    torch.testing.assert_close(after.embeddings["image"], wanted)
