"""Feature calibration: a student's tokens and channels beside its teacher's, stream by stream.

TransMamba (arXiv 2502.15130), as reported by third parties, pads the narrower Mamba feature with zeros to the
Transformer's width and applies one plain linear layer. Padding and a bias-free linear are one rectangular
linear, so that is what is built [proposal D1]: one per pair, the student's side only (a trainable teacher
side could collapse), starting as the embedding of the student's coordinates into the teacher's, dropped at
export.

Shapes: B rows, L tokens, M matched tokens, S student channels, T teacher channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layout import Frames, Grid, Layout
from ..core.output import Capture
from ..errors import UserError

if TYPE_CHECKING:
    from ..core.batch import Batch
    from ..teachers.teacher import Teacher


class Aligner(nn.Module):
    """Projections of one stream by student layer, and the gathering of tokens that both sides have.

    layers:   student layers that have a projection
    compared: teacher sublayers whose residual streams are compared, and may be standardised
    kept:     the teacher coordinate of each student coordinate, as subcloning chose them; without it the
        padding is split evenly on both sides. Student wider than teacher: its first T coordinates are read.
    image_token: of a text with pictures, whose words are standardised by themselves, too: what is no word
    """

    def __init__(
        self,
        student_layout: Layout,
        teacher_layout: Layout,
        student_width: int,
        teacher_width: int,
        layers: Iterable[int],
        kept: Tensor | None = None,
        compared: Sequence[int] = (),
        image_token: int | None = None,
    ) -> None:
        super().__init__()
        self.tokens: PatchTokens | RowTokens = _tokens_of(student_layout, teacher_layout)
        places = _places(student_width, teacher_width, kept)
        self.places: Tensor
        self.register_buffer("places", places)  # saved: a resumed run does not subclone again
        # of the teacher's residual streams, for losses that standardise; saved for the same reason
        self.compared = tuple(sorted(set(compared)))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(len(self.compared), teacher_width))
        self.register_buffer("std", torch.ones(len(self.compared), teacher_width))
        self.image_token = image_token
        if image_token is not None:  # else a checkpoint has no more than before
            self.register_buffer("mean_of_words", torch.zeros_like(self.mean))
            self.register_buffer("std_of_words", torch.ones_like(self.std))
        self.measured = False  # whether they are the teacher's, here or in the checkpoint that was loaded
        self.register_load_state_dict_post_hook(_loaded)
        self.projections = nn.ModuleDict()
        for k in sorted(set(layers)):
            linear = nn.Linear(student_width, teacher_width, bias=False)
            with torch.no_grad():
                linear.weight.zero_()
                shared = min(student_width, teacher_width)
                linear.weight[places[:shared], torch.arange(shared)] = 1.0
            self.projections[str(k)] = linear

    @property
    def num_tokens(self) -> int | None:
        """Matched tokens of every row; None where rows differ."""
        return self.tokens.num_tokens

    @torch.no_grad()
    def measure(self, teacher: Teacher, batches: Iterable[Batch], stream: str = "image") -> None:
        """Take each channel's mean and standard deviation after every compared sublayer, fixed from then on:
        over all tokens, and over words alone where some are standardised so."""
        every, words = (_Sums(self.mean) for _ in range(2))
        for batch in batches:
            found = teacher(batch.inputs, {stream: Capture(hidden=frozenset(self.compared))}).streams
            if stream not in found:  # texts alone have no pictures
                continue
            seen = found[stream]
            hidden = [self.teacher_tokens(seen.hidden[s]) for s in self.compared]
            every.add(hidden, seen.mask)
            if self.image_token is not None:
                words.add(hidden, words_alone(seen.mask, batch, self.image_token))
        every.give(self.mean, self.std)
        if self.image_token is not None:
            words.give(self.get_buffer("mean_of_words"), self.get_buffer("std_of_words"))
        self.measured = True

    def standardise(self, sublayers: Sequence[int], x: Tensor, words: bool = False) -> Tensor:
        """Features (..., n, B, M, T) in units of the teacher's statistics after `sublayers`, of its words
        alone where asked.

        Raises UserError before they were measured.
        """
        if not self.measured:
            raise UserError(
                "standardize needs the teacher's statistics; call "
                "distiller.measure(batches) with some training data first"
            )
        rows = [self.compared.index(s) for s in sublayers]
        # stacked, since indexing with a list would copy it to the GPU at every use
        own = "_of_words" if words else ""
        of_all = [self.get_buffer(f"{name}{own}") for name in ("mean", "std")]
        mean, std = (torch.stack([of[row] for row in rows])[:, None, None] for of in of_all)
        return (x - mean.to(x.dtype)) / std.to(x.dtype)

    def student_tokens(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """(B, L, S) -> the matched tokens (B, M, S), or those at the positions `drawn` among them."""
        return self.tokens.of_student(x, drawn)

    def student_positions(self, drawn: Tensor) -> Tensor:
        """Where in the student's sequence the matched tokens `drawn` stand."""
        assert isinstance(self.tokens, PatchTokens), "rows of text have no tokens in common to draw from"
        return self.tokens.from_student[drawn]

    def teacher_tokens(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Teacher features (B, L_T, T) on the student's grid and in its order, (B, M, T), or those at the
        positions `drawn` among them."""
        return self.tokens.of_teacher(x, drawn)

    def project(self, k: int, x: Tensor) -> Tensor:
        """Student features of layer k in the teacher's space, (..., S) -> (..., T)."""
        return self.projections[str(k)](x)

    def project_all(self, layers: Sequence[int], x: Tensor, through: Tensor | None = None) -> Tensor:
        """`project` of every layer's features, (n, ..., S) -> (n, ..., T), as one product; with `through`
        (n, S, E), x (n, ..., E) are features before that matrix."""
        weights = torch.stack([self.projections[str(k)].weight for k in layers])  # type: ignore[misc]
        if through is not None:
            weights = weights @ through
        return (x.flatten(1, -2) @ weights.mT.to(x.dtype)).unflatten(1, x.shape[1:-1])

    def to_student(self, x: Tensor) -> Tensor:
        """A teacher residual stream as the student's mixers would see it, (B, L_T, T) -> (B, L, S): the kept
        coordinates, zeros for what the teacher lacks."""
        tokens = self.teacher_tokens(x)
        width = self.places.shape[0]
        narrow = (
            tokens[..., self.places]
            if width <= tokens.shape[-1]
            else F.pad(tokens, (0, width - tokens.shape[-1]))
        )
        return self.tokens.spread(narrow)


class _Sums:
    """Of tokens' channels after each sublayer, (n, T), in float64."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.total, self.squares = torch.zeros(2, *like.shape, dtype=torch.float64, device=like.device)

    def add(self, hidden: Sequence[Tensor], mask: Tensor | None) -> None:
        """Of (B, M, T) after each sublayer; of those that mask (B, M) names."""
        for row, x in enumerate(hidden):
            tokens = (x.flatten(0, 1) if mask is None else x[mask]).double()
            self.total[row] += tokens.sum(dim=0)
            self.squares[row] += tokens.square().sum(dim=0)
        self.count += len(tokens)

    def give(self, mean: Tensor, std: Tensor) -> None:
        """Into these. Raises UserError where there were no tokens."""
        if not self.count:
            raise UserError("standardised features need calibration data; the training data has none")
        found = self.total / self.count
        mean.copy_(found)
        std.copy_((self.squares / self.count - found.square()).clamp_min(1e-12).sqrt())


class RowTokens(nn.Module):
    """Text: teacher and student read the same tokens in the same order; a mask says which are real."""

    num_tokens: int | None = None

    def of_student(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        return x

    def of_teacher(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        return x

    def spread(self, x: Tensor) -> Tensor:
        return x


class PatchTokens(nn.Module):
    """Patches of a picture or of frames: matched by name and place; of pictures, a teacher of another patch
    grid is resized bilinearly to the student's.

    Its positions are buffers, since a list would be copied to the GPU at every use.
    """

    from_teacher: Tensor
    from_student: Tensor
    _patches: Tensor
    _resized_patches: Tensor
    _special: Tensor

    def __init__(self, student: Grid | Frames, teacher: Grid | Frames) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.resized = teacher
        if isinstance(student, Grid) and isinstance(teacher, Grid):
            self.resized = Grid(*student.grid, special=teacher.special)
        match = self.resized.match(student)
        buffers = {
            "from_teacher": match.here,
            "from_student": match.there,
            "_patches": torch.tensor(teacher.patches, dtype=torch.long),
            "_resized_patches": torch.tensor(self.resized.patches, dtype=torch.long),
            "_special": torch.tensor([position for _, position in teacher.special], dtype=torch.long),
        }
        for name, positions in buffers.items():
            self.register_buffer(name, positions, persistent=False)
        self.num_tokens = len(match.here)
        self.same_order = match.here.tolist() == list(range(self.resized.length))

    def of_student(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        if drawn is None and self.num_tokens == x.shape[1]:
            return x
        # index_select: the backward of x[:, index] sorts its positions first
        return x.index_select(1, self.from_student if drawn is None else self.from_student[drawn])

    def of_teacher(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        resized = self._resize(x)
        if drawn is None and self.same_order:
            return resized
        return resized.index_select(1, self.from_teacher if drawn is None else self.from_teacher[drawn])

    def spread(self, x: Tensor) -> Tensor:
        """(B, M, S) at their places in the student's sequence (B, L, S), zeros elsewhere."""
        if self.num_tokens == self.student.length:
            return x
        full = x.new_zeros(len(x), self.student.length, x.shape[-1])
        full[:, self.from_student] = x
        return full

    def _resize(self, x: Tensor) -> Tensor:
        if self.resized == self.teacher:
            return x
        assert isinstance(self.teacher, Grid) and isinstance(self.student, Grid), "frames are not resized"
        patches = x.index_select(1, self._patches).transpose(1, 2).unflatten(2, self.teacher.grid)
        patches = F.interpolate(patches, size=self.student.grid, mode="bilinear", antialias=True)
        out = x.new_zeros(len(x), self.resized.length, x.shape[-1])
        out[:, self._resized_patches] = patches.flatten(2).transpose(1, 2)
        out[:, self._special] = x.index_select(1, self._special)
        return out


def _tokens_of(student: Layout, teacher: Layout) -> PatchTokens | RowTokens:
    if isinstance(student, Grid | Frames) and isinstance(teacher, Grid | Frames):
        return PatchTokens(student, teacher)
    student.match(teacher)  # raises where they cannot be compared
    return RowTokens()


def words_alone(mask: Tensor | None, batch: Batch, image_token: int) -> Tensor:
    """Which tokens (B, L) of a text with pictures are words, of those that `mask` says are real."""
    words = batch.inputs["text"] != image_token
    return words if mask is None else words & mask


def _loaded(aligner: Aligner, _: object) -> None:
    aligner.measured = True


def _places(student_width: int, teacher_width: int, kept: Tensor | None) -> Tensor:
    """Teacher coordinate of each student coordinate, (S,)."""
    if student_width >= teacher_width:
        return torch.arange(student_width)
    if kept is not None:
        return kept.cpu().clone()
    left = (teacher_width - student_width) // 2
    return torch.arange(left, left + student_width)
