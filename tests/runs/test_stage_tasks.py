"""Stages with data of their own: what each is trained on, how long it is, and that it goes on exactly."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file
from small_language import TEXTS, tokenizer_folder, write_jsonl

from transmamba import UserError
from transmamba.config import load as configs
from transmamba.core.batch import Batch
from transmamba.core.task import Steps
from transmamba.errors import ConfigError
from transmamba.reporting.model_card import render_model_card
from transmamba.runs.build import assemble, make_accelerator
from transmamba.runs.pipeline import Pipeline
from transmamba.runs.recipe import Recipe
from transmamba.tasks.image_classification import ImageClassificationConfig
from transmamba.tasks.image_text import ImageTextConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

PART = dict(losses=["cross_entropy"], lr=3e-3)
OTHER = dict(data=dict(num_train=16, seed=7), mixup=0.8)


def opened(recipe: Recipe) -> Pipeline:
    return Pipeline(assemble(recipe, make_accelerator(recipe), quiet=True))


def of_stage(pipeline: Pipeline, stage: int) -> list[Batch]:
    """All of this stage's micro-batches."""
    return list(pipeline.batches(0, pipeline.stages[stage][1], stage))


def three_stages(folder: Path, **changes: Any) -> Recipe:
    stages = [PART | dict(steps=3), PART | dict(epochs=2, task=OTHER), PART | dict(steps=4)]
    return harness.tiny_recipe(folder, **{"stages": stages, **changes})


def test_a_stage_reads_its_own_data_from_their_beginning(tmp_path: Path) -> None:
    """Its epochs are its own data's; the stage behind it goes on where the first one ended."""
    recipe = three_stages(tmp_path)
    pipeline = opened(recipe)
    assert [steps for _, steps in pipeline.stages] == [3, 4, 4] and pipeline.total_steps == 11
    own = of_stage(pipeline, 1)
    values = configs.dump(recipe.task)
    values["data"] |= OTHER["data"]  # type: ignore[operator]
    del values["name"]
    alone = configs.parse(ImageClassificationConfig, values, "alone").build(pipeline.parts.task.preprocessing)
    for epoch in (own[:4], own[4:]):  # of 16 images, in micro-batches of 4
        assert sorted(torch.cat([batch.index for batch in epoch]).tolist()) == list(range(16))
    steps = Steps(micro_batch=4, accumulation=2, seed=recipe.seed, start_step=0, num_steps=4)
    for a, b in zip(own, alone.train_batches(steps), strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.inputs["image"], b.inputs["image"])
    # the others are one stream, as without the stage between them
    two = opened(three_stages(tmp_path, stages=[PART | dict(steps=3), PART | dict(steps=4)]))
    for stage, wanted in ((0, 0), (2, 1)):
        for a, b in zip(of_stage(pipeline, stage), of_stage(two, wanted), strict=True):
            assert torch.equal(a.index, b.index) and torch.equal(a.inputs["image"], b.inputs["image"])


def test_a_stage_changes_its_batches_its_own_way(tmp_path: Path) -> None:
    pipeline = opened(three_stages(tmp_path))
    for stage, mixed in ((0, False), (1, True), (2, False)):
        batch = of_stage(pipeline, stage)[0]
        assert (pipeline.change(batch, 5, stage) is not batch) == mixed


def test_stages_that_say_the_same_share_their_data(tmp_path: Path) -> None:
    stages = [PART | dict(steps=2, task=task) for task in (OTHER, None, OTHER, dict(mixup=0.0))]
    stages[1].pop("task")
    pipeline = opened(three_stages(tmp_path, stages=stages))
    first, plain, third, same = pipeline.parts.tasks
    assert first is third and plain is same is pipeline.parts.task
    assert pipeline.begins == [0, 0, 2, 2]


def test_what_is_measured_is_the_recipe_s_task(tmp_path: Path) -> None:
    first = three_stages(tmp_path, output_dir=str(tmp_path / "a"))
    other = dict(OTHER, data=dict(name="synthetic", num_train=16, num_test=99, num_classes=3, size=8))
    stages = [PART | dict(steps=3), PART | dict(steps=4, task=other), PART | dict(steps=4)]
    second = three_stages(tmp_path, output_dir=str(tmp_path / "b"), stages=stages)
    for recipe in (first, second):
        found = harness.run_quietly(recipe)
        right = found["student"]["top1"] * 11 / 100
        assert right == pytest.approx(round(right)), "of the 11 images of the recipe's own split"
    rows = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if row.get("stage") == 1]


def continued(recipe: Recipe, step: int, folder: Path) -> None:
    """The finished run in `folder`, taken back to its checkpoint of a step, and run again: the same student
    and the same losses behind it, to the last bit."""
    wanted, rows = load_file(folder / "student/model.safetensors"), losses(folder)
    kept = [path for path in (folder / "checkpoints").iterdir() if int(path.name[5:]) > step]
    assert kept and (folder / "checkpoints" / f"step-{step:08d}").is_dir()
    for gone in [*kept, folder / "student"]:
        shutil.rmtree(gone)
    (folder / "results.json").unlink()
    harness.run_quietly(recipe)
    made = load_file(folder / "student/model.safetensors")
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert losses(folder) == rows


def losses(folder: Path) -> list[Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["stage"], row["loss"]) for row in rows if "loss" in row]


def test_a_run_of_images_goes_on_within_a_stage_of_its_own(tmp_path: Path) -> None:
    changes = dict(trainer__save_every=1, trainer__keep=20, trainer__log_every=1)
    recipe = three_stages(tmp_path, **changes)
    harness.run_quietly(recipe)
    for step in (4, 8):  # in the second and in the third stage
        continued(recipe, step, tmp_path / "run")


@pytest.fixture
def language(tmp_path: Path) -> Path:
    """A Llama of 300 words with its tokenizer, texts, and conversations of which there is no test split."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer_folder(tmp_path / "llama")
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(vocab_size=300, max_position_embeddings=64, pad_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    write_jsonl(tmp_path / "texts.jsonl", ({"text": text} for text in TEXTS * 3))
    asked = ({"prompt": text[:12], "response": text[12:40] or "yes"} for text in TEXTS * 2)
    write_jsonl(tmp_path / "asked.jsonl", asked)
    return tmp_path


def language_recipe(folder: Path, **changes: Any) -> Recipe:
    texts = str(folder / "texts.jsonl")
    conversations = dict(
        data=dict(name="instructions", train=str(folder / "asked.jsonl")), packed=False, block=64
    )
    values: dict[str, Any] = dict(
        output_dir=str(folder / "run"),
        task=dict(
            name="language",
            data=dict(name="text", train=texts, test=texts),
            block=16,
            cache=str(folder / "tokens"),
        ),
        teacher=dict(name="causal_lm", model=str(folder / "llama")),
        student=dict(name="hybrid_lm", attention_layers=[1]),
        stages=[
            dict(losses=["kl"], steps=3, lr=1e-3),
            dict(name="longer", losses=["kl"], steps=3, lr=1e-3, task=dict(block=48)),
            dict(name="answers", losses=["cross_entropy"], epochs=1, lr=1e-3, task=conversations),
        ],
        trainer=dict(global_batch=4, log_every=1, save_every=1, keep=20, eval_batch_size=4),
    )
    return configs.parse(Recipe, {**values, **changes}, "language")


def test_a_language_line_with_longer_texts_and_answers_alone(language: Path) -> None:
    recipe = language_recipe(language)
    pipeline = opened(recipe)
    shapes = [
        {tuple(batch.inputs["text"].shape) for batch in of_stage(pipeline, stage)} for stage in range(3)
    ]
    assert shapes[:2] == [{(4, 16)}, {(4, 48)}]
    answers = of_stage(pipeline, 2)
    assert len(answers) == round(pipeline.parts.tasks[2].num_train / 4)
    assert 10 <= pipeline.parts.tasks[2].num_train < 20, "of ten conversations"
    for batch in answers:
        asked = batch.targets["tokens"] >= 0
        assert 0 < asked.sum() < batch.inputs["text_mask"].sum(), "the prompts are read, not asked"
    results = harness.run_quietly(recipe)
    assert results["student"]["perplexity"] > 1
    for step in (4, 7):
        continued(recipe, step, language / "run")


def test_a_card_says_which_data_a_stage_had(language: Path) -> None:
    from transmamba.ecosystems.find import card_of
    from transmamba.subcloning.convert import convert

    config = configs.dump(language_recipe(language))
    student, _ = convert(language / "llama", "hybrid_lm")
    card = card_of(student)
    assert card is not None
    page = render_model_card(card, results={}, config=config)
    assert (
        "task.block 48" in page and "instructions (train: asked.jsonl" in page and str(language) not in page
    )


def test_texts_of_pictures_need_no_test_split(tmp_path: Path) -> None:
    from PIL import Image
    from test_image_text import LOOKS

    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    table = write_jsonl(tmp_path / "pairs.jsonl", [{"image": "0.png", "caption": "a"}] * 3)
    values = dict(
        data=dict(name="table", train=table),
        zero_shot=[dict(name="x", data=dict(name="image_folder", root="nowhere"))],
    )
    config = configs.parse(ImageTextConfig, values, "task")
    with pytest.raises(UserError):
        config.build(LOOKS)
    assert config.build_training(LOOKS).num_train == 1, "one picture with three captions"
    gone = configs.parse(ImageTextConfig, dict(data=dict(name="table", test=table)), "task")
    with pytest.raises(UserError, match="train"):
        gone.build_training(LOOKS)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (dict(blok=3), r"stages.1.task.blok: unknown key.*"),
        (dict(mixup=-1), r"stages.1.task.*mixup -1"),
        (dict(name="language"), r"stages.1.task: .*write keys of the recipe's task"),
        ({}, r"stages.1.task: .*write keys of the recipe's task"),
        (dict(data=dict(name="synthetik")), r"stages.1.task.data.*synthetic"),
    ],
)
def test_keys_that_mean_nothing_are_refused_when_read(task: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        harness.tiny_recipe(tmp_path, stages=[PART | dict(steps=1), PART | dict(steps=1, task=task)])
    assert isinstance(error.value, ConfigError) and len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (dict(data=dict(num_classes=4)), "4 classes but the data|has 3 classes but the data has 4"),
        (dict(data=dict(name="image_folder", root="nowhere")), "nowhere"),
    ],
)
def test_data_that_do_not_serve_are_refused_before_the_first_step(
    task: Any, said: str, tmp_path: Path
) -> None:
    stages = [PART | dict(steps=1), PART | dict(steps=1, task=task)]
    with pytest.raises(UserError, match=said) as error:
        harness.run_quietly(harness.tiny_recipe(tmp_path, stages=stages))
    assert str(error.value).startswith("stages.1.task: ") and "\n" not in str(error.value)
    assert not (tmp_path / "run/checkpoints").exists()


def test_without_a_teacher_classes_are_compared(tmp_path: Path) -> None:
    stages = [PART | dict(steps=1), PART | dict(steps=1, task=dict(data=dict(num_classes=4)))]
    recipe = harness.tiny_recipe(tmp_path, teacher=None, init=None, stages=stages)
    with pytest.raises(UserError, match=r"stages.1.task: its data have the 4 classes"):
        assemble(recipe, make_accelerator(recipe))


def test_a_stored_teacher_has_the_recipe_s_rows_alone(tmp_path: Path) -> None:
    stages = [PART | dict(steps=1), PART | dict(steps=1, task=OTHER)]
    recipe = harness.tiny_recipe(tmp_path, stages=stages)
    teacher = dict(name="stored", teacher=configs.dump(recipe.teacher), folder=str(tmp_path / "store"))
    recipe = harness.tiny_recipe(tmp_path, stages=stages, teacher=teacher)
    with pytest.raises(UserError, match=r"stages.1.task: a stored teacher's rows are of the recipe's own"):
        assemble(recipe, make_accelerator(recipe))
    assert not (tmp_path / "store").exists()
