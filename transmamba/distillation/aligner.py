"""Feature calibration: which student layer is compared with which teacher block, token by token, and the map
between their widths.

TransMamba (arXiv 2502.15130), as reported by third parties, pads the narrower Mamba feature with zeros to the
Transformer's width and applies one plain linear layer. Padding and a bias-free linear are one rectangular
linear, so that is what is built [proposal D1]: one per pair, the student's side only (a trainable teacher
side could collapse), starting as the embedding of the student's coordinates into the teacher's, dropped at
export.

Shapes: B images, L tokens, M matched tokens, S student channels, T teacher channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.output import Capture, TokenLayout
from ..errors import UserError

if TYPE_CHECKING:
    from ..teachers.teacher import Teacher


class Aligner(nn.Module):
    """Projections by student layer, and the gathering of tokens that both sides have.

    kept: the teacher coordinate of each student coordinate, as subcloning chose them; without it the padding
        is split evenly on both sides. Student wider than teacher: its first T coordinates are read.
    """

    def __init__(
        self,
        student_layout: TokenLayout,
        teacher_layout: TokenLayout,
        student_width: int,
        teacher_width: int,
        layers: Iterable[int],
        kept: Tensor | None = None,
        num_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.student_layout, self.teacher_layout = student_layout, teacher_layout
        self.resized = TokenLayout(grid=student_layout.grid, special=teacher_layout.special)
        from_teacher, from_student = self.resized.match(student_layout)
        self.from_teacher: Tensor
        self.from_student: Tensor
        self.places: Tensor
        self.register_buffer("from_teacher", from_teacher, persistent=False)
        self.register_buffer("from_student", from_student, persistent=False)
        # as buffers, since a list would be copied to the GPU at every use
        self._patches: Tensor
        self._resized_patches: Tensor
        self._special: Tensor
        special = [position for _, position in teacher_layout.special]
        for name, positions in (
            ("_patches", teacher_layout.patches),
            ("_resized_patches", self.resized.patches),
            ("_special", special),
        ):
            self.register_buffer(name, torch.tensor(positions, dtype=torch.long), persistent=False)
        self.num_tokens = len(from_teacher)
        self.same_order = from_teacher.tolist() == list(range(self.resized.length))
        places = _places(student_width, teacher_width, kept)
        self.register_buffer("places", places)  # saved: a resumed run does not subclone again
        # of the teacher's residual streams, for losses that standardise; saved for the same reason
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(num_blocks, teacher_width))
        self.register_buffer("std", torch.ones(num_blocks, teacher_width))
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

    @torch.no_grad()
    def measure(self, teacher: Teacher, batches: Iterable[Tensor]) -> None:
        """Take each channel's mean and standard deviation after every block from images (B, C, H, W), fixed
        from then on."""
        blocks = range(len(self.mean))
        count = 0
        total, squares = torch.zeros(2, *self.mean.shape, dtype=torch.float64, device=self.mean.device)
        for images in batches:
            hidden = teacher(images, Capture(hidden=frozenset(blocks))).hidden
            tokens = torch.stack([self.teacher_tokens(hidden[t]).flatten(0, 1) for t in blocks]).double()
            count += tokens.shape[1]
            total, squares = total + tokens.sum(dim=1), squares + tokens.square().sum(dim=1)
        if not count:
            raise UserError("standardised features need calibration images; the training data has none")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp_min(1e-12).sqrt())
        self.measured = True

    def standardise(self, blocks: Sequence[int], x: Tensor) -> Tensor:
        """Features (..., n, B, M, T) in units of the teacher's statistics after `blocks`.

        Raises UserError before they were measured.
        """
        if not self.measured:
            raise UserError(
                "standardize needs the teacher's statistics; call "
                "distiller.aligner.measure(teacher, batches) with some training images first"
            )
        # stacked, since indexing with a list would copy it to the GPU at every use
        mean, std = (torch.stack([of[t] for t in blocks])[:, None, None] for of in (self.mean, self.std))
        return (x - mean.to(x.dtype)) / std.to(x.dtype)

    def student_tokens(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """(B, L, S) -> the matched tokens (B, M, S), or those at the positions `drawn` among them."""
        if drawn is None and self.num_tokens == x.shape[1]:
            return x
        # index_select: the backward of x[:, index] sorts its positions first
        return x.index_select(1, self.from_student if drawn is None else self.from_student[drawn])

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

    def teacher_tokens(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Teacher features (B, L_T, T) on the student's grid and in its order, (B, M, T), or those at the
        positions `drawn` among them."""
        resized = self._resize(x)
        if drawn is None and self.same_order:
            return resized
        return resized.index_select(1, self.from_teacher if drawn is None else self.from_teacher[drawn])

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
        if self.num_tokens == self.student_layout.length:
            return narrow
        full = narrow.new_zeros(len(narrow), self.student_layout.length, width)
        full[:, self.from_student] = narrow
        return full

    def _resize(self, x: Tensor) -> Tensor:
        if self.teacher_layout.grid == self.student_layout.grid:
            return x
        patches = x.index_select(1, self._patches).transpose(1, 2).unflatten(2, self.teacher_layout.grid)
        patches = F.interpolate(patches, size=self.student_layout.grid, mode="bilinear", antialias=True)
        out = x.new_zeros(len(x), self.resized.length, x.shape[-1])
        out[:, self._resized_patches] = patches.flatten(2).transpose(1, 2)
        out[:, self._special] = x.index_select(1, self._special)
        return out


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
