"""Closed-form calibration: each matrix that writes into the residual stream is fitted to the teacher.

[proposal, not the paper's] A cloned output projection was made for the teacher's inner activations; a mixer
has others. Layer by layer, in the order in which the student runs, the change from the cloned matrix solves a
ridge regression on the student's own stream, as the layers calibrated before it make it.

Shapes: B images, L tokens, M tokens of all images that both sides have, E inputs, D outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .aligner import Aligner
from .errors import UserError
from .outputs import Capture
from .selection import Selection
from .subclone import SubcloneConfig, cloned_layers

if TYPE_CHECKING:
    from .student import Student, Writer
    from .teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One fitted linear: ||written - wanted||^2 / ||wanted||^2 over images, tokens and kept coordinates.

    before: with the cloned matrix, on the stream of the layers calibrated before it
    after:  with the fitted one
    """

    target: str
    source: str
    before: float
    after: float


class NormalEquations:
    """Sums over tokens, in float64, that give Delta = argmin sum |r - Delta y|^2 + ridge * m |Delta|^2.

    y (M, E) inputs; r (M, D) what the present matrix leaves over; m the mean of the diagonal of sum y y^T.
    With `bias` a column of ones is appended to y, whose coefficient is not penalised.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, device: torch.device) -> None:
        self.inputs, self.bias = inputs, bias
        size = inputs + int(bias)
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.cross = torch.zeros(outputs, size, dtype=torch.float64, device=device)
        self.left = torch.zeros((), dtype=torch.float64, device=device)
        self.wanted = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, y: Tensor, left: Tensor, wanted: Tensor) -> None:
        """y (M, E); left = wanted - written, both (M, D)."""
        y, left = y.double(), left.double()
        if self.bias:
            y = torch.cat([y, y.new_ones(len(y), 1)], dim=1)
        self.gram += y.mT @ y
        self.cross += left.mT @ y
        self.left += left.square().sum()
        self.wanted += wanted.double().square().sum()

    def solve(self, ridge: float) -> Tensor:
        """Delta (D, E), or (D, E + 1) with the bias last."""
        diagonal = self.gram.diagonal()[: self.inputs]
        # where nothing comes in, any strength gives no change
        strength = ridge * diagonal.mean() if bool(diagonal.any()) else torch.ones_like(diagonal.mean())
        penalised = self.gram.clone()
        penalised.diagonal()[: self.inputs] += strength
        return torch.linalg.solve(penalised, self.cross.mT).mT

    def error(self, delta: Tensor | None = None) -> float:
        """Relative squared error with this change, or with none."""
        left = self.left
        if delta is not None:
            left = left - 2 * (delta * self.cross).sum() + ((delta @ self.gram) * delta).sum()
        return float(left.clamp(min=0) / self.wanted.clamp(min=torch.finfo(torch.float64).tiny))


@torch.no_grad()
def calibrate(
    student: Student,
    teacher: Teacher,
    config: SubcloneConfig,
    select: Selection,
    batches: Iterable[Tensor],
) -> list[Calibrated]:
    """Fit the writers of the cloned layers on the first `config.calibrate` images; nothing where that is 0.

    `select` is what `subclone` returned, `batches` yields images (B, C, H, W) as the teacher wants them. One
    pass of student and teacher a writer, so that no activations are kept. Raises UserError without images.
    """
    assert isinstance(student, nn.Module), "a student is a module"
    if not config.calibrate:
        return []
    device = next(student.parameters()).device
    images = [batch.to(device) for batch in first_images(batches, config.calibrate)]
    if not images:
        raise UserError("init.calibrate needs training images to fit to; give some, or set it to 0")
    writers = student.writers(teacher.num_blocks)
    sharing = Counter((writer.block, writer.sublayer) for writer in writers)
    aligner = Aligner(student.layout, teacher.layout, student.width, teacher.view.width, ()).to(device)
    limit = cloned_layers(student, config)
    training = student.training
    student.eval()  # no dropout, no dropped layers
    try:
        done = []
        for writer in writers:
            if writer.layer < limit:
                share = 1.0 / sharing[writer.block, writer.sublayer]
                sums = _sums(student, teacher, writer, share, aligner, select.residual.to(device), images)
                done.append(_fit(writer, sums, config.ridge))
        return done
    finally:
        student.train(training)


def first_images(batches: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The first `count` images."""
    for images in batches:
        if count <= 0:
            return
        yield images[:count]
        count -= len(images)


def _sums(
    student: Student,
    teacher: Teacher,
    writer: Writer,
    share: float,
    aligner: Aligner,
    kept: Tensor,
    images: Iterable[Tensor],
) -> NormalEquations:
    """What the writer gets, and what is left of `share` of its teacher sublayer's output, over all images."""
    linear = writer.linear
    device, bias = linear.weight.device, linear.bias is not None
    sums = NormalEquations(linear.in_features, linear.out_features, bias, device)
    for batch in images:
        made = teacher(batch, Capture(mixers=frozenset({writer.block}))).mixers[writer.block]
        wanted = share * aligner.teacher_tokens(made[f"{writer.sublayer}_output"]).index_select(-1, kept)
        y = aligner.student_tokens(_input_of(linear, student, batch))
        written = linear(y) if writer.scale is None else linear(y) * writer.scale
        sums.add(y.flatten(0, 1), (wanted - written).flatten(0, 1), wanted)
    return sums


def _fit(writer: Writer, sums: NormalEquations, ridge: float) -> Calibrated:
    """Change the linear by the solution. What it writes goes through LayerScale g, so the solution is that of
    g W, and W's change a g-th of it; a coordinate with g = 0 cannot be written and stays."""
    linear = writer.linear
    delta = change = sums.solve(ridge)
    if writer.scale is not None:
        scale = writer.scale.double()[:, None]
        delta = delta * (scale != 0)
        change = delta / scale.where(scale != 0, 1.0)
    before, after = sums.error(), sums.error(delta)
    if not torch.isfinite(delta).all():
        raise UserError(
            f"init.calibrate: {writer.name} gets or makes values that are not finite; set it to 0"
        )
    linear.weight.add_(change[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.add_(change[:, -1])
    source = f"blocks.{writer.block}.{writer.sublayer}"
    return Calibrated(target=writer.name, source=source, before=before, after=after)


class _Reached(Exception):
    """Carries a module's input out of a forward pass, of which the rest is not needed."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs


def _input_of(linear: nn.Linear, student: Student, images: Tensor) -> Tensor:
    """What `linear` gets when the student runs, (B, L, E)."""

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    handle = linear.register_forward_pre_hook(stop)
    try:
        student.run(images, Capture())
    except _Reached as reached:
        return reached.inputs
    finally:
        handle.remove()
    raise AssertionError("a student runs each of its writers")
