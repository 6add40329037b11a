"""The aligner: widths by a projection that starts as padding, tokens by name, grids by resampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.layout import Frames, Grid, Layout, Sequence
from transmamba.core.output import Capture, Output, Stream
from transmamba.distillation.aligner import Aligner

VIT = Grid(4, 4, special=(("cls", 0),))
VIM = Grid(4, 4, special=(("cls", 8),))
DEIT = Grid(4, 4, special=(("cls", 0), ("dist", 1)))
REGISTERS = Grid(4, 4, special=(("cls", 0), ("reg0", 1), ("reg1", 2)))
BARE = Grid(4, 4)


def make(
    student: int,
    teacher: int,
    kept: Tensor | None = None,
    layouts: tuple[Layout, Layout] = (VIM, VIT),
) -> Aligner:
    return Aligner(*layouts, student, teacher, layers=[5, 1, 3, 3], kept=kept)


@pytest.mark.parametrize(("student", "left", "right"), [(6, 2, 2), (5, 2, 3), (9, 0, 1), (10, 0, 0)])
def test_projections_start_as_centred_zero_padding(student: int, left: int, right: int) -> None:
    aligner = make(student, 10)
    x = torch.randn(2, 17, student)
    for k in (1, 3, 5):
        assert torch.equal(aligner.project(k, x), F.pad(x, (left, right)))
    assert list(aligner.projections) == ["1", "3", "5"], "one a layer, whatever the order asked"


def test_all_layers_in_one_product() -> None:
    aligner = make(6, 10)
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.normal_()
    x, through = torch.randn(2, 3, 17, 6), torch.randn(2, 6, 4)
    made = aligner.project_all([5, 1], x)
    torch.testing.assert_close(made, torch.stack([aligner.project(5, x[0]), aligner.project(1, x[1])]))
    before = torch.randn(2, 3, 17, 4)
    made = aligner.project_all([5, 1], before, through)
    expected = [aligner.project(k, before[i] @ through[i].T) for i, k in enumerate((5, 1))]
    torch.testing.assert_close(made, torch.stack(expected))


def test_kept_coordinates_are_scattered_to_their_places() -> None:
    kept = torch.tensor([7, 0, 4])
    aligner = make(3, 9, kept)
    x = torch.randn(2, 17, 3)
    expected = torch.zeros(2, 17, 9)
    expected[..., 7], expected[..., 0], expected[..., 4] = x[..., 0], x[..., 1], x[..., 2]
    assert torch.equal(aligner.project(3, x), expected)
    teacher = torch.randn(2, 17, 9)
    back = aligner.to_student(teacher)
    assert torch.equal(aligner.project(3, back)[..., kept], aligner.teacher_tokens(teacher)[..., kept])


def test_equal_widths_start_as_the_identity() -> None:
    aligner = make(8, 8, torch.arange(8))
    x = torch.randn(2, 17, 8)
    assert torch.equal(aligner.project(1, x), x)


def test_a_wider_student_is_read_at_its_first_coordinates() -> None:
    aligner = make(12, 8)
    x = torch.randn(2, 17, 12)
    assert torch.equal(aligner.project(1, x), x[..., :8])
    teacher = torch.randn(2, 17, 8)
    narrow = aligner.to_student(teacher)
    assert narrow.shape == (2, 17, 12)
    assert torch.equal(narrow[..., :8], aligner.teacher_tokens(teacher)) and not narrow[..., 8:].any()


def test_class_token_moves_to_the_student_s_middle() -> None:
    aligner = make(8, 8)
    x = torch.arange(17.0).view(1, 17, 1).expand(1, 17, 8)
    assert aligner.teacher_tokens(x)[0, :, 0].tolist() == [*range(1, 9), 0, *range(9, 17)]
    assert torch.equal(aligner.student_tokens(x), x)


@pytest.mark.parametrize(("teacher", "prefix"), [(DEIT, 2), (REGISTERS, 3)])
def test_tokens_the_student_lacks_are_left_out(teacher: Grid, prefix: int) -> None:
    aligner = make(8, 8, layouts=(VIM, teacher))
    x = torch.arange(16.0 + prefix).view(1, -1, 1).expand(-1, -1, 8)
    patches = [float(i) for i in range(prefix, prefix + 16)]
    assert aligner.teacher_tokens(x)[0, :, 0].tolist() == [*patches[:8], 0, *patches[8:]]
    assert aligner.num_tokens == 17


def test_a_student_without_class_token_is_compared_on_patches() -> None:
    aligner = make(8, 8, layouts=(BARE, VIT))
    x = torch.arange(17.0).view(1, 17, 1).expand(1, 17, 8)
    assert aligner.teacher_tokens(x)[0, :, 0].tolist() == list(range(1, 17))
    mine = torch.randn(1, 16, 8)
    assert torch.equal(aligner.student_tokens(mine), mine)


def test_a_teacher_without_class_token_leaves_the_student_s_out() -> None:
    aligner = make(8, 8, layouts=(VIM, BARE))
    mine = torch.arange(17.0).view(1, 17, 1).expand(1, 17, 8)
    assert aligner.num_tokens == 16
    assert aligner.student_tokens(mine)[0, :, 0].tolist() == [*range(8), *range(9, 17)]
    full = aligner.to_student(torch.arange(1.0, 17).view(1, 16, 1).expand(1, 16, 8))
    assert full[0, :, 0].tolist() == [*range(1, 9), 0, *range(9, 17)]


@pytest.mark.parametrize("teacher_grid", [(2, 2), (8, 8), (3, 6)])
@pytest.mark.parametrize("special", [(), (("cls", 0),), (("cls", 0), ("dist", 1))])
def test_another_grid_is_resampled(
    teacher_grid: tuple[int, int], special: tuple[tuple[str, int], ...]
) -> None:
    teacher = Grid(*teacher_grid, special=special)
    aligner = make(8, 8, layouts=(VIM, teacher))
    x = torch.randn(2, teacher.length, 8)
    found = aligner.teacher_tokens(x)
    cls = bool(special)
    assert found.shape == (2, 16 + cls, 8)
    grid = x[:, len(special) :].mT.unflatten(2, teacher_grid)
    smooth = F.interpolate(grid, size=(4, 4), mode="bilinear", antialias=True, align_corners=False)
    patches = [i for i in range(16 + cls) if not (cls and i == 8)]
    torch.testing.assert_close(found[:, patches], smooth.flatten(2).mT)
    if cls:
        assert torch.equal(found[:, 8], x[:, 0]), "special tokens are not resampled"
    flat = torch.full((1, teacher.length, 8), 3.0)
    torch.testing.assert_close(aligner.teacher_tokens(flat), torch.full((1, 16 + cls, 8), 3.0))


def test_averaging_a_grid_twice_as_fine_keeps_each_region() -> None:
    aligner = make(1, 1, layouts=(BARE, Grid(8, 8)))
    quadrants = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    found = aligner.teacher_tokens(quadrants.view(1, 64, 1)).view(4, 4)
    for (row, column), value in {(0, 0): 0.0, (0, 3): 1.0, (3, 0): 2.0, (3, 3): 3.0}.items():
        assert float(found[row, column]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("kept", [None, torch.tensor([1, 6, 3, 8])])
def test_to_student_inverts_the_projection_on_kept_coordinates(kept: Tensor | None) -> None:
    aligner = make(4, 10, kept)
    mine = torch.randn(2, 17, 4)
    teacher = torch.zeros(2, 17, 10)
    teacher[:, VIT.match(VIM).here] = aligner.project(1, mine)
    assert torch.equal(aligner.to_student(teacher), mine)


def test_places_and_statistics_are_saved_and_positions_are_not() -> None:
    aligner = make(3, 9, torch.tensor([7, 0, 4]))
    state = aligner.state_dict()
    assert set(state) == {"places", "mean", "std", *(f"projections.{k}.weight" for k in (1, 3, 5))}
    other = make(3, 9)
    other.load_state_dict(state)
    x = torch.randn(1, 17, 9)
    assert torch.equal(other.to_student(x), aligner.to_student(x))
    assert all(parameter.requires_grad for parameter in aligner.parameters())


def test_gradients_reach_the_student_s_side_alone() -> None:
    aligner = make(4, 8)
    mine, theirs = torch.randn(1, 17, 4, requires_grad=True), torch.randn(1, 17, 8)
    loss = 1 - F.cosine_similarity(aligner.project(1, mine), aligner.teacher_tokens(theirs), dim=-1)
    loss.sum().backward()
    assert mine.grad is not None and aligner.projections["1"].weight.grad is not None
    assert aligner.projections["3"].weight.grad is None


# --- other layouts ----------------------------------------------------------------------------------------


def test_frames_are_matched_by_name_and_place() -> None:
    teacher = Frames(2, 1, 3, special=(("cls", 0),))
    aligner = make(8, 8, layouts=(Frames(2, 1, 3, special=(("cls", 3),)), teacher))
    x = torch.arange(7.0).view(1, 7, 1).expand(1, 7, 8)
    assert aligner.num_tokens == 7
    assert aligner.teacher_tokens(x)[0, :, 0].tolist() == [1, 2, 3, 0, 4, 5, 6]
    assert torch.equal(aligner.student_tokens(x), x)
    assert aligner.student_positions(torch.tensor([0, 3])).tolist() == [0, 3]


def test_text_is_the_same_tokens_on_both_sides() -> None:
    aligner = make(6, 10, layouts=(Sequence(), Sequence()))
    mine, theirs = torch.randn(2, 9, 6), torch.randn(2, 9, 10)
    assert aligner.num_tokens is None
    assert aligner.student_tokens(mine) is mine and aligner.teacher_tokens(theirs) is theirs
    assert torch.equal(aligner.to_student(theirs), theirs[..., 2:8])


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (VIM, Sequence()),
        (Sequence(), VIT),
        (VIM, Frames(1, 4, 4)),
        (Frames(1, 4, 4), VIT),
        (Frames(2, 2, 4), Frames(1, 4, 4)),
    ],
)
def test_layouts_that_cannot_be_compared(student: Layout, teacher: Layout) -> None:
    with pytest.raises(ValueError, match=r"differ|cannot be compared"):
        make(8, 8, layouts=(student, teacher))


def test_statistics_of_text_leave_padding_out() -> None:
    """Against numpy, over batches of unlike length."""
    hidden = [torch.randn(2, 5, 4), torch.randn(3, 7, 4)]
    masks = [torch.rand(2, 5) < 0.6, torch.rand(3, 7) < 0.6]
    seen = iter(zip(hidden, masks, strict=True))

    def teacher(inputs: Any, captures: Any) -> Output:
        assert captures == {"text": Capture(hidden=frozenset({3}))}
        made, mask = next(seen)
        return Output({"text": Stream(Sequence(), mask, {3: made})})

    aligner = Aligner(Sequence(), Sequence(), 4, 4, layers=[], compared=[3])
    aligner.measure(teacher, [Batch({}, {}, torch.zeros(1), {})] * 2, "text")  # type: ignore[arg-type]
    real = torch.cat([made[mask] for made, mask in zip(hidden, masks, strict=True)]).double()
    torch.testing.assert_close(aligner.mean[0].double(), real.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(aligner.std[0].double(), real.std(0, unbiased=False), rtol=1e-5, atol=1e-6)
