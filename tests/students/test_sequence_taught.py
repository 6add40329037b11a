"""A Transformer that learnt in context as a teacher: its view, and the students that begin with it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from torch import Tensor

from transmamba.config import load as configs
from transmamba.config.registry import TEACHERS
from transmamba.core.points import PointShape
from transmamba.core.tower import StudentSpec
from transmamba.distillation.distiller import Distiller
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.losses.teacher_prediction import TeacherPrediction
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run
from transmamba.students.sequence.names import Sequence
from transmamba.students.sequence.plan import behind
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.teachers.load import load_teacher
from transmamba.teachers.teacher import Teacher
from transmamba.views.sublayers import map_tensors

POINTS = PointShape(width=5, outputs=2, length=12)
KINDS = ("attention", "mlp") * 3


def transformer(layers: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(architecture="transformer", width=16, heads=2, mlp_width=24, layers=layers)
    model = Sequence(**{**sizes, **options}).build(StudentSpec(points=POINTS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def teacher_of(folder: Path, model: Any) -> Teacher:
    save_model(model, folder / "student")
    return load_teacher(folder)


def student_of(teacher: Teacher, **options: Any) -> Any:
    torch.manual_seed(1)
    return Sequence(**options).build(StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing))


def points(rows: int = 3, length: int = 12) -> Tensor:
    return torch.randn(rows, length, 5, generator=torch.Generator().manual_seed(1))


# --- the teacher ---


@pytest.mark.parametrize("positions", ["learnt", "none"])
def test_every_stream_and_the_values_are_the_model_s(positions: str, tmp_path: Path) -> None:
    model, x = transformer(positions=positions).double(), points().double()
    teacher = teacher_of(tmp_path, model)
    seen: dict[int, Tensor] = {}

    def see(_: str, s: int, name: str, tensor: Tensor) -> None:
        if name == "stream":
            seen[s] = tensor

    output = teacher({"points": x}, {}, see)
    with torch.no_grad():
        stream = model._read_in(x)
        for s, layer in enumerate(model.layers):
            stream, _ = layer(stream)
            torch.testing.assert_close(seen[s], stream, rtol=1e-9, atol=1e-12)
        assert output.logits is not None
        torch.testing.assert_close(output.logits(), model(x), rtol=1e-9, atol=1e-12)
    assert teacher.num_params == sum(p.numel() for p in model.parameters())
    assert teacher.preprocessing == model.points and teacher.view.reads == {"points"}


def test_a_model_that_scans_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"\(pattern=MAMAM\) cannot be expressed: it has layers M, which scan"
    ):
        teacher_of(tmp_path, transformer(architecture="mambaformer", mlp_width=None, layers=2))


def test_a_folder_of_something_else_is_no_teacher(tmp_path: Path) -> None:
    save_model(harness.tiny_vit(), tmp_path)
    with pytest.raises(UserError, match="is no model of points; write the run of a student sequence"):
        TEACHERS["sequence"](model=str(tmp_path)).build()


def test_it_is_not_folded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this teacher of points cannot be folded"):
        teacher_of(tmp_path, transformer()).fold()


# --- what a student takes ---


@pytest.mark.parametrize(
    ("letters", "places"),
    [
        ("AFAFAF", [0, 1, 2, 3, 4, 5]),
        ("MFAFMF", [0, 1, 2, 3, 4, 5]),
        ("MAMAMAM", [None, 0, 1, 2, 3, 4, 5]),
        ("AMAMAM", [0, 1, 2, 3, 4, 5]),
        ("MMMMMM", [0, 1, 2, 3, 4, 5]),
        ("MAMAM", [None, 0, 1, 4, 5]),
        ("MF", [0, 1]),
        ("M", [0]),
    ],
)
def test_each_layer_has_a_place_in_the_teacher(letters: str, places: list[int | None]) -> None:
    found = behind(letters, KINDS)
    assert [found.get(k) for k in range(len(letters))] == places
    assert all(KINDS[s] == "attention" for k, s in found.items() if letters[k] == "A")


def test_a_transformer_of_the_same_shape_begins_as_its_teacher(tmp_path: Path) -> None:
    model = transformer()
    teacher = teacher_of(tmp_path, model)
    student = student_of(teacher, architecture="transformer", layers=3)
    subclone(student, teacher, SubcloneConfig())
    torch.testing.assert_close(student(points()), model(points()), rtol=1e-5, atol=1e-6)


def test_with_half_of_it_scans_the_rest_is_the_teacher_s(tmp_path: Path) -> None:
    """Attention, MLPs, norms and both ends; Mamba-2's projections are attention's, head by head."""
    model = transformer()
    teacher = teacher_of(tmp_path, model)
    student = student_of(teacher, pattern="AFMFAF", mixer="mamba2")
    report, _ = subclone(student, teacher, SubcloneConfig(importance="uniform"))
    mine, theirs = student.state_dict(), model.state_dict()
    for name in mine:
        if not name.startswith("layers.2.mixer."):
            assert torch.equal(mine[name], theirs[name]), name
    mixer, attention = student.layers[2].mixer, model.layers[2].mixer
    assert (mixer.heads, mixer.head_dim, mixer.states, mixer.groups) == (4, 8, 8, 4), (
        "twice those of attention"
    )
    for part, name, scale in (("x", "v", 1.0), ("B", "k", 1.0), ("C", "q", 8**-0.5)):
        wanted = getattr(attention, f"{name}_proj").weight * scale
        torch.testing.assert_close(mixer.rows(part), torch.cat([wanted, wanted]))
    torch.testing.assert_close(mixer.out_proj.weight[:, :16], attention.o_proj.weight)
    assert not mixer.out_proj.weight[:, 16:].any()
    assert 0.5 < report.covered <= 1


@pytest.mark.parametrize("mixers", ["attention", "mamba2"])
def test_a_larger_state_takes_keys_and_queries_into_its_first_numbers(mixers: str, tmp_path: Path) -> None:
    model = transformer()
    student = student_of(
        teacher_of(tmp_path, model), pattern="AFMFAF", mixer="mamba2", mixers=mixers, state=12
    )
    mixer, attention = student.layers[2].mixer, model.layers[2].mixer
    before = {part: mixer.rows(part).detach().clone().unflatten(0, (4, 12)) for part in "BC"}
    report, _ = subclone(student, load_teacher(tmp_path), SubcloneConfig(importance="uniform"))
    assert [each.source for each in report.dropped] == ["blocks.1.attention.o.bias"]
    for part, name, scale in (("B", "k", 1.0), ("C", "q", 8**-0.5)):
        rows = mixer.rows(part).unflatten(0, (4, 12))
        bias = mixer.conv1d.bias[32 + 48 * "BC".index(part) :][:48].unflatten(0, (4, 12))
        linear = getattr(attention, f"{name}_proj")
        for head in range(4):  # the third and fourth are the first ones again
            theirs = slice(8 * (head % 2), 8 * (head % 2) + 8)
            torch.testing.assert_close(rows[head, :8], linear.weight[theirs] * scale)
            torch.testing.assert_close(bias[head, :8], linear.bias[theirs] * scale * mixer.tap)
        assert torch.equal(rows[:, 8:], before[part][:, 8:])
        assert bool(rows[:, 8:].any()) == (mixers == "mamba2" or part == "B")


def test_what_a_larger_state_has_more_does_nothing_at_the_start_and_learns(tmp_path: Path) -> None:
    """Like attention, 8 and 12 numbers for heads of 8 channels are the same function to float64's rounding,
    gates and scales as found on prompts included."""
    from transmamba.core.batch import Batch

    x = points(16).double()
    batch = Batch({"points": x}, {}, torch.arange(16), {"samples": 16, "tokens": 16 * 12, "answers": 16})
    teacher, made, grads = teacher_of(tmp_path, transformer().double()), [], []
    for state in (8, 12):
        student = student_of(teacher, pattern="MFMFMF", mixer="mamba2", mixers="attention", state=state)
        subclone(student.double(), teacher, SubcloneConfig(), [batch])
        made.append(student(x))
        made[-1].square().sum().backward()
        mixer = student.layers[0].mixer
        grads.append(mixer.in_proj.weight.grad[mixer.slice_of("C")].unflatten(0, (4, state)))
    torch.testing.assert_close(made[1], made[0], rtol=1e-9, atol=1e-12)
    assert grads[1][:2, 8:].abs().amax(-1).all()


@pytest.mark.parametrize(
    "options", [dict(mixer="mamba1"), dict(mixer="mamba2", state=4), dict(mixer="mamba2", mixers="random")]
)
def test_what_fits_nothing_of_attention_takes_nothing_of_it(options: dict[str, Any], tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, transformer())
    student = student_of(teacher, pattern="AFMFAF", **options)
    before = {name: p.clone() for name, p in student.layers[2].mixer.state_dict().items()}
    report, _ = subclone(student, teacher, SubcloneConfig(importance="uniform"))
    assert all(torch.equal(p, before[name]) for name, p in student.layers[2].mixer.state_dict().items())
    assert [each.source for each in report.dropped] == ["blocks.1.attention"]


def test_a_start_like_attention_is_nearer_to_it_than_none(tmp_path: Path) -> None:
    """|z - t|² / |t|², which is 1 for a layer that adds nothing."""
    from transmamba.core.batch import Batch

    teacher = teacher_of(tmp_path, transformer())
    x = points(16)
    batch = Batch({"points": x}, {}, torch.arange(16), {"samples": 16, "tokens": 16 * 12, "answers": 16})
    found = {}
    for mixers in ("attention", "random"):
        student = student_of(teacher, pattern="MFMFMF", mixer="mamba2", mixers=mixers)
        subclone(student, teacher, SubcloneConfig(), [batch])
        (term,) = Distiller(student, teacher, ("mixer",))(batch).values()
        found[mixers] = float(term.sum.detach()) / batch.counts["tokens"]
    assert found["attention"] < 0.9 and found["random"] > 1, found


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(width=32), "student.width is 32, the teacher's 16; write that, or leave it out")],
)
def test_a_student_of_another_width_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        student_of(teacher_of(tmp_path, transformer()), **options)


def test_kept_attention_of_other_heads_is_refused(tmp_path: Path) -> None:
    """Heads of scans are their own."""
    teacher = teacher_of(tmp_path, transformer())
    for pattern, refused in (("AFMFAF", True), ("MFMFMF", False)):
        student = student_of(teacher, pattern=pattern, mixer="mamba2", heads=4)
        with (
            pytest.raises(UserError, match=r"heads is 4, the teacher's 2.*; write 2, or")
            if refused
            else nullcontext()
        ):
            subclone(student, teacher, SubcloneConfig(importance="uniform"))


@pytest.mark.parametrize("mixers", ["attention", "mamba2"])
def test_a_scan_in_no_attention_s_place_begins_as_drawn(mixers: str, tmp_path: Path) -> None:
    """Without a teacher, before all of its layers, and in an MLP's place."""
    torch.manual_seed(1)
    options: dict[str, Any] = dict(mixer="mamba2", width=16, heads=2, head_size=8, state=8, groups=4)
    alone = Sequence(architecture="mambaformer", mixers=mixers, **options).build(StudentSpec(points=POINTS))
    torch.manual_seed(1)
    drawn = Sequence(architecture="mambaformer", **options).build(StudentSpec(points=POINTS))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), drawn.parameters(), strict=True))
    teacher = teacher_of(tmp_path, transformer())
    student = student_of(teacher, pattern="MMMMMMM", mixer="mamba2", mixers=mixers)
    subclone(student, teacher, SubcloneConfig(importance="uniform"))
    after = [mixers == "attention" and k % 2 == 1 for k in range(7)]  # attention's places
    assert [bool((layer.mixer.conv1d.weight[:, 0, :-1] == 0).all()) for layer in student.layers] == after


def test_a_teacher_of_pictures_is_refused() -> None:
    with pytest.raises(
        UserError, match="student sequence is made of a teacher of points; this one is an image model"
    ):
        student_of(harness.tiny_teacher())


# --- the losses ---


class TestPrediction:
    """Against float64 loops over tokens."""

    def signals(self, signs: bool) -> tuple[Any, Tensor, Tensor, Tensor]:
        from transmamba.core.batch import Batch
        from transmamba.core.output import Logits, Output
        from transmamba.distillation.signals import Signals

        torch.manual_seed(0)
        made, taught, values = torch.randn(3, 3, 4, 2).double().unbind()
        asked = torch.rand(3, 4, 2) < 0.6
        targets = {"values": values, "asked": asked}
        targets |= {"signs": torch.tensor([True, False, True])} if signs else {}
        batch = Batch({}, targets, torch.arange(3), {"samples": 3, "answers": int(asked.any(-1).sum())})
        outputs = (Output(logits=Logits(x, lambda x: x)) for x in (made, taught))
        return Signals(*outputs, batch), made, taught, asked

    @pytest.mark.parametrize("signs", [False, True])
    def test_the_distance_to_a_teacher(self, signs: bool) -> None:
        signals, made, taught, asked = self.signals(signs)
        T, wanted = 1.5, 0.0
        for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
            each = []
            for o in range(2):
                if not asked[b, t, o]:
                    continue
                if signs and b != 1:
                    p, q = (float(torch.sigmoid(x[b, t, o] / T)) for x in (taught, made))
                    bernoulli = [torch.distributions.Bernoulli(torch.tensor(x).double()) for x in (p, q)]
                    each.append(T**2 * float(torch.distributions.kl_divergence(*bernoulli)))
                else:
                    each.append(float((made[b, t, o] - taught[b, t, o]) ** 2))
            wanted += sum(each) / len(each) if each else 0.0
        loss = TeacherPrediction(temperature=T).build()
        assert loss(signals).sum.item() == pytest.approx(wanted, rel=1e-6)
        assert signals.batch.counts[loss.item(signals.batch)] == int(asked.any(-1).sum())

    def test_nothing_is_lost_on_a_teacher_that_is_copied(self) -> None:
        signals, *_ = self.signals(True)
        signals.student = signals.teacher
        assert TeacherPrediction().build()(signals).sum.item() == pytest.approx(0, abs=1e-12)


# --- a run ---


def test_a_transformer_becomes_a_mambaformer_by_one_recipe(tmp_path: Path) -> None:
    task: dict[str, Any] = dict(name="in_context", function=dict(name="linear", d=4, points=5), prompts=16)
    values: dict[str, Any] = dict(
        output_dir=str(tmp_path / "teacher"),
        task=task,
        student=dict(name="sequence", architecture="transformer", layers=2, width=16, heads=2),
        stages=[dict(losses=["prediction"], steps=4, lr=3e-3)],
        trainer=dict(global_batch=8, log_every=1),
    )
    run(configs.parse(Recipe, values, "teacher"), quiet=True)
    values |= dict(
        output_dir=str(tmp_path / "run"),
        teacher=dict(name="auto", model=str(tmp_path / "teacher")),
        student=dict(
            name="sequence", architecture="mambaformer", layers=2, mixer="mamba2", mixers="attention"
        ),
        init=dict(calibration_images=8),
        stages=[
            dict(name="align", losses=["mixer"], steps=4, lr=3e-3),
            dict(name="distill", losses=["teacher_prediction", "feature", "prediction"], steps=4, lr=3e-3),
        ],
    )
    results = run(configs.parse(Recipe, values, "student"), quiet=True)
    assert {"error", "last_error"} <= results["student"].keys() & results["teacher"].keys()
    rows = harness.metrics_rows(tmp_path / "run")
    named = {key for row in rows for key in row if key.startswith("loss/")}
    assert named == {"loss/mixer", "loss/teacher_prediction", "loss/feature", "loss/prediction"}
    mixer = [row["loss/mixer"] for row in rows if "loss/mixer" in row]
    assert mixer[-1] < mixer[0]
    taken = json.loads((tmp_path / "run" / "subclone.json").read_text())
    assert taken["covered"] > 0.15
    assert (tmp_path / "run" / "student" / "README.md").is_file()


def test_the_teacher_is_never_changed(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, transformer())
    kept: list[Tensor] = []
    map_tensors(teacher.view, lambda x: kept.append(x.clone()) or x)
    subclone(
        student_of(teacher, pattern="MFAFMF", mixer="mamba2"), teacher, SubcloneConfig(importance="uniform")
    )
    again: list[Tensor] = []
    map_tensors(teacher.view, lambda x: again.append(x) or x)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
