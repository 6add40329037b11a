"""What a model is as a teacher, found out from its configuration alone, or from its weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..ecosystems import decoders, hub, transformers
from ..ecosystems.find import card_of
from ..ecosystems.origin import Origin, origin_of
from ..ecosystems.sources import Source, read_source
from ..errors import Inexpressible, UserError
from ..subcloning.convert import build_student, kinds_of_students
from ..teachers.check import Fails, Unlike, bar, differences
from ..teachers.describe import towers_of
from ..teachers.load import part_holding, part_reading
from ..teachers.of_module import OfModule
from ..teachers.teacher import Teacher

# what transformers writes is larger where nobody set one
_NO_LIMIT = 10**9


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` found.

    source:      as it was asked for
    kind:        the registered teacher that reads it; None for a model of a library we know that none reads
    model:       its class in its library, or the type of model that its configuration names
    refused:     the part that no view can express, and why; there are no towers, inputs and students then
    towers:      by name, as teachers.describe has them
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
    towers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
    """Towers, sublayers, heads, inputs and licence of a model, and which students can be made of it.

    source:       a timm name, a Hugging Face id or folder, an open_clip name/tag, a .gguf file, a file of
        weights with `architecture`, or a module in hand
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
        return _refused(name, kind, module or _empty(part, found), found, str(error))
    apart = _differences(teacher, part, module) if check else {}
    origin = None if found is None or teacher.licence else origin_of(found)
    return Inspection(
        source=name,
        kind=kind,
        model=None if module is None else type(module).__name__,
        towers=towers_of(teacher.view),
        scalars={k: None if v.is_meta else v.flatten().tolist()[0] for k, v in teacher.view.scalars.items()},
        parameters=teacher.num_params,
        precision=str(teacher.view.tensor.dtype).removeprefix("torch."),
        licence=teacher.licence or (origin.licence if origin else None),
        base_model=teacher.base_model or (origin.base_model if origin else None),
        reads=_reads(teacher, found),
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


def _refused(
    name: str, kind: str | None, module: nn.Module | None, found: Source | None, why: str
) -> Inspection:
    """What is known all the same of a model with a part that no view expresses."""
    origin = Origin() if found is None else origin_of(found)
    card = None if module is None else card_of(module)
    tensors = [] if module is None else list(module.parameters())
    typed = "" if found is None else str(found.config.get("model_type", ""))
    return Inspection(
        source=name,
        kind=kind,
        model=(typed or None) if module is None else type(module).__name__,
        refused=why,
        parameters=sum(tensor.numel() for tensor in tensors),
        precision=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
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


def _reads(teacher: Teacher, found: Source | None) -> dict[str, Any]:
    reads: dict[str, Any] = {}
    if teacher.preprocessing is not None:
        reads["preprocessing"] = asdict(teacher.preprocessing)
    if found is not None and "text" in teacher.view.reads:
        reads["tokenizer"] = _tokenizer(found)
    return reads


def _tokenizer(found: Source) -> dict[str, Any] | None:
    """None where none lies beside the model."""
    if decoders.is_gguf(found) or (found.folder is None and found.repo is None):
        return {"in": found.text} if decoders.is_gguf(found) else None
    try:
        made = decoders.load_tokenizer(found)
    except UserError:
        return None
    files = {*made.vocab_files_names.values(), "tokenizer.json", "tokenizer_config.json"}
    if not any(_lies_beside(found, file) for file in files):
        return None  # transformers makes an empty one, without a word
    longest = int(made.model_max_length)
    return {
        "kind": type(made).__name__,
        "vocabulary": len(made),
        "longest": longest if longest < _NO_LIMIT else None,
    }


def _lies_beside(found: Source, file: str) -> bool:
    """Whether the folder has it, or the repository, whose files were fetched just now."""
    if found.folder is not None:
        return (found.folder / file).is_file()
    assert found.repo is not None, "a folder or a repository"
    return hub.cached(found.repo, file, found.revision) is not None


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
