"""Which strategy a launch means, and what is refused by name before anything is built."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import harness
import pytest
import yaml
from accelerate import Accelerator

from transmamba.errors import UserError
from transmamba.runs.build import make_accelerator
from transmamba.training.stage import TrainerConfig
from transmamba.training.strategies import Plain, strategy_of

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def chosen(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **trainer: Any) -> str:
    with monkeypatch.context() as patch:
        accelerator = Accelerator(cpu=True)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        return strategy_of(accelerator, TrainerConfig(**trainer)).name


@pytest.fixture(autouse=True)
def deepspeed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def environment_of(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file` sets for each process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = ["--config_file", str(RECIPES / f"{name}.yaml"), "recipes/distill.py"]
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if not parsed.use_deepspeed:
        return prepare_multi_gpu_env(parsed)
    parsed.deepspeed_fields_from_accelerate_config = ""  # as the launch command does
    return prepare_deepspeed_cmd_env(parsed)[1]


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_a_file_of_ours_means_its_strategy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "fsdp2":
        pytest.importorskip("deepspeed", reason="ZeRO needs pip install 'transmamba[deepspeed]'")
    environment = {
        key: value
        for key, value in environment_of(name).items()
        if key.startswith(("ACCELERATE_USE", "ACCELERATE_DEEPSPEED", "FSDP"))
    }
    assert chosen(monkeypatch, environment) == name


def test_every_file_leaves_precision_to_the_recipe() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert {path.stem for path in files} >= {"cpu", "single_gpu", "ddp", "zero2", "zero3", "fsdp2"}
    for path in files:
        assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"
        assert f"recipes/accelerate/{path.name}" in path.read_text()


def test_without_any_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(strategy_of(Accelerator(cpu=True), TrainerConfig(cuda_graphs=True)), Plain)


@pytest.mark.parametrize(
    ("environment", "trainer", "told"),
    [
        (harness.FSDP2, dict(cuda_graphs=True), r"trainer\.cuda_graphs is true.* fsdp2 .*cuda_graphs=false"),
        (harness.FSDP2, dict(precision="fp16"), r"trainer\.precision is fp16.* fsdp2 .*precision=bf16"),
        (harness.FSDP2 | {"FSDP_VERSION": "1"}, {}, r"fsdp_version is 1; write 2"),
        (
            harness.FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"},
            {},
            r"fsdp_offload_params is true.* fsdp2 .*write false",
        ),
        (ZERO, dict(cuda_graphs=True), r"trainer\.cuda_graphs is true.* zero3 "),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, {}, r"zero_stage is 1; write 2 or 3"),
        (
            ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            {},
            r"offload_optimizer_device is cpu.* zero3 .*write none",
        ),
        (ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, {}, r"deepspeed_config_file is ds\.json"),
    ],
)
def test_what_a_strategy_cannot_carry_is_refused(
    environment: dict[str, str], trainer: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment.keys() & ZERO.keys():
        pytest.importorskip("deepspeed", reason="ZeRO needs pip install 'transmamba[deepspeed]'")
    with pytest.raises(UserError, match=told) as caught:
        chosen(monkeypatch, environment, **trainer)
    assert "\n" not in str(caught.value)


def test_zero_without_deepspeed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "transmamba.training.strategies.zero", raising=False)
    with pytest.raises(UserError, match=r"transmamba\[deepspeed\]"):
        chosen(monkeypatch, ZERO)
    importlib.invalidate_caches()


def test_it_is_refused_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = harness.tiny_recipe(tmp_path, trainer=dict(global_batch=8, cuda_graphs=True))
    for variable, value in harness.FSDP2.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match="cuda_graphs"):
        make_accelerator(recipe)
