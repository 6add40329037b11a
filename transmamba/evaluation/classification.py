"""The same metrics for teacher, student and baseline, and how often two of them agree."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.batch import Batch
from ..teachers.teacher import Teacher

ECE_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """Logits (N, K) float32 and labels (N,) int64 on the CPU, in the split's order, with the cost of making
    them."""

    logits: Tensor
    labels: Tensor
    images_per_second: float = 0.0
    peak_memory_mb: float = 0.0


def logits_of(model: nn.Module | Teacher, images: Tensor) -> Tensor:
    """Class logits (B, K) whatever the model wraps them in."""
    output: Any = model(images)
    return getattr(output, "logits", output)


@torch.no_grad()
def predict(
    model: nn.Module | Teacher, batches: Iterable[Batch], device: torch.device, autocast: Callable[[], Any]
) -> Predictions:
    """Run `model` over `batches` in evaluation mode (restored afterwards).

    images_per_second counts forward passes of full batches only, with the device waited for, without the
    first; where there is but one batch it is run once more for the clock. Of no batches at all (a process
    that has no share of a small split) come logits (0, 0).
    """
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    reset_peak_memory(device)
    logits, labels, timed, seconds = [], [], 0, 0.0
    full = 0
    first: Batch | None = None
    for batch in batches:
        batch = batch.to(device)
        started = _now(device)
        with autocast():
            out = logits_of(model, batch.images).float().cpu()
        elapsed = _now(device) - started
        if full and len(batch) == full:
            timed, seconds = timed + len(batch), seconds + elapsed
        full = full or len(batch)
        first = first or batch
        logits.append(out)
        labels.append(batch.targets.cpu())
    if not timed and first is not None:
        started = _now(device)
        with autocast():
            logits_of(model, first.images)
        timed, seconds = len(first), _now(device) - started
    if isinstance(model, nn.Module):
        model.train(was_training)
    if not logits:
        return Predictions(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), 0.0, peak_memory_mb(device))
    rate = timed / seconds if seconds else 0.0
    return Predictions(torch.cat(logits), torch.cat(labels), rate, peak_memory_mb(device))


def metrics(predictions: Predictions) -> dict[str, float]:
    """top1, top5 and ece in percent, nll in nats an image."""
    logits, labels = predictions.logits.float(), predictions.labels
    ranked = logits.topk(min(5, logits.shape[1]), dim=-1).indices
    hits = ranked == labels[:, None]
    return {
        # argmax, as everywhere else: topk may order equal logits differently
        "top1": 100 * (logits.argmax(dim=-1) == labels).double().mean().item(),
        "top5": 100 * hits.any(dim=1).double().mean().item(),
        "ece": 100 * expected_calibration_error(logits, labels),
        "nll": F.cross_entropy(logits.double(), labels).item(),
    }


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Mean |confidence - accuracy| over equally wide bins of the top probability, weighted by their size,
    0..1 (Guo et al., ICML 2017, equation 3)."""
    confidence, predicted = logits.double().softmax(dim=-1).max(dim=-1)
    correct = (predicted == labels).double()
    which = (confidence * bins).ceil().clamp(1, bins).long() - 1
    total = torch.zeros(bins, dtype=torch.float64)
    gap = total.index_add(0, which, confidence - correct).abs()
    return (gap.sum() / len(labels)).item()


def agreement(a: Predictions, b: Predictions) -> float:
    """Percent of images on which both predict the same class."""
    return 100 * (a.logits.argmax(dim=-1) == b.logits.argmax(dim=-1)).double().mean().item()


def summarise(predictions: Predictions, num_params: int) -> dict[str, float | int]:
    """One model's entry in results.json."""
    return {
        **metrics(predictions),
        "params": num_params,
        "images_per_second": predictions.images_per_second,
        "peak_memory_mb": predictions.peak_memory_mb,
    }


def paired_bootstrap(
    a_correct: npt.NDArray[np.bool_], b_correct: npt.NDArray[np.bool_], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b in percentage points and its 95 % interval, resampling images (the pairs stay
    together)."""
    difference = a_correct.astype(np.float64) - b_correct.astype(np.float64)
    generator = np.random.default_rng(seed)
    means = [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * difference.mean(), 100 * float(low), 100 * float(high)


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> Any:
    """A context in which a model computes in that precision; float32 for any that is no half."""
    half = HALF.get(precision)
    return contextlib.nullcontext() if half is None else torch.autocast(device.type, dtype=half)


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """MiB at most allocated on a GPU since the last reset; on the CPU, the process's peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
