"""The student `clip`: open_clip's own model with Mamba in its image tower, and what it inherits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import torch
import torch.nn.functional as F
from tiny_clip import IMAGE, TEXT, made, siglip, word_tokenizer
from torch import Tensor

from transmamba.config import load as configs
from transmamba.config.registry import LOSSES, STUDENTS
from transmamba.core.output import Capture
from transmamba.core.tower import Student, StudentSpec
from transmamba.ecosystems import open_clip as library
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.open_clip_tokenizer import OpenClipTokenizer
from transmamba.errors import UserError
from transmamba.students.clip.names import Clip, ImageTower, TextTower
from transmamba.subcloning.convert import carry
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.teachers.load import adapt_teacher
from transmamba.teachers.teacher import Teacher

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

CAPTIONS = ["a red square", "two dogs", "a very long caption that goes on and on and is cut before it ends"]
UNIFORM = SubcloneConfig(importance="uniform")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return adapt_teacher(made(quick_gelu=True))


def student_of(teacher: Teacher, config: Clip, init: SubcloneConfig = UNIFORM) -> Any:
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    student = config.build(spec)
    carry(student, teacher)
    subclone(student, teacher, init)  # type: ignore[arg-type]
    return student.eval()


def inputs_of(teacher: Teacher) -> dict[str, Tensor]:
    torch.manual_seed(1)
    assert teacher.preprocessing.text is not None
    return {"image": torch.randn(3, 3, 16, 16), "text": teacher.preprocessing.text(CAPTIONS).ids}


def test_a_vit_of_the_teachers_shape_is_the_teacher(teacher: Teacher) -> None:
    """Every tensor of both towers in its place, projections and scale too: nothing is left to differ."""
    student, inputs = student_of(teacher, Clip(image=ImageTower(kind="vit"))), inputs_of(teacher)
    mine, theirs = student.run(inputs, {}), teacher(inputs)
    for tower in ("image", "text"):
        assert (mine.embeddings[tower] - theirs.embeddings[tower]).abs().max() < 1e-5
    assert mine.scalars["scale"].item() == pytest.approx(theirs.scalars["scale"].item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_the_kept_text_tower_is_the_teachers(teacher: Teacher, kind: Any) -> None:
    student, inputs = student_of(teacher, Clip(image=ImageTower(kind=kind))), inputs_of(teacher)
    assert torch.equal(student.run(inputs, {}).embeddings["text"], teacher(inputs).embeddings["text"])


def test_text_towers_of_every_kind_are_kept() -> None:
    """LayerScale, biased projections, another pooling, no causal mask, tanh GELU: each against open_clip's
    own code."""
    kinds: list[dict[str, Any]] = [
        dict(ls_init_value=0.5, proj_bias=True),
        dict(pool_type="eos", eos_id=49407),
        dict(pool_type="last", no_causal_mask=True, proj_bias=True, act_kwargs={"approximate": "tanh"}),
        dict(proj_type="none", width=8, heads=2, norm_kwargs={"eps": 1e-6}),
    ]
    for text in kinds:
        model = made(text=text)
        found = adapt_teacher(model)
        student = student_of(found, Clip())
        tokens = inputs_of(found)["text"]
        with torch.no_grad():
            wanted = F.normalize(model.encode_text(tokens), dim=-1)
        assert (student.run({"text": tokens}, {}).embeddings["text"] - wanted).abs().max() < 1e-6, text


def test_a_siglips_attention_pool_is_inherited_or_refused_by_name() -> None:
    model = siglip()
    found = adapt_teacher(model)
    inputs = inputs_of(found)
    student = student_of(found, Clip(image=ImageTower(kind="vit")))
    mine, theirs = student.run(inputs, {}), found(inputs)
    for tower in ("image", "text"):
        assert (mine.embeddings[tower] - theirs.embeddings[tower]).abs().max() < 1e-5
    assert mine.scalars["bias"].item() == -10.0
    with_pool = student_of(found, Clip(image=ImageTower(kind="ssd_vit")))
    assert torch.equal(with_pool.visual.trunk.attn_pool.latent, model.visual.trunk.attn_pool.latent)
    vim = Clip().build(StudentSpec(view=found.view, preprocessing=found.preprocessing))
    report, _ = subclone(vim, found, UNIFORM)  # type: ignore[arg-type]
    assert any("attention pool" in drop.why for drop in report.dropped)


def test_a_folded_teachers_text_is_kept_too(teacher: Teacher) -> None:
    folded, inputs = teacher.fold(), inputs_of(teacher)
    student = student_of(folded, Clip(image=ImageTower(kind="vim")))
    difference = student.run(inputs, {}).embeddings["text"] - teacher(inputs).embeddings["text"]
    assert difference.abs().max() < 1e-5


def test_a_narrower_tower_keeps_a_projection_to_the_same_embedding(teacher: Teacher) -> None:
    student = student_of(teacher, Clip(image=ImageTower(kwargs={"embed_dim": 24, "depth": 3})))
    proj, theirs = student.visual.head.proj.weight, teacher.view.heads["image"].projection.weight  # type: ignore[union-attr]
    assert proj.shape == (8, 24)
    # evenly spaced coordinates, larger by the root of what was left out (Samragh et al.)
    kept = torch.arange(24) * 32 // 24
    assert torch.allclose(proj, theirs[:, kept] * (32 / 24) ** 0.5, atol=1e-6)
    assert student.run(inputs_of(teacher), {}).embeddings["image"].shape == (3, 8)


def test_fresh_towers_take_nothing(teacher: Teacher) -> None:
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    for config, begins in (
        (Clip(image=ImageTower(fresh=True)), "visual."),
        (Clip(text=TextTower(fresh=True)), "text."),
    ):
        student = config.build(spec)
        before = {name: p.clone() for name, p in student.named_parameters()}
        report, _ = subclone(student, teacher, UNIFORM)  # type: ignore[arg-type]
        same = {name for name, p in student.named_parameters() if torch.equal(p, before[name])}
        assert all(name in same for name in before if name.startswith(begins))
        assert report.cloned and not any(name.startswith(begins) for name in report.cloned)


def test_what_it_captures_is_its_towers(teacher: Teacher) -> None:
    student, inputs = student_of(teacher, Clip()), inputs_of(teacher)
    assert isinstance(student, Student) and set(student.towers) == {"image"}
    every = frozenset(range(student.towers["image"].num_layers))
    output = student.run(inputs, {"image": Capture(hidden=every, branches=every)})
    alone = student.visual.trunk.run({"image": inputs["image"]}, {"image": Capture(hidden=every)})
    for k in every:
        assert torch.allclose(output.streams["image"].hidden[k], alone.streams["image"].hidden[k], atol=1e-5)
    assert not student.run({"text": inputs["text"]}, {}).streams


def test_groups_and_units_name_its_parameters(teacher: Teacher) -> None:
    student = student_of(teacher, Clip())
    names = {name for name, _ in student.named_parameters()}
    groups = {key: {name for name in names if test(name)} for key, test in student.groups().items()}
    assert groups["image"] | groups["text"] | groups["scale"] == names
    assert groups.keys() == {*Clip.group_names}
    assert groups["mixers"] < groups["image"] and groups["head"] and groups["scale"] == {"logit_scale"}
    decayed = names - student.no_weight_decay()
    assert not any(name.endswith(("A_log", "A_b_log", ".D", "pos_embed")) for name in decayed)


def test_saved_it_is_an_open_clip_model_in_a_fresh_process(teacher: Teacher, tmp_path: Path) -> None:
    """To the last bit, with the teacher's preprocessing and context, at another size too."""
    inputs = inputs_of(teacher)
    expected = {}
    for kind in ("vim", "ssd_vit"):
        student = student_of(teacher, Clip(image=ImageTower(kind=kind)))  # type: ignore[arg-type]
        save_model(student, tmp_path / kind, teacher.preprocessing)
        made = student.run(inputs, {}).embeddings
        expected[kind] = {tower: embedding.detach() for tower, embedding in made.items()}
    torch.save({"inputs": inputs, "expected": expected}, tmp_path / "case.pt")
    code = f"""
import torch, transmamba, open_clip
case = torch.load({str(tmp_path / "case.pt")!r})
for kind, wanted in case["expected"].items():
    folder = f"local-dir:{tmp_path}/{{kind}}"
    model, _, transform = open_clip.create_model_and_transforms(folder)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.encode_image(case["inputs"]["image"], normalize=True), wanted["image"])
        assert torch.equal(model.encode_text(case["inputs"]["text"], normalize=True), wanted["text"])
    tokens = open_clip.get_tokenizer(folder)({CAPTIONS!r})
    assert torch.equal(tokens, case["inputs"]["text"])
    assert transform.transforms[0].size == 16 and transform.transforms[-1].mean[0] == 0.48145466
    larger, _, transform = open_clip.create_model_and_transforms(folder, force_image_size=32)
    with torch.no_grad():
        assert larger.eval().encode_image(torch.randn(2, 3, 32, 32)).shape == (2, 8)
    assert transform.transforms[0].size == 32
print("alike")
"""
    done = fresh_process.run(code)
    assert done.stdout.strip().endswith("alike"), done.stderr[-2000:]
    said = json.loads((tmp_path / "vim" / "open_clip_config.json").read_text())
    assert said["model_cfg"]["vision_cfg"]["timm_model_name"].startswith("vim_shaped.")


def test_without_us_it_is_loud(teacher: Teacher, tmp_path: Path) -> None:
    save_model(student_of(teacher, Clip()), tmp_path / "s", teacher.preprocessing)
    code = f"import open_clip; open_clip.create_model('local-dir:{tmp_path / 's'}')"
    done = fresh_process.run(code)
    assert done.returncode and "vim_shaped" in done.stderr


def test_what_cannot_be_taken_is_refused_by_name(teacher: Teacher) -> None:
    import harness

    spec = StudentSpec(view=harness.tiny_teacher().view)
    with pytest.raises(UserError, match="embeds images"):
        Clip().build(spec)
    with pytest.raises(UserError, match="takes its shape from a teacher"):
        Clip().build(StudentSpec())
    with pytest.raises(UserError, match=r"width 32.* or student\.image\.kind=vim to shrink"):
        student_of(teacher, Clip(image=ImageTower(kind="ssd_vit", kwargs={"embed_dim": 24, "num_heads": 2})))
    with pytest.raises(UserError, match="attention_layers are for an ssd_vit"):
        ImageTower(attention_layers=(1,))


def test_open_clip_models_are_students_as_they_are(teacher: Teacher) -> None:
    """One that is trained from scratch, such as a teacher: what open_clip's own code gives, and its scale."""
    cfg = dict(embed_dim=8, vision_cfg=IMAGE, text_cfg=TEXT)
    config = configs.parse(STUDENTS["open_clip"], {"model_cfg": cfg}, "student")
    model = config.build(StudentSpec())
    assert config.preprocessing().text == OpenClipTokenizer(12)
    from transmamba.core.tower import run_plain

    inputs = inputs_of(teacher)
    output = run_plain(model, inputs)
    assert torch.equal(output.embeddings["image"], model.encode_image(inputs["image"], normalize=True))
    assert output.scalars["scale"].item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert run_plain(model, inputs).scalars["scale"].item() == pytest.approx(100.0)
    for wrong in ({}, {"model": "ViT-B-32", "model_cfg": cfg}):
        with pytest.raises(Exception, match="one of model and model_cfg"):
            configs.parse(STUDENTS["open_clip"], wrong, "student")
    broken = dict(cfg, vision_cfg={**IMAGE, "layres": 2})
    with pytest.raises(UserError, match="layres"):
        STUDENTS["open_clip"](model_cfg=broken).build(StudentSpec())


@pytest.mark.parametrize("kind", ["vim", "ssd_vit", "vit", "teacher"])
def test_a_model_is_taken_to_another_size(teacher: Teacher, tmp_path: Path, kind: str) -> None:
    """As open_clip's own force_image_size takes it there; what is saved is of the new size."""
    folder = tmp_path / "small"
    if kind == "teacher":
        cfg = dict(embed_dim=8, vision_cfg=IMAGE, text_cfg=TEXT)
        save_model(STUDENTS["open_clip"](model_cfg=cfg).build(StudentSpec()), folder)
    else:
        save_model(
            student_of(teacher, Clip(image=ImageTower(kind=kind))),  # type: ignore[arg-type]
            folder,
            teacher.preprocessing,
        )
    config = STUDENTS["open_clip"](model=str(folder), pretrained=True, image_size=32)
    assert config.preprocessing().input_size == (3, 32, 32)
    larger = config.build(StudentSpec()).eval()
    pictures = torch.randn(2, 3, 32, 32)
    wanted = open_clip.create_model(f"local-dir:{folder}", force_image_size=32).eval()
    assert torch.equal(larger.encode_image(pictures), wanted.encode_image(pictures))
    save_model(larger, tmp_path / "large")
    loaded, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'large'}")
    assert torch.equal(loaded.eval().encode_image(pictures), wanted.encode_image(pictures))
    assert transform.transforms[0].size == 32
    said = json.loads((tmp_path / "large" / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
    assert said["image_size"] == 32 and ("img_size=32" in said.get("timm_model_name", "img_size=32"))
    with pytest.raises(
        UserError, match="image_size 30: its patches have 4 pixels; write a multiple, such as"
    ):
        STUDENTS["open_clip"](model=str(folder), pretrained=True, image_size=30).build(StudentSpec())
    with pytest.raises(UserError, match="beside `model`"):
        STUDENTS["open_clip"](model_cfg={}, image_size=32)


def test_a_converted_text_tower_inherits_and_reloads(teacher: Teacher, tmp_path: Path) -> None:
    student = student_of(teacher, Clip(text=TextTower(kind="mamba2")))
    inputs = inputs_of(teacher)
    assert set(student.towers) == {"image", "text"}
    assert torch.equal(student.text.token_embedding.weight, teacher.view.towers["text"].embedding.weight)
    output = student.run(inputs, {"text": Capture(hidden=frozenset((0, 1)))})
    assert set(output.streams["text"].hidden) == {0, 1}
    # nothing behind a text's end reaches its vector
    padded = dict(inputs, text=inputs["text"].clone())
    behind = torch.arange(12) > padded["text"].argmax(dim=1, keepdim=True)
    padded["text"][behind] = 7
    assert behind.any() and torch.equal(student.run(padded, {}).embeddings["text"], output.embeddings["text"])
    mixers = student.groups()["mixers"]
    assert any(mixers(name) for name, _ in student.text.named_parameters(prefix="text"))
    save_model(student, tmp_path / "s", teacher.preprocessing)
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 's'}").eval()
    assert torch.equal(loaded.encode_text(inputs["text"], normalize=True), output.embeddings["text"])
    shallow = Clip(text=TextTower(kind="mamba2", kwargs={"layers": 1}))
    assert len(student_of(teacher, shallow).text.blocks) == 1
    for wrong in ("layres", "context_length", "width"):
        with pytest.raises(UserError, match=rf"text\.kwargs\.{wrong}: all but `layers`"):
            student_of(teacher, Clip(text=TextTower(kind="mamba2", kwargs={wrong: 8})))
    with pytest.raises(UserError, match="kwargs are for mamba2"):
        TextTower(kwargs={"layers": 1})


def test_a_mask_is_said_only_where_padding_is_not_read() -> None:
    """A tower that reads what stands behind a text's end gives other vectors with a mask than its own code
    does."""
    for text, masked in (
        ({}, True),
        ({"no_causal_mask": True}, False),
        ({"pool_type": "last"}, False),
        ({"pool_type": "eos", "eos_id": 49407}, True),
    ):
        model = made(text=text)
        found = adapt_teacher(model)
        tokenizer = found.preprocessing.text
        assert tokenizer is not None
        tokens = tokenizer(CAPTIONS)
        assert (tokens.mask is not None) == masked, text
        inputs = {"text": tokens.ids} | ({"text_mask": tokens.mask} if tokens.mask is not None else {})
        with torch.no_grad():
            wanted = model.encode_text(tokens.ids, normalize=True)
        assert (found(inputs).embeddings["text"] - wanted).abs().max() < 1e-5, text


def test_another_librarys_tokenizer_travels_with_its_options(tmp_path: Path) -> None:
    word_tokenizer(tmp_path / "words")
    model = made(text=dict(vocab_size=11, pool_type="last", no_causal_mask=True))
    options = (("clean", "canonicalize"),)
    words = OpenClipTokenizer(12, str(tmp_path / "words"), options, masked=False)
    cfg, origin, _ = library.made_from(model)
    assert cfg is not None
    library.say_made_from(model, cfg, origin, words)
    found = adapt_teacher(model)
    student = student_of(found, Clip())
    save_model(student, tmp_path / "s", found.preprocessing)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 's'}")
    captions = ["a red, square!", "two dogs"]
    tokens = words(captions)
    assert tokens.mask is None and torch.equal(theirs(captions), tokens.ids)
    assert tokens.ids[0, :3].tolist() == [3, 4, 5], "punctuation is cleaned away"
    assert words(["a " * 30]).truncated == 1
    from transmamba.ecosystems.sources import read_source

    again = library.preprocessing(library.create_open_clip(read_source(str(tmp_path / "s")))).text
    assert isinstance(again, OpenClipTokenizer) and again.options == options and not again.masked
    # text_cfg's name is no path of this machine
    said = json.loads((tmp_path / "s" / "open_clip_config.json").read_text())
    assert said["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "owner/teacher"


def test_a_learnt_scale_comes_back() -> None:
    from transmamba.core.tower import run_plain

    model = made()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    scale = run_plain(model, {"text": torch.zeros(1, 12, dtype=torch.int64)}).scalars["scale"]
    scale.backward()
    assert scale.item() == pytest.approx(100.0) and model.logit_scale.grad.item() > 0
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_texts_that_are_read_otherwise_are_refused(teacher: Teacher) -> None:
    cfg = dict(embed_dim=8, vision_cfg=IMAGE, text_cfg={**TEXT, "context_length": 7})
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    with pytest.raises(UserError, match=r"of 7 tokens .* the teacher of 12"):
        STUDENTS["open_clip"](model_cfg=cfg).build(spec)


def test_what_nothing_can_train_is_refused_before_training(teacher: Teacher) -> None:
    """Pictures alone: losses that read texts, and a converted text tower."""
    from transmamba.distillation.distiller import Distiller
    from transmamba.training.optimizer import check_stage
    from transmamba.training.stage import Stage

    kept, converted = student_of(teacher, Clip()), student_of(teacher, Clip(text=TextTower(kind="mamba2")))
    for student, loss, said in (
        (kept, "affinity", "loss affinity reads text, but training batches have image alone"),
        (kept, "contrastive", "loss contrastive reads text"),
        (converted, "mixer", "loss mixer/text reads text"),
        (converted, "embedding_cosine", "text tower is converted, but training batches have image alone"),
    ):
        stage = Stage(name="one", losses=(LOSSES[loss](),), steps=1)
        distiller = Distiller(student, teacher, (loss,))
        with pytest.raises(UserError, match=said):
            check_stage(distiller, stage, ("image",))
        check_stage(distiller, stage, ("image", "text"))
    alone = Distiller(kept, teacher, (LOSSES["embedding_cosine"](tower="image"), "mixer"))
    check_stage(alone, Stage(name="one", losses=(LOSSES["mixer"](),), steps=1), ("image",))
