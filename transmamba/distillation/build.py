"""What a distiller is built of: the correspondences of teacher and student, losses, aligners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..config.registry import LOSSES
from ..core.batch import Batch
from ..core.tower import Student
from ..errors import UserError, suggest
from ..teachers.teacher import Teacher
from ..views.placed import skeletons
from ..views.sublayers import Attention
from ..views.view import Tower
from .aligner import Aligner
from .compared import check_student, of_outputs
from .pairs import feature_pairs
from .signals import Geometry, Loss, StreamGeometry


def geometry_of(student: nn.Module, teacher: Teacher | None) -> Geometry | None:
    """What teacher and student have in common; None without a teacher. A student that is no `Student` shares
    classes alone."""
    if teacher is None:
        return None
    streams = {}
    for name, tower in (student.towers if isinstance(student, Student) else {}).items():
        taught = teacher.view.towers.get(name)
        if taught is None:
            continue
        streams[name] = StreamGeometry(
            name=name,
            item=taught.layout.item,
            num_layers=tower.num_layers,
            teacher_width=taught.width,
            kinds=taught.kinds,
            pairs=feature_pairs(tower.num_layers, taught.ends),
            sources=tower.sources(taught.kinds),
            parts=tower.parts,
            windows=_windows(taught),
            inner=_inner(taught),
            image_token=getattr(taught.embedding, "token", None),
        )
    classes = getattr(student, "num_classes", None)
    return Geometry(streams, teacher.num_classes or teacher.vocabulary, classes)


def _windows(taught: Tower) -> dict[int, int]:
    parts = enumerate(skeletons(taught.sublayers))
    found = {s: getattr(part, "window", None) for s, part in parts}
    return {s: window for s, window in found.items() if window is not None}


def _inner(taught: Tower) -> dict[int, dict[str, int]]:
    """By attention sublayer the widths of its queries and keys."""
    parts = enumerate(skeletons(taught.sublayers))
    return {
        s: {"q": part.q.weight.shape[0], "k": part.k.weight.shape[0]}
        for s, part in parts
        if isinstance(part, Attention)
    }


def build_losses(
    losses: Sequence[Any], geometry: Geometry | None, student: nn.Module | None = None
) -> dict[str, Loss]:
    """Each loss by its name, numbered where it comes again, with its stream where it has one for each of
    several.

    losses: names, or configurations. One with `build_stream` is about a stream, one with `build_routed` about
        the student's routers (its `routers`), any other about the whole model.
    """
    built: dict[str, Loss] = {}
    for item in losses:
        config = LOSSES[item]() if isinstance(item, str) else item
        for suffix, loss in _build(config, geometry, student):
            name, number = f"{config.name}{suffix}", 2
            while name in built:
                name, number = f"{config.name}_{number}{suffix}", number + 1
            if student is not None:
                check_student(name, loss, student)
            built[name] = loss
    if not built:
        raise UserError("no losses; name at least one, such as cross_entropy")
    return built


def _build(config: Any, geometry: Geometry | None, student: nn.Module | None) -> Iterable[tuple[str, Loss]]:
    if hasattr(config, "build_routed"):
        return [("", config.build_routed(getattr(student, "routers", {})))]
    if not hasattr(config, "build_stream"):
        return [("", config.build(geometry))]
    streams = {} if geometry is None else dict(geometry.streams)
    if config.stream is not None and streams:
        if config.stream not in streams:
            raise UserError(
                f"loss {config.name}: stream {config.stream!r} is none that teacher and student share, for a "
                f"tower that the student keeps has none to compare{suggest(config.stream, streams)}"
            )
        streams = {config.stream: streams[config.stream]}
    if not streams:
        raise UserError(
            f"loss {config.name} needs a Mamba student and a teacher of the same streams; without them use "
            + of_outputs(student)
        )
    if not getattr(config, "image_tokens", True) and all(s.image_token is None for s in streams.values()):
        raise UserError(
            f"loss {config.name}: image_tokens is false, but {' and '.join(streams)} reads no pictures among "
            "its words; leave it out"
        )
    several = geometry is not None and len(geometry.streams) > 1
    return [(f"/{name}" if several else "", config.build_stream(stream)) for name, stream in streams.items()]


def make_aligners(
    student: nn.Module, teacher: Teacher, losses: Iterable[Loss], kept: Mapping[str, Tensor] | None = None
) -> nn.ModuleDict:
    """An aligner for every stream that both models have, with the projections that these losses read.

    kept: by stream, the coordinates that subcloning chose
    """
    losses = list(losses)
    aligners = nn.ModuleDict()
    if not isinstance(student, Student):
        return aligners
    for name, tower in student.towers.items():
        taught = teacher.view.towers.get(name)
        if taught is None:
            continue
        mine = [loss for loss in losses if loss.stream == name]
        words = {loss.image_token for loss in mine if loss.standardises} - {None}
        aligners[name] = Aligner(
            tower.layout,
            taught.layout,
            tower.width,
            taught.width,
            {k for loss in mine for k in loss.projections()},
            None if kept is None else kept.get(name),
            compared=list(feature_pairs(tower.num_layers, taught.ends).values()),
            image_token=next(iter(words), None),
        )
    return aligners


def measure_streams(aligners: nn.ModuleDict, teacher: Teacher, batches: Sequence[Batch]) -> None:
    """Take the teacher's statistics of every stream, for losses that standardise."""
    for stream, aligner in aligners.items():
        aligner.measure(teacher, batches, stream)  # type: ignore[operator]
