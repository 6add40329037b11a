"""Matrix orientation, stage 1 of MOHAWK (arXiv 2408.10189): a mixer's matrix over tokens against softmax.

Attention and the scan of Mamba-2 are both y = M x over a row's tokens, head by head. Of attention M is
softmax(q kᵀ / sqrt(P)); of the scan, with the cumulative decays a_t = sum over s <= t of dA_s, M_ij =
exp(a_i - a_j) (C_i · B_j) dt_j for j <= i, and its skip D on the diagonal, as in the authors' code. A
student's mixer gives C and B by attention's names, q and k. Shapes: B rows, L tokens, H heads of P channels
and N states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config.registry import LOSSES
from ..core.output import Capture, Captures, Context, Term, wide
from ..distillation.signals import Loss, Signals, StreamGeometry, check_weight, only, stack_parts
from ..errors import UserError

# of a student's mixer: what its matrix is made of
_READ = ("q", "k", "dt", "dA", "D")


@LOSSES.register("mixing_matrix")
@dataclass(frozen=True, kw_only=True)
class MixingMatrix:
    """mean over mixers and heads of |S - T|² / |T|² a sample: S the student's matrix over tokens on the
    teacher's own input, T the teacher's softmax, |.| Frobenius' norm; 1 for a mixer that mixes nothing. Of
    text, a row weighs as many tokens as it has. The authors take the mean of |S - T|, which grows with a
    row's length.

    weight: factor of the loss in the stage's sum
    chunk:  tokens whose rows of the matrices exist at a time: fewer take less memory
    stream: which tower, where there are several; left out: each
    """

    weight: float = 1.0
    chunk: int = 128
    stream: str | None = None

    def __post_init__(self) -> None:
        few = [f"chunk is {self.chunk}; write a number of tokens, at least 1"] if self.chunk < 1 else []
        check_weight(self.weight, also=few)

    def build_stream(self, geometry: StreamGeometry) -> MixingMatrixLoss:
        """Raises UserError for a student without mixers of its own, or whose mixers do not name what their
        matrices are made of, and for a teacher's attention that does not read all tokens."""
        if not geometry.sources:
            raise UserError(
                "loss mixing_matrix: all layers of this student keep the teacher's attention, so nothing is "
                "there to compare; leave the loss out, and a stage of it alone"
            )
        if missing := [name for name in _READ if name not in geometry.parts]:
            raise UserError(
                f"loss mixing_matrix compares the matrices of mixers that name {', '.join(_READ)}, as those "
                f"of hybrid_lm do; this student's lack {', '.join(missing)}"
            )
        if windowed := [s for s in geometry.sources.values() if s in geometry.windows]:
            raise UserError(
                f"loss mixing_matrix compares with softmax over all tokens, but the teacher's sublayer "
                f"{windowed[0]} reads the last {geometry.windows[windowed[0]]} alone; leave the loss out"
            )
        return MixingMatrixLoss(geometry, self.weight, self.chunk)


class MixingMatrixLoss(Loss):
    teacher_forced = True

    def __init__(self, geometry: StreamGeometry, weight: float, chunk: int) -> None:
        super().__init__(weight, geometry)
        self.sources, self.chunk = geometry.sources, chunk

    def student_captures(self) -> Captures:
        return only(self.stream, Capture(mixers=dict.fromkeys(self.sources, frozenset(("output", *_READ)))))

    def teacher_captures(self) -> Captures:
        named = frozenset(("input", "q", "k"))
        return only(self.stream, Capture(mixers=dict.fromkeys(self.sources.values(), named)))

    def part_names(self) -> list[str]:
        return [str(k) for k in self.sources]

    def forward(self, signals: Signals) -> Term:
        stream, context = signals.stream(self.stream), Context.of(signals.batch.inputs)
        errors, similarity, rest = [], [], []
        for k, s in self.sources.items():
            made, taught = stream.student.mixers[k], stream.teacher.mixers[s]
            error, alike = self._compare(_Mixer.of(made, taught, context))
            amount = stream.amount(error)
            errors.append(error * amount)
            similarity.append(alike * amount)
            # what comes after the scan has a gradient too, of zeros: DDP waits for one of all that is trained
            rest.append(made["output"].sum() * 0)
        return Term(torch.stack(errors).mean(dim=0).sum() + torch.stack(rest).sum(), stack_parts(similarity))

    def _compare(self, mixer: _Mixer) -> tuple[Tensor, Tensor]:
        """Of each row, the mean over heads of |S - T|² / |T|² and of the matrices' cosine, (B,)."""
        sums: Tensor | None = None
        for start in range(0, mixer.q.shape[2], self.chunk):
            rows = mixer.rows(start, start + self.chunk)
            if torch.is_grad_enabled():  # the matrices are made again for the backward pass
                found = checkpoint(_products, *rows, use_reentrant=False, preserve_rng_state=False)
            else:
                found = _products(*rows)
            sums = found if sums is None else sums + found
        assert sums is not None, "a row has tokens"
        error, both, made, wanted = sums
        wanted = wanted.clamp_min(1e-12)
        cosine = both.detach() / (made.detach() * wanted).clamp_min(1e-24).sqrt()
        return (error / wanted).mean(dim=1), cosine.mean(dim=1)


@dataclass(frozen=True)
class _Mixer:
    """A student's mixer and the attention that it stands for: q, k (B, H, L, P); C, B (B, H, L, N); dt, D and
    the cumulative decays (B, H, L), these in float64: late in a row they are large."""

    q: Tensor
    k: Tensor
    C: Tensor
    B: Tensor
    dt: Tensor
    D: Tensor
    decays: Tensor
    context: Context

    @classmethod
    def of(cls, made: Mapping[str, Tensor], taught: Mapping[str, Tensor], context: Context) -> _Mixer:
        """Of captured tensors. Raises UserError for a student with other heads than the teacher's."""
        q, k, C, B = (wide(part) for part in (taught["q"], taught["k"], made["q"], made["k"]))
        heads, own = q.shape[1], C.shape[1]
        if own != heads:
            raise UserError(
                f"loss mixing_matrix compares head by head, but the teacher has {heads} and the student "
                f"{own}; leave student.heads and student.kv_heads out"
            )
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
        dt, D = wide(made["dt"]).mT, wide(made["D"]).mT
        return cls(q, k, C, B, dt, D, made["dA"].double().cumsum(dim=1).mT, context)

    def rows(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """What `_products` reads of these rows of the matrices, and of the columns up to their last."""
        here, before = slice(start, stop), slice(stop)
        return (
            self.q[:, :, here],
            self.k[:, :, before],
            self.C[:, :, here],
            self.B[:, :, before],
            self.dt[..., before],
            self.D[..., here],
            self.decays[..., before],
            self._seen(here, before),
        )

    def _seen(self, here: slice, before: slice) -> Tensor:
        """Whether token i, of `here`, reads token j, of those `before`: (B or 1, 1, I, J). A padded one reads
        none."""
        places = torch.arange(self.q.shape[2], device=self.q.device)
        seen = (places[here, None] >= places[before])[None, None]
        segments, mask = self.context.segments, self.context.mask
        if segments is not None:
            seen = seen & (segments[:, None, here, None] == segments[:, None, None, before])
        if mask is not None:
            seen = seen & mask[:, None, here, None] & mask[:, None, None, before]
        return seen


def _products(
    q: Tensor, k: Tensor, C: Tensor, B: Tensor, dt: Tensor, D: Tensor, decays: Tensor, seen: Tensor
) -> Tensor:
    """|S - T|², S · T, |S|² and |T|² over some rows I of the matrices and their columns J, each (B, H)."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
        wanted = scores.softmax(dim=-1).masked_fill(~seen, 0)  # of a padded token there is nothing but NaN
        own, first = q.shape[2], k.shape[2] - q.shape[2]
        # before the exponential, whose gradient would be NaN where it overflows
        between = (decays[..., first:, None] - decays[..., None, :]).to(q.dtype)
        decayed = between.masked_fill(~seen, -torch.inf).exp()
        made = decayed * (C @ B.mT) * dt[..., None, :]
        diagonal = torch.eye(own, k.shape[2], dtype=torch.bool, device=q.device).roll(first, dims=1)
        made = made + (D[..., None] * (diagonal & seen))
        pairs = ((made - wanted).square(), made * wanted, made.square(), wanted.square())
        return torch.stack([pair.sum(dim=(2, 3)) for pair in pairs])
