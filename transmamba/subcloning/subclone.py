"""Weight subcloning: a student's tensors taken from the teacher's canonical tensors.

The student's `plan` says what goes where; this file executes it, with the coordinates that `selection.py`
chooses, and reports it (`report.py`). It knows no model by name. Sources: Samragh et al., "Weight
subcloning" (arXiv 2312.09299) for one permutation of the residual stream and the rescaling; TransMamba (arXiv
2502.15130), as reported by third parties, for the early layers first. The tensor map from attention and MLP
sublayers to Mamba layers is this project's own proposal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.tower import Student
from ..errors import UserError, refuse_all
from ..views.view import Tower, View
from .plan import Dropped, Kind, Take
from .report import Report, Row
from .selection import Scores, Selection, activation_scores, change_scores

if TYPE_CHECKING:
    from ..teachers.teacher import Teacher

Importance = Literal["activation", "uniform", "change"]


@dataclass(frozen=True, kw_only=True)
class SubcloneConfig:
    """How the student starts.

    layers:     "all", "half", or how many of the first student layers are cloned; 0 clones nothing at all
    importance: which coordinates a narrower student keeps: `activation` (mean magnitude on calibration
                images), `uniform` (evenly spaced, no data), `change` (those that moved least since `base`)
    base:       for `change`: the teacher before fine-tuning (name, id or folder)
    calibration_images: how many training images (no labels) `activation` and `average` look at
    mimic:      start convolutions as the identity and gates (where they have a bias) as neutral
    average:    start a Vim's attention layers as the average of the values over the image, on top of `mimic`
                [proposal]: two inner channels v and -v for each value, so that the SiLU before the scan bends
                nothing (silu(v) - silu(-v) = v), B, C and delta constant, no skip; needs calibration images
    fold:       fold LayerNorms and LayerScale into the linears first, so that an RMSNorm student loses
                nothing
    """

    layers: int | Literal["all", "half"] = "all"
    importance: Importance = "activation"
    base: str | None = None
    calibration_images: int = 256
    mimic: bool = False
    average: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.importance == "change" and not self.base:
            problems.append("importance 'change' compares with the teacher before fine-tuning; set `base`")
        if self.calibration_images < 0:
            problems.append(
                f"calibration_images is {self.calibration_images}; write a number of images, 0 for none"
            )
        if self.average and not self.mimic:
            problems.append("average needs the identity convolutions of mimic; set mimic to true")
        known = isinstance(self.layers, int) or self.layers in ("all", "half")
        if not known or (isinstance(self.layers, int) and self.layers < 0):
            problems.append(f"layers is {self.layers}; write 'all', 'half' or a number of layers, 0 for none")
        refuse_all(problems)


@torch.no_grad()
def subclone(
    student: Student, teacher: Teacher, config: SubcloneConfig, calibration: Iterable[Batch] = ()
) -> tuple[Report, dict[str, Selection]]:
    """Overwrite the student's tensors by its own plan. Returns the report and the coordinates chosen, by
    tower.

    teacher: folded already where `config.fold` says so

    Raises UserError where shapes cannot meet (the plan says which).
    """
    assert isinstance(student, nn.Module), "a student is a module"
    if not student.towers:
        raise UserError(
            f"{type(student).__name__} has no tower that takes a teacher's weights; write init: null"
        )
    calibration = list(calibration)
    view = teacher.view
    scores = _scores(student, teacher, config, calibration)
    select = {
        name: Selection(view.towers[name].width, tower.width, scores.get(name), config.average)
        for name, tower in student.towers.items()
        if name in view.towers
    }
    parameters = dict(student.named_parameters())
    names = [name for tower in view.towers.values() for name in tower.names]
    report = Report(total=sum(p.numel() for p in parameters.values()), sublayers=names)
    limit = cloned_layers(student, config)
    if limit and config.mimic:
        _mimic(student, limit)
    if limit:
        for item in student.plan(view, select):
            if item.layer is not None and item.layer >= limit:
                continue
            if isinstance(item, Dropped):
                report.dropped.append(item)
            else:
                report.rows.append(execute(item, parameters))
        _calibrate(student, teacher, limit, calibration, select)
        if config.average:
            _average(student, view, limit, calibration)
    taken = report.cloned
    report.rows += [
        Row(name, "initialisation", "fresh", tuple(p.shape), p.numel())
        for name, p in parameters.items()
        if name not in taken
    ]
    return report, select


def first_items(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The first `count` items."""
    for batch in batches:
        if count <= 0:
            return
        yield batch if len(batch) <= count else batch.first(count)
        count -= len(batch)


def _mimic(student: Student, layers: int) -> None:
    """Let the first `layers` mixers that know how begin as a plain value path."""
    assert isinstance(student, nn.Module), "a student is a module"
    able: list[Any] = [module for module in student.modules() if hasattr(module, "mimic_")]
    for module in able[:layers]:
        module.mimic_()


def _average(student: Student, view: View, layers: int, calibration: Sequence[Batch]) -> None:
    """Let those of the first `layers` mixers that stand in for attention begin as averages."""
    assert isinstance(student, nn.Module), "a student is a module"
    able = {name: tower for name, tower in student.towers.items() if hasattr(tower, "average_")}
    if not able:
        raise UserError("init.average is for Vim students; leave it out")
    if not calibration:
        raise UserError(
            "init.average needs calibration images; give some (init.calibration_images: how many)"
        )
    device = next(student.parameters()).device
    batches = [batch.to(device).inputs for batch in calibration]
    was_training = student.training
    student.eval()  # without dropped paths
    for name, tower in able.items():
        kinds = view.towers[name].kinds
        for k, s in sorted(tower.sources(kinds).items()):
            if kinds[s] == "attention" and k < layers:
                tower.average_(k, batches)
    student.train(was_training)


def _calibrate(
    student: Student,
    teacher: Teacher,
    layers: int,
    calibration: Sequence[Batch],
    select: Mapping[str, Selection],
) -> None:
    """Let towers that can take what no tensor of the teacher's says from what it makes of some items."""
    assert isinstance(student, nn.Module), "a student is a module"
    device = next(student.parameters()).device
    for name, tower in student.towers.items():
        if hasattr(tower, "calibrate_") and name in teacher.view.towers:
            inputs = [batch.to(device).inputs for batch in calibration]
            kinds, kept = teacher.view.towers[name].kinds, select[name].residual
            tower.calibrate_(teacher.walk, kinds, inputs, layers, kept.to(device))


def cloned_layers(student: Student, config: SubcloneConfig) -> int:
    """How many of the first student layers are cloned, in each tower."""
    if isinstance(config.layers, int):
        return config.layers
    most = max(tower.num_layers for tower in student.towers.values())
    return most if config.layers == "all" else most // 2


def _scores(
    student: Student, teacher: Teacher, config: SubcloneConfig, calibration: Sequence[Batch]
) -> Scores:
    """What ranks coordinates: asked for where a tower is narrower, or where images are there anyway."""
    theirs = teacher.view.towers
    ranked = any(_ranks(t, theirs[name], calibration) for name, t in student.towers.items() if name in theirs)
    if config.importance == "activation" and ranked:
        return activation_scores(teacher, calibration)
    if config.importance == "change":
        from ..teachers.load import load_teacher

        assert config.base is not None, "checked by SubcloneConfig"
        base = load_teacher(config.base).to(teacher.device)
        return change_scores(teacher.view, (base.fold() if config.fold else base).view)
    return {}


def _ranks(tower: Any, theirs: Tower, calibration: Sequence[Batch]) -> bool:
    """Whether a student's tower may choose among a teacher's coordinates."""
    if hasattr(tower, "narrower"):  # one that says it itself
        return bool(tower.narrower(theirs))
    return tower.width != theirs.width or bool(calibration)


def execute(take: Take, parameters: Mapping[str, nn.Parameter]) -> Row:
    """Overwrite what a `Take` names, out of these parameters. Raises UserError where its shape does not
    fit."""
    if take.target not in parameters:
        raise UserError(
            f"the student has no {take.target} to take the teacher's {take.source}; "
            "choose one of the teacher's shape, or leave student.model out where its kind allows"
        )
    target = parameters[take.target]
    place = target.data if take.into is None else target.data[take.into]
    value = take.tensor.detach().to(place.device, place.dtype)
    kinds: list[Kind] = [take.made]
    for dim, index in enumerate(take.index):
        if index is None:
            continue
        full = value.shape[dim]
        kinds.append(_kind(index, full))
        value = value.index_select(dim, index.to(value.device))
        if dim == 1 and take.target.endswith("weight") and len(index.unique()) < full:
            value = value * (full / len(index.unique())) ** 0.5
    scale = take.scale if isinstance(take.scale, float) else take.scale.to(value.device, value.dtype)
    if isinstance(scale, Tensor) or scale != 1.0:
        value = value * scale
    shared = place.shape[-value.dim() :]  # the student's tensor may have dimensions of 1 before
    if value.shape != shared or value.numel() != place.numel():
        raise UserError(
            f"{take.target} {tuple(place.shape)} cannot take {take.source} {tuple(value.shape)}; "
            "choose a student of the same image size, patch and number of classes"
        )
    place.copy_(value.reshape(place.shape))
    kind = max(kinds, key=get_args(Kind).index)
    return Row(take.target, take.source, kind, tuple(target.shape), place.numel())


def _kind(index: Tensor, full: int) -> Kind:
    if len(index.unique()) < full:
        return "sliced"
    if len(index) > full:
        return "repeated"
    return "copied" if torch.equal(index.cpu(), torch.arange(full)) else "permuted"
