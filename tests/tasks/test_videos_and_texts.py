"""The task image_text on videos: student, teacher and open_clip's own model from batches to results."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import metrics_rows, run_quietly
from video_clips import write_video

from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.core.output import Capture
from transmamba.core.task import Pass, Steps
from transmamba.core.tower import StudentSpec, run_plain
from transmamba.ecosystems import open_clip as library
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.open_clip_tokenizer import OpenClipTokenizer
from transmamba.ecosystems.origin import Origin
from transmamba.errors import UserError
from transmamba.evaluation.run import ModelRunner, measure
from transmamba.runs.recipe import Recipe
from transmamba.students.clip.names import Clip, OpenClipModel
from transmamba.subcloning.convert import carry
from transmamba.teachers.load import adapt_teacher

pytest.importorskip("open_clip", reason="needs open_clip")

CFG: dict[str, Any] = dict(
    embed_dim=8,
    vision_cfg=dict(image_size=16, layers=2, width=32, head_width=16, patch_size=8, mlp_ratio=2.0),
    text_cfg=dict(context_length=40, vocab_size=49408, width=16, heads=2, layers=1),
)
CLIPS: dict[str, Any] = dict(name="scene_clips", side=16, frames=3, count_train=12, count_test=6)


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    model = library.build_open_clip(CFG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.1 * torch.randn_like(parameter))
    library.say_made_from(model, CFG, Origin(), OpenClipTokenizer.of(CFG["text_cfg"]))
    return model.eval()


def task_of(clip: Any, **data: Any) -> Any:
    values = {"data": {**CLIPS, **data}}
    return configs.parse(TASKS["image_text"], values, "task").build(adapt_teacher(clip).preprocessing)


def student_of(teacher: Any) -> Any:
    torch.manual_seed(1)
    student = Clip().build(StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing))
    carry(student, teacher)
    return student.eval()


def test_all_models_embed_a_video_by_the_mean_of_its_frames(clip: Any) -> None:
    teacher, task = adapt_teacher(clip), task_of(clip)
    student = student_of(teacher)
    (batch,) = task.eval_batches("test", Pass(batch_size=8))
    frames = batch.inputs["frames"]
    assert frames.shape == (6, 3, 3, 16, 16) and "image" not in batch.inputs
    with torch.no_grad():
        for model, of_images in (
            (teacher, clip.encode_image),
            (student, student.encode_image),
            (lambda inputs: run_plain(clip, inputs), clip.encode_image),
        ):
            call = getattr(model, "run", None)
            made = call(batch.inputs, {}) if call else model(batch.inputs)
            for row in range(6):
                each = F.normalize(of_images(frames[row]).double(), dim=-1)
                wanted = F.normalize(each.mean(dim=0), dim=0)
                assert (made.embeddings["image"][row] - wanted).abs().max() < 1e-5
            assert made.embeddings["text"].shape == (6, 8) and "image" not in made.streams


def test_losses_that_read_tokens_are_refused(clip: Any) -> None:
    teacher, task = adapt_teacher(clip), task_of(clip)
    (batch,) = task.eval_batches("test", Pass(batch_size=8))
    for model in (teacher, student_of(teacher).run):
        with pytest.raises(UserError, match="reads the image tower's tokens"):
            model(batch.inputs, {"image": Capture(hidden=frozenset({0}))})


def test_calibration_is_frames_as_images(clip: Any) -> None:
    task = task_of(clip)
    batches = list(task.calibration(10, 6))
    images = torch.cat([batch.inputs["image"] for batch in batches])
    assert images.shape == (12, 3, 16, 16) and [len(batch) for batch in batches] == [6, 6]
    assert all(batch.counts == {"samples": 6} and not batch.targets for batch in batches)
    transform = task.preprocessing.eval_transform()
    source = task.config.data.build("train")
    first = int(batches[0].index[0])
    assert torch.equal(images[:3], torch.stack([transform(frame) for frame in source.frames(first)]))


def shuffled_too(clip: Any, model: Any) -> dict[str, float]:
    """Metrics of 40 clips, in order and shuffled, through the task's own evaluators."""
    values = {"data": {**CLIPS, "frames": 4, "count_test": 40}, "shuffle_frames": True}
    task = configs.parse(TASKS["image_text"], values, "task").build(adapt_teacher(clip).preprocessing)
    runners = {"student": ModelRunner(model, torch.device("cpu"))}
    measured = measure(task.evaluators("test"), runners, Pass(batch_size=16))
    assert {metric.key for metric in task.metrics} >= measured.metrics("student").keys()
    return measured.metrics("student")


def test_a_mean_does_not_see_the_order_of_frames(clip: Any) -> None:
    """The control: shuffled clips are measured as those in order are, to the last place of every query."""
    found = shuffled_too(clip, clip)
    for key in ("mean_recall", "i2t_r1", "t2i_r1"):
        assert found[f"shuffled_{key}"] == pytest.approx(found[key])
    assert found["t2i_mean_rank"] > 1
    labels = [metric.label for metric in task_of(clip).metrics]
    assert "text to video R@1 %" in labels and not any("image" in label for label in labels)


class Knows:
    """Embeds a clip by its frames, each weighted by its time or all alike, and a caption as its own clip in
    order."""

    def __init__(self, task: Any, timed: bool) -> None:
        self.weights = torch.linspace(-1, 1, 4) if timed else torch.ones(4)
        self.clips: dict[tuple[int, ...], torch.Tensor] = {}
        for batch in task.eval_batches("test", Pass(batch_size=16)):
            for text, clip in zip(batch.inputs["text"].tolist(), self.of(batch), strict=True):
                self.clips[tuple(text)] = clip

    def of(self, batch: Any) -> torch.Tensor:
        return F.normalize(
            torch.einsum("btchw,t->bchw", batch.inputs["frames"], self.weights).flatten(1), dim=-1
        )

    def embed(self, batch: Any) -> dict[str, torch.Tensor]:
        texts = [self.clips[tuple(text)] for text in batch.inputs["text"].tolist()]
        return {"image": self.of(batch), "text": torch.stack(texts)}


@pytest.mark.parametrize("timed", [True, False])
def test_what_knows_the_order_loses_by_shuffled_frames(clip: Any, timed: bool) -> None:
    """Of twins, whose frames are alike but for the order of events."""
    data = {**CLIPS, "frames": 4, "count_test": 40, "split_test": "swapped_relations"}
    values = {"data": data, "shuffle_frames": True}
    task = configs.parse(TASKS["image_text"], values, "task").build(adapt_teacher(clip).preprocessing)
    runners: Any = {"student": Knows(task, timed)}
    found = measure(task.evaluators("test"), runners, Pass(batch_size=16)).metrics("student")
    assert found["mean_recall"] == found["i2t_r1"] == found["t2i_r1"] == 100
    for key in ("i2t_r1", "t2i_r1", "mean_recall", "twin_i2t", "twin_t2i"):
        assert (found[f"shuffled_{key}"] < 90) is timed, found


def test_twins_are_told_apart_where_all_are_there(clip: Any) -> None:
    for count, there in ((6, True), (5, False)):
        task = task_of(clip, split_test="swapped_relations", count_test=count)
        assert ("twin_t2i" in {metric.key for metric in task.metrics}) is there
    runners = {"student": ModelRunner(clip, torch.device("cpu"))}
    task = task_of(clip, split_test="swapped_relations")
    measured = measure(task.evaluators("test"), runners, Pass(batch_size=4))
    assert 0 <= measured.metrics("student")["twin_i2t"] <= 100
    assert "twin_i2t" not in {metric.key for metric in task_of(clip).metrics}


def test_shuffled_frames_of_pictures_are_refused(clip: Any) -> None:
    values = {"data": dict(name="scenes", side=16, count_train=4, count_test=4), "shuffle_frames": True}
    with pytest.raises(UserError, match="shuffle_frames is for videos"):
        configs.parse(TASKS["image_text"], values, "task").build(adapt_teacher(clip).preprocessing)


def test_a_clip_made_to_scan_is_distilled_from_the_mean(clip: Any, tmp_path: Path) -> None:
    """The student `clip` with num_frames, from a teacher that embeds frame by frame; saved and loaded."""
    save_model(clip, tmp_path / "teacher")
    values: dict[str, Any] = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="image_text", data=CLIPS, shuffle_frames=True),
        teacher=dict(name="open_clip", model=str(tmp_path / "teacher")),
        student=dict(name="clip", image=dict(kind="ssd_vit", kwargs=dict(num_frames=3))),
        init=dict(layers="all", calibration_images=6),
        stages=[dict(name="distill", losses=["embedding_cosine", "contrastive"], steps=2, lr=1e-3)],
        trainer=dict(global_batch=4, micro_batch=2, log_every=1, eval_batch_size=4, workers=0),
    )
    results = run_quietly(configs.parse(Recipe, values, "tiny"))
    assert np.isfinite(results["student"]["shuffled_mean_recall"])
    teacher = results["teacher"]
    assert teacher["shuffled_mean_recall"] == pytest.approx(teacher["mean_recall"])
    folder = tmp_path / "run" / "student"
    assert "num_frames=3" in (folder / "open_clip_config.json").read_text()
    again: Any = OpenClipModel(model=str(folder), pretrained=True).build(StudentSpec())
    assert again.visual.trunk.temporal_pos_embedding.any()


def test_training_skips_bad_videos_and_evaluation_names_them(
    clip: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(6):
        write_video(tmp_path / f"{n}.mp4", 4, first=3 * n)
    (tmp_path / "3.mp4").write_bytes((tmp_path / "3.mp4").read_bytes()[:200])
    (tmp_path / "pairs.csv").write_text("video,caption\n" + "".join(f"{n}.mp4,film {n}\n" for n in range(6)))
    table = str(tmp_path / "pairs.csv")
    values = {"data": dict(name="videos", train=table, test=table, frames=2), "bad_limit": 1}
    task = configs.parse(TASKS["image_text"], values, "task").build(adapt_teacher(clip).preprocessing)
    steps = Steps(num_steps=2, micro_batch=6, seed=0)
    with caplog.at_level(logging.WARNING, "transmamba.data"):
        batches = list(task.train_batches(steps))
    assert [batch.inputs["frames"].shape for batch in batches] == [(6, 2, 3, 16, 16)] * 2
    assert "another video takes the place" in caplog.text and "3.mp4" in caplog.text
    reasons = list(task.look_through())
    assert len(reasons) == 1 and "3.mp4" in reasons[0]
    with pytest.raises(UserError, match=r"3\.mp4"):
        list(task.eval_batches("test", Pass(batch_size=6)))


@pytest.mark.parametrize("losses", [["embedding_cosine", "contrastive"]])
def test_two_steps_and_results(clip: Any, tmp_path: Path, losses: list[str]) -> None:
    save_model(clip, tmp_path / "teacher")
    values: dict[str, Any] = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="image_text", data=CLIPS),
        teacher=dict(name="open_clip", model=str(tmp_path / "teacher")),
        student=dict(name="clip"),
        init=dict(layers="all", calibration_images=6),
        stages=[dict(name="distill", losses=losses, steps=2, lr=1e-3)],
        trainer=dict(global_batch=4, micro_batch=2, log_every=1, eval_batch_size=4, workers=0),
    )
    results = run_quietly(configs.parse(Recipe, values, "tiny"))
    assert np.isfinite(results["student"]["mean_recall"]) and 0 < results["agreement"]["image_cosine"] <= 1
    rows = metrics_rows(tmp_path / "run")
    assert sum("loss" in row for row in rows) == 2
    assert (tmp_path / "run" / "student" / "open_clip_config.json").is_file()


def test_a_loss_over_tokens_stops_a_run_in_one_line(clip: Any, tmp_path: Path) -> None:
    save_model(clip, tmp_path / "teacher")
    values: dict[str, Any] = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="image_text", data=CLIPS),
        teacher=dict(name="open_clip", model=str(tmp_path / "teacher")),
        student=dict(name="clip"),
        init=None,
        stages=[dict(name="distill", losses=["feature"], steps=2, lr=1e-3)],
        trainer=dict(global_batch=4, workers=0),
    )
    with pytest.raises(UserError, match="reads the image tower's tokens"):
        run_quietly(configs.parse(Recipe, values, "tiny"))


@pytest.mark.parametrize("scan", ["mean", "scan"])
@pytest.mark.parametrize("name", ["clip_msrvtt", "clip_didemo"])
def test_the_recipes_train_a_converted_clip(clip: Any, tmp_path: Path, name: str, scan: str) -> None:
    """Two steps on clips, with a student that was saved; all other settings but the size as they are. To scan
    them, the lines that are commented out are written."""
    written = Path(__file__).parents[2] / "recipes" / "configs" / f"{name}.yaml"
    path = tmp_path / f"{name}.yaml"
    text = written.read_text()
    assert "\n  # num_frames: " in text and "\n  # shuffle_frames: true" in text
    if scan == "scan":
        text = text.replace("# num_frames", "num_frames").replace("# shuffle_frames", "shuffle_frames")
    path.write_text(text)
    save_model(clip, tmp_path / "teacher")
    teacher = adapt_teacher(clip)
    save_model(student_of(teacher), tmp_path / "student", teacher.preprocessing)
    recipe = configs.load(
        Recipe,
        path,
        [
            f"output_dir={tmp_path / 'run'}",
            f"task.data={CLIPS}",
            f"teacher.model={tmp_path / 'teacher'}",
            f"student.model={tmp_path / 'student'}",
            *("stages.0.epochs=null", "stages.0.steps=2"),
            *("trainer.global_batch=4", "trainer.micro_batch=2", "trainer.workers=0"),
            *("trainer.precision=no", "trainer.eval_every=0", "trainer.save_every=0"),
        ],
    )
    assert (recipe.student.num_frames == recipe_frames(text)) is (scan == "scan")
    results = run_quietly(recipe)
    assert np.isfinite(results["student"]["mean_recall"]) and "image_cosine" in results["agreement"]
    assert ("shuffled_mean_recall" in results["student"]) is (scan == "scan")
    made = (tmp_path / "run" / "student" / "open_clip_config.json").read_text()
    assert ("num_frames" in made) is (scan == "scan")


def recipe_frames(text: str) -> int:
    """How many frames its reader takes."""
    found = re.search(r"^    frames: (\d+)$", text, re.MULTILINE)
    assert found
    return int(found[1])
