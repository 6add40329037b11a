"""Models measured side by side: in which precision, and what the ratios say."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from harness import tiny_vit

import transmamba
from transmamba.bench import inference as bench_inference
from transmamba.data.images.synthetic import Synthetic
from transmamba.tasks.image_classification import ImageClassificationConfig


@pytest.mark.parametrize(
    ("precision", "dtype"), [("no", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_what_a_model_computes_in(
    monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype | None
) -> None:
    """Of `evaluate` and `bench inference`: what autocast says while the first layer runs."""
    seen: list[torch.dtype | None] = []

    def embed(self: Any, images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return forward(self, images)

    forward = timm.layers.PatchEmbed.forward
    monkeypatch.setattr(timm.layers.PatchEmbed, "forward", embed)
    data = Synthetic(num_train=4, num_test=4, num_classes=3, size=8)
    transmamba.evaluate(tiny_vit(), ImageClassificationConfig(data=data), precision=precision, device="cpu")
    assert set(seen) == {dtype}
    seen.clear()
    # which runs the teacher once in its weights' own precision
    monkeypatch.setattr("transmamba.teachers.of_module.check_view", lambda *_: None)
    options = dict(tokens=5, steps=1, precision=precision, device="cpu")
    list(bench_inference.bench_inference("vit_tiny_patch16_224", ["vim_micro_patch2_8"], [16], **options))
    assert set(seen) == {dtype}


def test_pictures_smaller_than_a_patch() -> None:
    with pytest.raises(transmamba.UserError, match="images of 1 pixels hold no patch of vit_tiny_patch16"):
        list(bench_inference.bench_inference("vit_tiny_patch16_224", [], [1], tokens=5, steps=1))


def test_bench_s_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as fast is 2, half of the memory 0.5; every model counts its own tokens."""
    monkeypatch.setattr(
        bench_inference, "interleaved", lambda kinds, *_: dict(zip(kinds, (1.0, 0.5), strict=True))
    )
    peaks = iter((8.0, 4.0))
    monkeypatch.setattr(bench_inference, "_peak", lambda *_: next(peaks))
    made = bench_inference.bench_inference("vit_tiny_patch16_224", ["vim_mini_patch4_32"], [32], tokens=10)
    teacher, student = made
    assert (teacher["speed"], teacher["memory"], student["speed"], student["memory"]) == (1, 1, 2, 0.5)
    assert (teacher["tokens"], student["tokens"]) == (5, 65) and student["images"] == teacher["images"] == 2
