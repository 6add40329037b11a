"""What a model is as a teacher, found out from its configuration alone, or from its weights."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..ecosystems import transformers
from ..ecosystems.find import card_of, preprocessing_of
from ..ecosystems.origin import Origin, origin_of
from ..ecosystems.sources import Source, read_source
from ..errors import Inexpressible, UserError
from ..subcloning.convert import build_student, kinds_of_students
from ..teachers.check import Fails, Unlike, bar, differences
from ..teachers.load import part_holding, part_reading
from ..teachers.of_module import OfModule
from ..teachers.teacher import Teacher
from .describe_llava import connector_of, counted_towers, llava_parts
from .describe_student import converted, student_towers
from .folder import SUBCLONE
from .reads import reads_of


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` found.

    source:      as it was asked for
    kind:        the registered teacher that reads it; None for a model of a library we know that none reads
    model:       its class in its library, or the type of model that its configuration names
    refused:     the part that no view can express, and why; there are no towers, inputs and students then
    converted:   of a student, the towers that have Mamba in place of attention; None for any other model
    covered:     of a student, the share of its parameters that it began with from its teacher's, 0..1, where
        that is written beside it
    towers:      by name, as teachers.describe has them; a student's say their kind and parameters too
    parts:       what a LLaVA has between its towers: the `connector`, with the tokens that it makes of a
        picture, and a student's `cross`-Mamba
    parameters:  of the whole model
    precision:   of its tensors; of a configuration alone, what a new model of it would have
    reads:       what its inputs look like: preprocessing of images, tokenizer
    students:    registered student -> why it cannot be made; None where it can
    differences: of view and model, relative, by output and residual stream; empty without `check`
    most:        what the largest of them may be, by the precision in which both were run; None without
    """

    source: str
    kind: str | None = None
    model: str | None = None
    refused: str | None = None
    converted: tuple[str, ...] | None = None
    covered: float | None = None
    towers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scalars: Mapping[str, float | None] = field(default_factory=dict)
    parameters: int = 0
    precision: str = ""
    licence: str | None = None
    base_model: str | None = None
    reads: Mapping[str, Any] = field(default_factory=dict)
    students: Mapping[str, str | None] = field(default_factory=dict)
    differences: Mapping[str, float] = field(default_factory=dict)
    most: float | None = None

    @property
    def difference(self) -> float | None:
        """The largest of them; None without a check."""
        return max(self.differences.values(), default=None)

    @property
    def agrees(self) -> bool | None:
        """Whether view and model are the same, as far as their precision lets one tell; None without a
        check."""
        return None if self.difference is None or self.most is None else self.difference <= self.most

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {**asdict(self), "difference": self.difference, "agrees": self.agrees}


def inspect(
    source: nn.Module | str | Path, *, check: bool = False, architecture: str | None = None
) -> Inspection:
    """Towers, sublayers, heads, inputs and licence of a model, and which students can be made of it; of a
    student of ours, its towers, inputs and licence.

    source:       a run or student, a timm name, a Hugging Face id or folder, an open_clip name/tag, a .gguf
        file, a file of weights with `architecture`, or a module in hand
    check:        load its weights and run view and model side by side on random input
    architecture: the timm name of the model whose weights a file holds

    Without `check` its configuration is all that is read. Raises UserError for what is no model at all, and
    with `check` for one that does not run.
    """
    held = source if isinstance(source, nn.Module) else None
    found = read_source(str(source), architecture) if held is None else None
    name = str(source) if held is None else type(held).__name__
    kind: str | None = None
    part: Any = None
    module = held
    try:
        kind, part = part_reading(found) if found is not None else part_holding(source)  # type: ignore[arg-type]
        module = _module(part, check) if held is None else held
        teacher = _described(part, module, None if held is None else name)
    except Inexpressible as error:
        module = module or _empty(part, found)
        towers = {} if module is None else student_towers(module)
        if module is not None and towers:
            return _student(name, module, found, towers)
        return _refused(name, kind, module, found, str(error))
    apart = _differences(teacher, part, module) if check else {}
    origin = None if found is None or teacher.licence else origin_of(found)
    return Inspection(
        source=name,
        kind=kind,
        model=None if module is None else type(module).__name__,
        towers=counted_towers(teacher.view),
        parts=connector_of(teacher.view),
        scalars={k: _number(v) for k, v in teacher.view.scalars.items()},
        parameters=teacher.num_params,
        precision=str(teacher.view.tensor.dtype).removeprefix("torch."),
        licence=teacher.licence or (origin.licence if origin else None),
        base_model=teacher.base_model or (origin.base_model if origin else None),
        reads=reads_of(teacher.preprocessing, found, "text" in teacher.view.reads),
        students=_students(teacher),
        differences=apart,
        most=bar(teacher.view.tensor) if check else None,
    )


def _module(part: Any, check: bool) -> nn.Module | None:
    """With weights where it is to be checked; None of a part that offers no more than `build`."""
    if not isinstance(part, OfModule):
        return None
    return part.load() if check else part.empty()


def _described(part: Any, module: nn.Module | None, held: str | None) -> Teacher:
    """What its part says of a module; `held` is the name of one that nobody loaded here."""
    if held is not None:
        known = issubclass(part, OfModule)
        return (part.describe if known else part.adapt)(module, source=held)
    return part.build() if module is None else part.described(module)


def _empty(part: Any, found: Source | None) -> nn.Module | None:
    """A model that has no view, without weights, as its part or its library makes it; None where neither
    can."""
    ways = [part.empty] if isinstance(part, OfModule) else []
    if found is not None and transformers.recognise(found):
        ways.append(functools.partial(transformers.empty_of_any_type, found))
    for make in ways:
        with contextlib.suppress(UserError):
            return make()
    return None


def _student(
    name: str, module: nn.Module, found: Source | None, towers: Mapping[str, Mapping[str, Any]]
) -> Inspection:
    """Of a student of ours, which is no teacher: no view has what became of its attention."""
    card, origin = card_of(module), Origin() if found is None else origin_of(found)
    assert card is not None, "its library's"
    numbers = {key: getattr(module, f"logit_{key}", None) for key in ("scale", "bias")}
    return Inspection(
        source=name,
        model=type(module).__name__,
        converted=tuple(converted(towers)),
        covered=None if found is None or found.folder is None else _covered(found.folder),
        towers=towers,
        parts=llava_parts(module),
        scalars={k: _number(v.exp() if k == "scale" else v) for k, v in numbers.items() if v is not None},
        **_weights(module),
        licence=origin.licence or card.licence,
        base_model=origin.base_model or card.base_model,
        reads=reads_of(
            preprocessing_of(module) if "image" in towers else None,
            found,
            any(tower["reads"] == "text" for tower in towers.values()),
        ),
    )


def _number(tensor: Tensor) -> float | None:
    return None if tensor.is_meta else float(tensor.detach())


def _covered(folder: Path) -> float | None:
    """What subcloning wrote beside a student, or in its run."""
    for file in (folder / SUBCLONE, folder.parent / SUBCLONE):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return float(json.loads(file.read_text(encoding="utf-8"))["covered"])
    return None


def _weights(module: nn.Module | None) -> dict[str, Any]:
    """`parameters` and `precision` of a model; nothing of none."""
    tensors = [] if module is None else list(module.parameters())
    return {
        "parameters": sum(tensor.numel() for tensor in tensors),
        "precision": str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
    }


def _refused(
    name: str, kind: str | None, module: nn.Module | None, found: Source | None, why: str
) -> Inspection:
    """What is known all the same of a model with a part that no view expresses."""
    origin = Origin() if found is None else origin_of(found)
    card = None if module is None else card_of(module)
    typed = "" if found is None else str(found.config.get("model_type", ""))
    return Inspection(
        source=name,
        kind=kind,
        model=(typed or None) if module is None else type(module).__name__,
        refused=why,
        **_weights(module),
        licence=origin.licence or (card.licence if card else None),
        base_model=origin.base_model or (card.base_model if card else None),
    )


def _differences(teacher: Teacher, part: Any, module: nn.Module | None) -> dict[str, float]:
    """Raises UserError where they cannot be compared."""
    if module is None or not hasattr(part, "original"):
        raise UserError(f"{type(part).__name__} offers nothing to compare its view with; leave check out")
    if teacher.view.tensor.is_meta:
        raise UserError("the module is on the meta device, without weights; leave check out")
    try:
        return differences(teacher, part.original(module))
    except (Fails, Unlike) as error:
        raise UserError(f"{teacher.source}: {error}") from error


def _students(teacher: Teacher) -> dict[str, str | None]:
    """Which of the registered students that start from a teacher can be made, and why not."""
    found: dict[str, str | None] = {}
    for name in kinds_of_students():
        try:
            with torch.device("meta"), torch.no_grad():
                build_student(name, teacher)
            found[name] = None
        except UserError as error:
            found[name] = str(error)
    return found
