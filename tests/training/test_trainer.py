"""The loop's parts: schedule, lengths, what is trained and how, steps without a finite loss."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch
from transmamba.core.task import Pass
from transmamba.core.tower import StudentSpec
from transmamba.distillation.distiller import Distiller
from transmamba.errors import UserError
from transmamba.reporting.tracking import Tracker, read_metrics
from transmamba.tasks.image_classification import ImageClassification
from transmamba.training import trainer
from transmamba.training.optimizer import (
    check_stage,
    learning_rate,
    parameter_groups,
    set_trainable,
    set_training,
)
from transmamba.training.stage import Items, Stage, TrainerConfig, stage_steps
from transmamba.training.step import Stepper
from transmamba.training.trainer import Trainer

CE = (LOSSES["cross_entropy"](),)
MIXER = (LOSSES["mixer"](),)


def stage(losses: Any = CE, **options: Any) -> Stage:
    return Stage(losses=losses, **({"steps": 4} | options))


# --- schedule and lengths ---------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    plan = stage(lr=1.0, min_lr=0.2, warmup=0.25)
    rates = [learning_rate(plan, step, 20) for step in range(20)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    expected = [0.2 + 0.4 * (1 + math.cos(math.pi * i / 15)) for i in range(15)]
    assert rates[5:] == pytest.approx(expected)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:])) and rates[-1] > 0.2


def test_learning_rate_without_warmup_and_below_its_minimum() -> None:
    assert learning_rate(stage(lr=1e-3, warmup=0.0), 0, 10) == 1e-3
    tiny = stage(lr=1e-6, min_lr=1e-5, warmup=0.0)
    assert {learning_rate(tiny, step, 5) for step in range(5)} == {1e-6}
    assert learning_rate(stage(warmup=1.0, lr=1.0), 3, 4) == 1.0


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_warm_up_stable_decay(shape: str) -> None:
    plan = stage(lr=1.0, min_lr=0.1, warmup=0.25, schedule="wsd", decay=0.4, decay_shape=shape)
    rates = [learning_rate(plan, step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and set(rates[5:12]) == {1.0}
    done = [i / 8 if shape == "linear" else math.sqrt(i / 8) for i in range(8)]
    assert rates[12:] == pytest.approx([0.1 + 0.9 * (1 - share) for share in done])


def test_a_stage_of_one_step_has_a_rate() -> None:
    assert learning_rate(stage(lr=1.0, warmup=0.0, schedule="wsd"), 0, 1) == 1.0
    assert learning_rate(stage(lr=1.0, warmup=0.0, schedule="wsd", decay=1.0), 0, 3) == 1.0


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([dict(steps=7)], [7]),
        ([dict(epochs=3)], [38]),  # 3 * 100 / 8
        ([dict(epochs=0.01)], [1]),
        ([dict(samples=100)], [12]),
        ([dict(percent=20), dict(steps=80)], [20, 80]),
        ([dict(steps=10), dict(percent=50), dict(samples=80)], [10, 20, 10]),
        ([dict(percent=30), dict(percent=30), dict(steps=40)], [30, 30, 40]),
        ([dict(percent=0.1), dict(steps=2)], [1, 2]),
    ],
)
def test_stage_lengths(lengths: list[dict[str, Any]], expected: list[int]) -> None:
    stages = tuple(Stage(losses=CE, **length) for length in lengths)
    assert stage_steps(stages, [Items(100)] * len(stages), global_batch=8) == expected


def test_each_stage_has_the_length_of_its_own_data() -> None:
    stages = (stage(steps=None, epochs=2), stage(steps=None, epochs=2), stage(steps=None, tokens=800))
    items = [Items(100), Items(12), Items(12, tokens=25)]
    assert stage_steps(stages, items, global_batch=4) == [50, 6, 8]


def test_a_length_in_tokens_needs_tokens() -> None:
    stages = (stage(steps=None, tokens=10_000), stage(steps=None, percent=50))
    assert stage_steps(stages, [Items(100, tokens=100)] * 2, global_batch=8) == [12, 12]
    with pytest.raises(UserError, match="tokens is 10000, but the task has none; write samples"):
        stage_steps(stages, [Items(100)] * 2, global_batch=8)


@pytest.mark.parametrize(
    ("sizes", "processes", "divided"),
    [
        (dict(global_batch=64), 1, (64, 1)),
        (dict(global_batch=64), 8, (8, 1)),
        (dict(global_batch=64, micro_batch=4), 1, (4, 16)),
        (dict(global_batch=64, micro_batch=4), 8, (4, 2)),
        (dict(global_batch=1), 1, (1, 1)),
    ],
)
def test_division(sizes: dict[str, int], processes: int, divided: tuple[int, int]) -> None:
    """The same items a step on one process and on eight."""
    micro, accumulation = TrainerConfig(**sizes).division(processes)
    assert (micro, accumulation) == divided and micro * accumulation * processes == sizes["global_batch"]


@pytest.mark.parametrize(
    ("sizes", "processes", "write"),
    [
        (dict(global_batch=64, micro_batch=5), 1, 65),
        (dict(global_batch=64, micro_batch=10), 3, 60),
        (dict(global_batch=10), 4, 8),
        (dict(global_batch=2), 4, 4),
        (dict(global_batch=8, micro_batch=100), 1, 100),
    ],
)
def test_impossible_divisions_say_what_to_write(sizes: dict[str, int], processes: int, write: int) -> None:
    with pytest.raises(
        UserError, match=f"cannot divide; write {write}, or another trainer.micro_batch"
    ) as caught:
        TrainerConfig(**sizes).division(processes)
    assert "\n" not in str(caught.value)
    # what it says can be done
    TrainerConfig(**{**sizes, "global_batch": write}).division(processes)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({}, "given: none"),
        (dict(steps=1, epochs=2), "given: steps, epochs"),
        (dict(steps=-5, epochs=2), "steps is -5; write a number above 0"),
        (dict(steps=0), "steps is 0; write a number above 0"),
        (dict(percent=100), "percent is 100; .*below 100"),
        (dict(steps=1, token_fraction=0), "token_fraction is 0"),
        (dict(tokens=0), "tokens is 0"),
        (dict(epochs=float("inf")), "epochs is inf; write a number above 0"),
        (dict(epochs=float("nan")), "epochs is nan"),
        (dict(steps=1, trainable=("auto", "head")), "trainable names auto in a list; write it alone"),
        (dict(steps=1, trainable=()), "trainable is empty; name a group"),
        (dict(steps=1, lr=0, clip=-1), "lr is 0.*clip is -1"),
    ],
)
def test_impossible_stages(length: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(losses=CE, **length)


# --- what is trained, and how -----------------------------------------------------------------------------


def distiller(losses: Any, kind: str = "vim") -> Distiller:
    return Distiller(harness.tiny_student(kind), harness.tiny_teacher(), losses)


def trained(model: Distiller) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_teacher_forced_stages_train_the_mixers_alone(kind: str) -> None:
    model = distiller(MIXER, kind)
    set_trainable(model, stage(MIXER))
    inside = ".mixer." if kind == "vim" else ".attn."
    names = trained(model)
    assert all(inside in name or name.startswith("aligners.image.projections") for name in names)
    assert {inside in name for name in names} == {True, False}
    everything = {name for name, _ in model.student.named_parameters()}
    set_trainable(model, stage(MIXER, trainable="all"))
    assert {name.removeprefix("student.") for name in trained(model)} >= everything
    set_trainable(model, stage(CE, trainable="mixers"))
    assert all(inside in name for name in trained(model) if name.startswith("student."))


def test_a_head_stage_trains_the_classifier_alone(tmp_path: Path) -> None:
    """Twin runs, with and without the steps: the classifier's two tensors differ, every other is the same."""
    head = dict(name="head", losses=["cross_entropy"], trainable="head", steps=2, lr=1e-2)
    student = dict(name="timm", model="vit_tiny_patch16_224", kwargs=harness.TEACHER)
    recipe = harness.tiny_recipe(tmp_path, teacher=None, init=None, student=student, stages=[head])
    harness.run_quietly(recipe)
    trained = load_file(tmp_path / "run" / "student" / "model.safetensors")
    torch.manual_seed(recipe.seed)
    fresh = recipe.student.build(StudentSpec(num_classes=3)).state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_model_without_a_known_classifier_has_no_head_stage() -> None:
    model = Distiller(torch.nn.Linear(2, 2), None, CE)
    with pytest.raises(UserError, match="stage distill: trainable 'head' is no group of this student"):
        set_trainable(model, stage(CE, trainable="head"))


def test_any_model_has_its_outermost_parts_as_groups() -> None:
    """Of a plain model, those that are not trained neither change nor drop anything."""
    plain = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "text": torch.nn.Dropout(0.5)})
    plain["text"].add_module("inner", torch.nn.Linear(2, 2))
    plain.register_parameter("logit_scale", torch.nn.Parameter(torch.ones(())))
    model = Distiller(plain, None, CE)
    chosen = stage(trainable=("visual", "logit_scale"))
    set_trainable(model, chosen)
    assert trained(model) == {f"student.{name}" for name in ("visual.weight", "visual.bias", "logit_scale")}
    set_training(model, chosen)
    assert [plain.training, plain["visual"].training, plain["text"].training] == [True, True, False]
    with pytest.raises(UserError, match="trainable 'visua' is no group of this student; did you mean"):
        set_trainable(model, stage(trainable="visua"))


def test_a_part_within_a_trained_one_is_at_rest_where_it_is_not_trained() -> None:
    body = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    plain = torch.nn.ModuleDict({"text": torch.nn.ModuleDict({"body": body, "proj": torch.nn.Linear(2, 2)})})
    model = Distiller(plain, None, CE)
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    set_training(model, stage(trainable="all"))
    inner: Any = plain["text"]
    assert [inner.training, inner["proj"].training, body.training, body[1].training] == [
        True,
        True,
        False,
        False,
    ]


def test_a_head_stage_knows_what_it_can_train() -> None:
    for losses in (MIXER, (*CE, LOSSES["feature"]())):
        with pytest.raises(UserError, match="trainable head needs losses on the logits alone"):
            check_stage(distiller(losses), stage(losses, trainable="head"))
    check_stage(distiller((*CE, LOSSES["kl"]())), stage(trainable="head"))
    torch.manual_seed(0)
    deit = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **harness.TEACHER)
    model = Distiller(deit, None, CE)
    set_trainable(model, stage(CE, trainable="head"))
    assert trained(model) == {
        f"student.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }
    set_training(model, stage(CE, trainable="head"))
    assert not any(module.training for module in deit.modules())
    set_trainable(model, stage(CE))
    set_training(model, stage(CE))
    assert all(module.training for module in deit.modules())


def test_the_test_set_is_used_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []
    real = ImageClassification.eval_batches

    def spy(self: ImageClassification, split: str, passing: Pass) -> Any:
        splits.append(split)
        return real(self, split, passing)

    monkeypatch.setattr(ImageClassification, "eval_batches", spy)
    recipe = harness.tiny_recipe(tmp_path, task__validation=0.2, task__final_split="test")
    results = harness.run_quietly(recipe)
    watched = sum("eval/top1" in row for row in harness.metrics_rows(tmp_path / "run"))
    assert watched == 4 and splits == ["validation"] * watched + ["test"], "student and teacher in one pass"
    saved = np.load(tmp_path / "run" / "items.npz")
    assert sorted(saved["index"]) == list(range(11))
    for who in ("student", "teacher"):
        assert results[who]["top1"] == pytest.approx(saved[f"{who}/top1"].mean())


def test_a_later_stage_trains_what_an_earlier_one_froze() -> None:
    model = distiller(MIXER)
    set_trainable(model, stage(MIXER))
    later = Distiller(model.student, model.teacher, CE, aligners=model.aligners)
    set_trainable(later, stage(CE))
    names = trained(later)
    assert "student.head.weight" in names
    assert "aligners.image.projections.0.weight" in dict(later.named_parameters())
    assert not any(name.startswith("aligner") for name in names), "no loss reads a projection"


def test_mixers_of_a_model_that_has_none() -> None:
    model = Distiller(harness.tiny_vit(), None, CE)
    with pytest.raises(UserError, match="trainable 'mixers' is no group of this student"):
        set_trainable(model, stage(CE, trainable="mixers"))


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_several_groups_are_trained_together(kind: str) -> None:
    model, inside = distiller(CE, kind), ".mixer." if kind == "vim" else ".attn."
    set_trainable(model, stage(CE, trainable=("mixers", "head")))
    names = trained(model)
    assert {"student.head.weight", "student.head.bias"} < names
    assert all(inside in name for name in names - {"student.head.weight", "student.head.bias"})
    with pytest.raises(UserError, match="'mixer' is no group of this student; did you mean 'mixers'"):
        set_trainable(model, stage(CE, trainable=("head", "mixer")))


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_parameter_groups(kind: str) -> None:
    model = distiller((*CE, *MIXER), kind)
    plan = stage((*CE, *MIXER), weight_decay=0.3, trainable="all")
    set_trainable(model, plan)
    groups = parameter_groups(model, plan)
    assert sorted(group["weight_decay"] for group in groups) == [0, 0.3]
    place = {id(p): group for group in groups for p in group["params"]}
    assert len(place) == sum(len(group["params"]) for group in groups) == len(trained(model))
    for name, parameter in model.named_parameters():
        group = place[id(parameter)]
        last = name.rsplit(".", 1)[-1]
        spared = parameter.ndim == 1 or last in ("A_log", "A_b_log", "D", "D_b", "cls_token", "pos_embed")
        spared |= name.startswith("aligners.")  # decay would pull them from the identity to 0
        assert group["weight_decay"] == (0 if spared else 0.3), name


def test_a_part_of_a_model_says_what_does_not_decay() -> None:
    """open_clip's own model does not ask a tower of timm's."""
    tower: Any = nn.Module()
    tower.weight, tower.pos_embed = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    tower.no_weight_decay = lambda: {"pos_embed"}
    model: Any = distiller(CE, "vim")
    model.student.inner = nn.ModuleDict({"trunk": tower})
    groups = parameter_groups(model, stage(CE, weight_decay=0.3, trainable="all"))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(tower.pos_embed)] == 0 and decay[id(tower.weight)] == 0.3


# --- steps without a finite loss --------------------------------------------------------------------------


def batches(size: int, poisoned: set[int], start: int, steps: int) -> Iterator[Batch]:
    for step in range(start, steps):
        batch = harness.tiny_batch(size, seed=step)
        if step in poisoned:
            batch.inputs["image"][0, 0, 0, 0] = math.nan
        yield batch


def train(folder: Path, poisoned: set[int], steps: int = 8, **options: Any) -> tuple[Any, list[Any]]:
    """A run with NaN images at the steps `poisoned`; the weights after every step."""
    config = TrainerConfig(**({"global_batch": 4, "log_every": 1, "save_every": 0} | options))
    weights: list[Any] = []
    with Tracker(folder, quiet=True) as tracker, pytest.MonkeyPatch.context() as patch:
        trainer = Trainer(
            Accelerator(cpu=True),
            config,
            folder,
            tracker,
            batches=lambda start, count, _: batches(4, poisoned, start, count),
            change=lambda batch, *_: batch,
        )
        real = Stepper._apply

        def watched(self: Stepper, *arguments: Any) -> bool:
            moved = real(self, *arguments)
            moments = [state["exp_avg"].clone() for state in self.optimizer.state.values()]
            loss_state = self.distiller.losses["feature"].running.clone()  # type: ignore[operator,union-attr]
            weights.append(([p.detach().clone() for p in model.parameters()], moments, [loss_state]))
            return moved

        patch.setattr(Stepper, "_apply", watched)
        losses = (*CE, LOSSES["feature"](weighting="adaptive"))
        model = distiller(losses)
        trainer.run(lambda _: model, [(stage(losses, steps=steps, lr=1e-2), steps)])
    return trainer, weights


def test_a_step_without_a_finite_loss_changes_nothing(tmp_path: Path) -> None:
    trainer, weights = train(tmp_path, poisoned={3, 4, 6})
    for step in (3, 4, 6):
        for ours, theirs in zip(weights[step], weights[step - 1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for step in (1, 2, 5, 7):
        assert not all(torch.equal(a, b) for a, b in zip(weights[step][0], weights[step - 1][0], strict=True))
    assert trainer.progress.step == 8 and trainer.progress.skipped == 0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 6, 8]
    assert all(json.dumps(row) for row in rows)


def test_an_infinite_gradient_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss whose gradient overflows."""
    real = Accelerator.clip_grad_norm_
    calls = 0

    def overflow(self: Accelerator, parameters: Any, limit: float) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            parameters[0].grad.fill_(math.inf)
        return real(self, parameters, limit)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", overflow)
    _, weights = train(tmp_path, poisoned=set(), steps=4)
    assert all(torch.equal(a, b) for a, b in zip(weights[2][0], weights[1][0], strict=True))
    assert all(torch.isfinite(p).all() for p in weights[3][0])


def test_too_many_in_a_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 steps in a row had no finite loss .*lower stages\.lr") as caught:
        train(tmp_path, poisoned={0, 1, 4, 5, 6}, steps=9, max_skipped=3)
    assert "last at step 6" in str(caught.value) and "\n" not in str(caught.value)


def test_the_optimizer_is_made_where_the_parameters_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projections are new at every stage, and made on the CPU: beside them no GPU would get fused steps."""
    moved: list[Distiller] = []
    seen: list[bool] = []
    move, make = Distiller.to, trainer.make_optimizer

    def moving(self: Distiller, *arguments: Any, **options: Any) -> Any:
        moved.append(self)
        return move(self, *arguments, **options)

    def making(distiller: Distiller, *arguments: Any) -> Any:
        seen.append(any(distiller is earlier for earlier in moved))
        return make(distiller, *arguments)

    monkeypatch.setattr(Distiller, "to", moving)
    monkeypatch.setattr(trainer, "make_optimizer", making)
    harness.run_quietly(harness.tiny_recipe(tmp_path))
    assert seen == [True, True], "one distiller a stage, each on its device before its optimizer"
