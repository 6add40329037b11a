"""The student `sequence`, as a recipe has it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...config.registry import STUDENTS
from ...core.points import PointShape
from ...core.tower import StudentSpec
from ...ecosystems.sources import Source
from ...errors import UserError, WrongValues, refuse_all
from ..meant import wrong_teacher
from .pattern import Architecture, has_positions, parsed, pattern_of

if TYPE_CHECKING:
    from .layers import SequenceShape
    from .model import SequenceModel

_SIZES = ("width", "heads", "mlp_width", "expand", "state", "groups", "head_size")


@STUDENTS.register("sequence")
@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A model of sequences of points, such as the prompts of the task in_context: a Transformer, Mamba, or a
    hybrid.

    architecture: transformer, "(AF)*layers"; mamba, "(MM)*layers"; s4_mamba, "(SS)*layers"; standard_hybrid,
        "(AM)*layers"; mambaformer, "M(AM)*layers" (arXiv 2402.04248). Left out: mambaformer
    layers:    pairs of layers of an architecture; left out: 2
    pattern:   layers of one's own in its place: A attention, F an MLP, M Mamba, S Mamba with S4D, repeated by
        (AM)*6
    width:     channels of the stream; left out: the teacher's, or 128 without one
    heads:     of attention; left out: the teacher's, or 8 without one
    mlp_width: neurons of an MLP; left out: the teacher's, or 4 times the width
    positions: learnt, or none; auto: learnt in transformer and standard_hybrid, and in patterns that begin
        with attention
    mixer:     of M: mamba1 or mamba2
    mixers:    how mamba2 begins in the place of a teacher's attention: `attention`, as that without its
        softmax; `mamba2`: what reads and writes the stream is attention's, convolutions, steps, decays and
        skips are as Mamba-2's own code draws them, as they always are without a teacher; `random`:
        projections are drawn, too
    expand:    inner channels of M and S for each of the stream's
    state:     numbers of the state of each of their channels; left out: 16. Of mamba2 after a teacher: a
        head's channels, so that keys and queries fit in B and C; a larger one has more beside them, a
        smaller one takes nothing of attention
    groups:    of mamba2: heads share B and C in so many; left out: 1. After a teacher: as many as it has
        heads
    head_size: of mamba2: channels of a head; left out: those of attention
    conv:      taps of the convolution of M and S
    dropout:   of S, in what S4D makes; the paper's released code has 0.1, and none in any other architecture
    """

    group_names: ClassVar[tuple[str, ...]] = ("mixers", "attention", "mlp", "embedding", "head", "norms")

    architecture: Architecture | None = None
    layers: int | None = None
    pattern: str | None = None
    width: int | None = None
    heads: int | None = None
    mlp_width: int | None = None
    positions: Literal["auto", "learnt", "none"] = "auto"
    mixer: Literal["mamba1", "mamba2"] = "mamba1"
    mixers: Literal["attention", "mamba2", "random"] = "mamba2"
    expand: int = 2
    state: int | None = None
    groups: int | None = None
    head_size: int | None = None
    conv: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if self.pattern is not None and self.architecture is not None:
            problems.append(
                f"pattern is {self.pattern!r} beside architecture {self.architecture}; write one of them"
            )
        for name in ("layers", *_SIZES):
            if (value := getattr(self, name)) is not None and value < 1:
                problems.append(f"{name} is {value}; write a number of at least 1")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}; write 0 or a share below 1")
        if not problems:
            try:
                letters = self.letters
            except UserError as error:
                problems.append(str(error))
            else:
                problems += self._count_problems(letters)
                if self.dropout and "S" not in letters:
                    problems.append(f"dropout is {self.dropout}, but S alone has one; leave it out")
                given = [name for name in ("groups", "head_size") if getattr(self, name) is not None]
                given += ["mixers"] if self.mixers != "mamba2" else []
                if given and (self.mixer != "mamba2" or "M" not in letters):
                    problems.append(f"{given[0]} is given, but no layer is a mamba2; leave it out")
        refuse_all(problems)

    def _count_problems(self, letters: str) -> list[str]:
        """Of pairs beside a pattern that has another number of them."""
        pairs = len(letters) // 2  # mambaformer, too, has a layer before them
        if self.pattern is None or self.layers in (None, pairs):
            return []
        instead = f"write {pairs}, or leave it out" if pairs else "leave it out"
        return [
            f"layers is {self.layers} beside pattern {self.pattern!r}, whose {len(letters)} layers are "
            f"{pairs} pairs; {instead}"
        ]

    @property
    def letters(self) -> str:
        """A letter for each layer."""
        written = self.pattern  # an empty one is not left out, but has no layers
        return parsed(
            pattern_of(self.architecture or "mambaformer", self.layers or 2) if written is None else written
        )

    @property
    def placed(self) -> bool:
        """Whether positions are learnt."""
        if self.positions != "auto":
            return self.positions == "learnt"
        return has_positions(self.architecture) if self.architecture else self.letters[0] == "A"

    def preprocessing(self) -> None:
        """It reads whatever points the task has."""

    def build(self, spec: StudentSpec) -> SequenceModel:
        """Raises UserError for a task or a teacher that is not of points, and for sizes that do not fit."""
        from .model import SequenceModel

        try:
            shape = self._shape(spec)
            kinds = spec.view.towers["points"].kinds if spec.view is not None else ()
            return SequenceModel(shape, self.mixers, kinds)
        except WrongValues as error:  # sizes that the teacher or the task has, too
            raise UserError(f"student sequence: {error}") from error

    def _shape(self, spec: StudentSpec) -> SequenceShape:
        from .layers import SequenceShape

        theirs = _teacher_sizes(spec.view)
        points = spec.preprocessing if isinstance(spec.preprocessing, PointShape) else spec.points
        if points is None:
            raise UserError(
                "student sequence reads points, which this task has not; write the task in_context"
            )
        if spec.view is not None and self.width not in (None, theirs["width"]):
            raise UserError(
                f"student.width is {self.width}, the teacher's {theirs['width']}; write that, or leave it out"
            )
        width = self.width or theirs.get("width", 128)
        heads = self.heads or theirs.get("heads", 8)
        size = width // heads or 1
        after, head_size = self.mixer == "mamba2" and spec.view is not None, self.head_size or size
        return SequenceShape(
            inputs=points.width,
            outputs=points.outputs,
            length=points.length,
            pattern=self.letters,
            width=width,
            heads=heads,
            mlp_width=self.mlp_width or theirs.get("mlp_width", 4 * width),
            positions=points.length if self.placed else 0,
            mixer=self.mixer,
            expand=self.expand,
            state=self.state or (size if after else 16),
            groups=self.groups or (self.expand * width // head_size if after else 1),
            head_size=head_size,
            conv=self.conv,
            dropout=self.dropout,
        )

    @staticmethod
    def empty(source: Source) -> SequenceModel:
        """The model that a configuration describes, at its start. Raises UserError for one that describes
        none."""
        from .layers import SequenceShape
        from .model import SequenceModel

        said = {name: value for name, value in source.config["transmamba"].items() if name != "student"}
        known = {field.name for field in fields(SequenceShape)}
        if wrong := sorted(known ^ said.keys()):
            raise UserError(
                f"{source.text}: its config.json {'lacks' if wrong[0] in known else 'has'} {wrong[0]}, "
                "unlike those that this version of transmamba writes"
            )
        return SequenceModel(SequenceShape(**said))


def _teacher_sizes(view: Any) -> dict[str, int]:
    """Width, heads and neurons of a teacher of points; nothing without one. Raises UserError for another."""
    if view is None:
        return {}
    tower = view.towers.get("points")
    if tower is None:
        raise wrong_teacher("student sequence is made of a teacher of points", view)
    found = {"width": tower.width}
    for sublayer in tower.sublayers:
        if sublayer.kind == "attention":
            found["heads"] = sublayer.heads
        else:
            found["mlp_width"] = len(sublayer.up.weight)
    return found
