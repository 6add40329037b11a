"""Wrong values are told all at once, as wrong names and types are; and what became of retired keys."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pytest

from transmamba.config.load import Part, parse
from transmamba.config.registry import Registry
from transmamba.config.retired import RETIRED
from transmamba.errors import ConfigError, UserError, WrongValues, refuse_all
from transmamba.training.stage import Stage as RealStage
from transmamba.training.stage import TrainerConfig

LOSSES = Registry("loss", "transmamba.layers")
LOSSES._discovered = True  # only the parts of this file


@LOSSES.register("kl")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Kl:
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        cold = [f"temperature is {self.temperature}; write more than 0"] if self.temperature <= 0 else []
        light = [f"weight is {self.weight}; write 0 or more"] if self.weight < 0 else []
        refuse_all(light + cold)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    losses: tuple[Annotated[Any, Part(LOSSES)], ...] = ()
    lr: float = 0.1
    clip: float = 1.0
    steps: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        problems = [f"lr is {self.lr}; write more than 0"] if self.lr <= 0 else []
        problems += [f"clip is {self.clip}; write 0 or more"] if self.clip < 0 else []
        if (self.steps is None) == (self.epochs is None):
            problems.append("give one of steps and epochs")
        refuse_all(problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    keep: int = 1
    precision: str = "no"

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError(f"keep is {self.keep}; write 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    stages: tuple[Stage, ...]
    trainer: Trainer = Trainer()
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_all([] if self.stages else ["stages is empty; give one"])


def problems(**data: Any) -> set[str]:
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, data, "r.yaml")
    found = caught.value.problems
    assert len(set(found)) == len(found), "none is told twice"
    return set(found)


def test_several_values_of_one_and_of_several_dataclasses() -> None:
    wrong = {"steps": 1, "lr": -1, "clip": -2, "losses": [{"name": "kl"}]}
    losses = [{"name": "kl", "weight": -1, "temperature": 0}]
    assert problems(stages=[wrong, {"steps": 1, "losses": losses}], trainer={"keep": 0}) == {
        "stages.0.lr: -1.0; write more than 0",
        "stages.0.clip: -2.0; write 0 or more",
        "stages.1.losses.0.weight: -1.0; write 0 or more",
        "stages.1.losses.0.temperature: 0.0; write more than 0",
        "trainer.keep: 0; write 1 or more",
    }


def test_what_is_about_several_keys_stands_under_their_dataclass() -> None:
    assert problems(stages=[{"lr": -1, "steps": 1, "epochs": 1}]) == {
        "stages.0: give one of steps and epochs",
        "stages.0.lr: -1.0; write more than 0",
    }
    assert problems(stages=[]) == {"stages: empty; give one"}


@pytest.mark.parametrize(
    ("beside", "line"),
    [
        ({"lrr": 1}, "stages.0.lrr: unknown key; did you mean 'lr'?"),
        ({"losses": 3}, "stages.0.losses: 3 is a number; write a list, such as [a, b]"),
        ({"losses": ["kl", "kll"]}, "stages.0.losses.1: unknown loss 'kll'; did you mean 'kl'? known: kl"),
        ({"losses": [{"name": "kl", "weight": -1}]}, "stages.0.losses.0.weight: -1.0; write 0 or more"),
    ],
)
def test_a_value_beside_a_mistake_of_another_kind(beside: dict[str, Any], line: str) -> None:
    assert problems(stages=[{"lr": -1, "steps": 1, **beside}]) == {
        line,
        "stages.0.lr: -1.0; write more than 0",
    }


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ({"step": 1}, "stages.0.step: unknown key; did you mean 'steps'?"),
        ({"steps": "x"}, "stages.0.steps: 'x' is text; write a whole number"),
    ],
)
def test_nothing_is_said_of_what_only_the_mistake_left_out(stage: dict[str, Any], line: str) -> None:
    """Without `step` no length is given: but that is the typo's fault."""
    assert problems(stages=[stage]) == {line}


def test_a_stage_that_stands_in_for_another_is_not_blamed_twice() -> None:
    """The first stage, no mapping at all, has none of the second's mistakes."""
    assert problems(stages=[3, {"steps": 1, "lr": -1}], seed="x") == {
        "stages.0: 3 is a number; write a mapping (key: value)",
        "stages.1.lr: -1.0; write more than 0",
        "seed: 'x' is text; write a whole number",
    }


def test_python_is_told_all_of_them_too() -> None:
    with pytest.raises(
        ValueError, match=r"lr is -1; write more than 0; clip is -2; write 0 or more$"
    ) as caught:
        Stage(lr=-1, clip=-2, steps=1)
    assert isinstance(caught.value, WrongValues) and len(caught.value.problems) == 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    stages: tuple[RealStage, ...] = ()
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)


def test_stage_and_trainer_say_a_line_a_problem() -> None:
    wrong = {"steps": 1, "losses": ["cross_entropy"], "lr": 0, "warmup": 2, "token_fraction": 0}
    with pytest.raises(ConfigError) as caught:
        parse(Trained, {"stages": [wrong], "trainer": {"log_every": 0, "workers": -1}}, "r.yaml")
    paths = [line.split(": ")[0] for line in caught.value.problems]
    assert paths == [
        "stages.0.lr",
        "stages.0.warmup",
        "stages.0.token_fraction",
        "trainer.log_every",
        "trainer.workers",
    ]
    assert all("; write " in line for line in caught.value.problems)


def test_retired_keys_say_what_became_of_them() -> None:
    stage = {"steps": 1, "losses": [{"name": "mixer", "triangular": 1}], "cloned_lr_scale": 0.5}
    with pytest.raises(ConfigError) as caught:
        parse(Trained, {"stages": [stage], "trainer": {"batch_size": 4, "accumulation": 2}}, "r.yaml")
    found = dict(line.split(": ", 1) for line in caught.value.problems)
    assert "global_batch" in found["trainer.batch_size"] and "micro_batch" in found["trainer.accumulation"]
    for path in ("stages.0.cloned_lr_scale", "stages.0.losses.0.triangular"):
        assert "deleted: it lost in our own measurements (docs/LOG.md)" in found[path]


def test_no_retired_key_is_in_use() -> None:
    for key in RETIRED:
        owner = {"trainer": TrainerConfig, "stages": RealStage}.get(key.split(".")[0])
        assert owner is None or key.split(".")[-1] not in {field.name for field in dataclasses.fields(owner)}
