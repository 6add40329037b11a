"""A LLaVA's student: its teacher where both parts are kept, equal to transformers' class always, and what
else the house asks of a student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from llavas import MARK, TEACHERS, batch, llava, made_by, make, moved, relative, rows, together
from torch import Tensor

from transmamba import SubcloneConfig, UserError, adapt_teacher, convert
from transmamba.core.batch import rows_of
from transmamba.core.output import Capture
from transmamba.core.tower import Student
from transmamba.distillation.distiller import Distiller
from transmamba.losses.mixer import Mixer
from transmamba.students.llava.names import Cross, Decoder, ImageTower, Llava
from transmamba.subcloning.plan import Take
from transmamba.views.sublayers import map_tensors

# what becomes of the tower, and of the decoder
PARTS: dict[str, dict[str, Any]] = {
    "vim": dict(image={"kind": "vim"}),
    "ssd_vit, no attention": dict(image={"kind": "ssd_vit"}, decoder={"kind": "hybrid"}),
    "kept, one layer of attention": dict(decoder={"kind": "hybrid", "attention_layers": [1]}),
    "vim, half its width": dict(
        image={"kind": "vim", "kwargs": {"embed_dim": 12}}, decoder={"kind": "hybrid"}
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_with_both_parts_kept_it_is_its_teacher(name: str) -> None:
    """Against transformers' own model, row by row."""
    model, tokens = make(name), TEACHERS[name][3]
    student, inputs = llava(model), together(tokens)
    assert student.tokens == tokens
    made, stock = made_by(student, inputs), made_by(student.stock(), inputs)
    for row, (text, seen) in enumerate(rows(tokens)):
        wanted = made_by(model, {"text": text[None], "image": seen})[0]
        mask = inputs["text_mask"][row]
        assert relative(made[row][mask], wanted) < 1e-5
        assert relative(stock[row][mask], wanted) < 1e-5
    capture = {"image": Capture(hidden=frozenset((0,))), "decoder": Capture(hidden=frozenset((1,)))}
    with torch.no_grad():
        mine = student.run(inputs, capture).streams
    theirs = adapt_teacher(model)(inputs, {stream: _blocks(each) for stream, each in capture.items()}).streams
    assert relative(mine["image"].hidden[0], theirs["image"].hidden[1]) < 1e-5
    mask = inputs["text_mask"]
    assert relative(mine["decoder"].hidden[1][mask], theirs["decoder"].hidden[3][mask]) < 1e-5


def _blocks(capture: Capture) -> Capture:
    """Of a teacher, after the MLP of the same layers."""
    return Capture(hidden=frozenset(2 * k + 1 for k in capture.hidden))


@pytest.mark.parametrize("name", ["CLIP, Llama", "SigLIP, Qwen2"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_transformers_class_holds_its_tensors_and_rows_are_rows_alone(
    name: str, parts: dict[str, Any]
) -> None:
    student, inputs = moved(llava(make(name), **parts)), together()
    stock = student.stock()
    assert type(stock).__name__ == "LlavaForConditionalGeneration"
    mine = {p.data_ptr() for p in student.parameters()}
    assert len(mine - {p.data_ptr() for p in stock.parameters()}) == 0, "tensors are shared"
    made, found = made_by(student, inputs), made_by(stock, inputs)
    mask = inputs["text_mask"]
    assert relative(found[mask], made[mask]) < 1e-5
    for row, (text, seen) in enumerate(rows()):
        alone: dict[str, Tensor] = {"text": text[None], **({"image": seen} if len(seen) else {})}
        assert relative(made[row][mask[row]], made_by(student, alone)[0]) < 1e-5


def test_a_picture_is_read_in_its_own_row() -> None:
    student, inputs = moved(llava(make(), **PARTS["ssd_vit, no attention"])), together()
    made = made_by(student, inputs)
    other = {**inputs, "image": inputs["image"].clone()}
    other["image"][2] += 1  # the second of the last row
    changed = (made_by(student, other) != made).any(dim=-1)
    second = (inputs["text"][2] == MARK).nonzero()[4, 0]
    assert not changed[:2].any() and not changed[2, :second].any() and changed[2, second:].all()


def test_a_batch_without_pictures_and_pictures_without_a_text() -> None:
    student, inputs = llava(make(), **PARTS["vim"]), together()
    text = {"text": rows()[1][0][None]}
    output = student.run(text)
    assert "image" not in output.streams and output.logits is not None
    none = student.run({**text, "image": inputs["image"][:0], "image_row": inputs["image_row"][:0]})
    assert none.logits is not None and torch.equal(none.logits(), output.logits())
    seen = student.run({"image": inputs["image"]}, {"image": Capture(hidden=frozenset((3,)))})
    assert seen.logits is None and seen.streams["image"].hidden[3].shape == (3, 5, 24)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text[0].masked_fill_(text[0] == MARK, 5),
            "row 0 has 0 image tokens.* 1 pictures make 4",
        ),
        (lambda text: text[1, -1:].fill_(MARK), "row 1 has 1 image tokens, its 0 pictures make 0, 4 each"),
    ],
)
def test_marks_and_pictures_that_disagree_are_refused_before_any_forward(
    change: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, inputs = llava(make()), together()
    monkeypatch.setattr(student.vision_tower, "run", None)
    change(inputs["text"])
    for work in (student.run, lambda given: student.generate(given, 1)):
        with pytest.raises(UserError, match=said):
            work(inputs)
    del inputs["image_row"]
    with pytest.raises(UserError, match=r"image tokens \(\[.*\] by rows\), their 3 pictures make 12"):
        student.run(inputs)


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("kind", ["kept", "ssd_vit", "vim"])
def test_all_tensors_of_the_teacher_are_taken_or_said_to_be_dropped(name: str, kind: str) -> None:
    if kind != "kept" and TEACHERS[name][3] == 5:
        with pytest.raises(UserError, match=r"reads the class token too, .* write student.image.kind=kept"):
            llava(make(name), image={"kind": kind})
        return
    teacher = adapt_teacher(make(name))
    student, report = convert(teacher, "llava", image={"kind": kind}, decoder={"kind": "hybrid"})
    assert isinstance(student, Student)
    wanted: dict[int, Tensor] = {}
    map_tensors(teacher.view, lambda tensor: wanted.setdefault(tensor.data_ptr(), tensor))
    taken = {row.source for row in report.rows} | {dropped.source for dropped in report.dropped}
    assert {row.kind for row in report.rows if row.target.startswith("multi_modal_projector")} == {"copied"}
    if kind == "vim":  # which makes its own positions and channels of the teacher's
        assert {"embedding.position", "blocks.0.attention.v.weight", "blocks.0.mlp.down.bias"} <= taken
        return
    sources = {
        item.tensor.data_ptr()
        for item in student.plan(teacher.view, _select(teacher.view))
        if isinstance(item, Take)
    }
    missing = [t for at, t in wanted.items() if at not in sources and t.ndim and len(t) != 4]
    shapes = [tuple(t.shape) for t in missing if t.numel()]  # but rotary frequencies, of 4
    embedded = [(1, 24), (5, 24), (24,)]  # special tokens and positions are indexed before they are taken
    assert [shape for shape in shapes if shape not in embedded] == []


def _select(view: Any) -> Any:
    from transmamba.subcloning.selection import Selection

    return {name: Selection(tower.width, tower.width) for name, tower in view.towers.items()}


def test_groups_name_every_tensor_and_units_hold_every_layer() -> None:
    student = llava(
        make(), image={"kind": "vim"}, decoder={"kind": "hybrid", "attention_layers": [1]}, cross={}
    )
    names = [name for name, _ in student.named_parameters()]
    groups = {name: {each for each in names if test(each)} for name, test in student.groups().items()}
    assert groups.keys() == {*Llava.group_names}
    whole = [groups[part] for part in ("image", "connector", "decoder", "cross")]
    assert set.union(*whole) == set(names) and sum(map(len, whole)) == len(names)
    assert groups["mixers"] == groups["image.mixers"] | groups["decoder.mixers"]
    assert groups["decoder.mixers"] and groups["image.mixers"] and groups["attention"]
    inside = [groups[part] for part in ("decoder.mixers", "attention", "mlp", "embedding", "head", "norms")]
    assert set.union(*inside) == groups["decoder"]
    held = [p for unit in student.units() for p in unit.parameters()]
    assert len(held) == len({id(p) for p in held}) > 50
    assert student.units()[-1] is student.language_model.layer(1)


@pytest.mark.parametrize("parts", [PARTS["vim"], PARTS["ssd_vit, no attention"]], ids=["vim", "ssd_vit"])
def test_a_step_trains_all_of_it_whether_there_are_pictures_or_not(parts: dict[str, Any]) -> None:
    teacher = adapt_teacher(make())
    student = llava(make(), **parts, cross={"num_heads": 2, "state_size": 4}).train()
    inputs = together(left=False)
    blind = {name: inputs[name][1:2] for name in ("text", "text_mask", "prompt_mask")}
    distiller = Distiller(student, teacher, ["feature", "kl", "cross_entropy"])
    assert all(value > 0 for value in distiller.loss(batch(inputs))[1].values())
    for given in (inputs, blind):
        for checkpointing in (False, True):
            student.set_grad_checkpointing(checkpointing)
            student.zero_grad()
            loss, terms = distiller.loss(batch(given))
            loss.backward()
            assert all(p.grad is not None for p in student.parameters())
    assert "feature/image" not in terms and terms["cross_entropy"] > 0
    assert not any(p.grad.any() for p in student.vision_tower.parameters() if p.grad is not None)
    for name, term in Distiller(student, teacher, ["feature", "bidirectional"])(batch(blind)).items():
        like = Distiller(student, teacher, ["feature", "bidirectional"])(batch(inputs))[name].parts
        assert term.parts is not None and like is not None and term.parts.shape == like.shape
        assert name.endswith("decoder") or not term.parts.any()
    for losses in (["cross_entropy"], [Mixer(stream="image")]):
        # neither reads a picture; all has a gradient all the same, as on a rank that has some
        student.zero_grad()
        Distiller(student, teacher, losses).loss(batch(blind))[0].backward()
        assert all(p.grad is not None for p in student.parameters())


def test_losses_over_pictures_count_pictures() -> None:
    student, teacher, inputs = llava(make(), **PARTS["vim"]), adapt_teacher(make()), together(left=False)
    with pytest.raises(UserError, match=r"keep the teacher's attention in decoder.* name another stream"):
        Distiller(student, teacher, ["mixer"])
    given = batch(inputs)
    distiller = Distiller(student, teacher, ["feature", Mixer(stream="image")])
    assert distiller.items(given) == {
        "feature/image": "pictures",
        "feature/decoder": "tokens",
        "mixer/image": "pictures",
    }
    # one row is a third of three pictures, whatever else is in the batch
    rows = [batch(rows_of(inputs, slice(k, k + 1))) for k in range(3)]
    parts = [distiller.loss(row)[1].get("feature/image", 0) for row in rows]
    whole = distiller.loss(given)[1]["feature/image"]
    assert whole == pytest.approx((parts[0] + 2 * parts[2]) / 3, rel=1e-5)


def test_a_hybrid_decoder_is_calibrated_on_what_it_reads_of_pictures() -> None:
    """Half-lives are found row by row, with each row's own pictures; half a batch is the other's."""
    given = batch(together(left=False))
    options: Any = dict(decoder={"kind": "hybrid", "half_life": "fitted"}, calibration=[given])
    whole = llava(make(), **options)
    seen = llava(make(), **{**options, "calibration": [given.first(2), _last(given)]})
    norms = [
        layer.mamba.norm.weight for layer in (whole.language_model.layer(0), seen.language_model.layer(0))
    ]
    torch.testing.assert_close(*norms)
    blind = batch({n: t for n, t in given.inputs.items() if n in ("text", "text_mask", "prompt_mask")})
    other = llava(make(), **{**options, "calibration": [blind]})
    assert not torch.allclose(norms[0], other.language_model.layer(0).mamba.norm.weight, atol=1e-3)


def _last(given: Any) -> Any:
    return replace(given, inputs=rows_of(given.inputs, slice(2, 3)), index=given.index[2:])


def test_folded_and_averaged_it_starts_too() -> None:
    given = batch(together(left=False))
    init = SubcloneConfig(fold=True, mimic=True, average=True)
    student = llava(make(), init=init, calibration=[given], **PARTS["vim"])
    assert made_by(student, together()).isfinite().all()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: ImageTower(kwargs={"depth": 2}), "kwargs are for a vim or an ssd_vit"),
        (lambda: ImageTower(kind="vim", attention_layers=(1,)), "attention_layers are for an ssd_vit"),
        (lambda: ImageTower(fresh=True), "fresh is for a vim"),
        (lambda: Decoder(attention_layers=(1,)), "are for a hybrid"),
        (lambda: Decoder(kind="hybrid", half_life=-1), "half_life is -1"),
        (lambda: Cross(every=0), "every is 0"),
        (lambda: Cross(num_heads=0), "num_heads is 0"),
        (
            lambda: llava(make(), decoder={"kind": "hybrid", "attention_layers": [5]}),
            "decoder.attention_layers",
        ),
        (lambda: llava(make(), image={"kind": "vim", "kwargs": {"img_size": 8}}), "pictures are 16 x 16"),
        (lambda: llava(make(), image={"kind": "vim", "kwargs": {"global_pool": "avg"}}), "reads each patch"),
        (
            lambda: llava(make(), image={"kind": "vim", "kwargs": {"patch_size": 4}}),
            "make 16 tokens of a picture, the teacher.s 4",
        ),
        (lambda: llava(make(), image={"kind": "vim", "kwargs": {"d_stat": 4}}), "d_stat"),
    ],
)
def test_what_cannot_be_is_one_line(made: Any, said: str) -> None:
    with pytest.raises((UserError, ValueError), match=said) as error:
        made()
    assert "\n" not in str(error.value)


def test_a_teacher_that_is_no_llava_is_refused() -> None:
    from hybrids import llama

    with pytest.raises(UserError, match=r"needs a LLaVA of transformers.*language model.*write --student"):
        convert(adapt_teacher(llama()), "llava")
