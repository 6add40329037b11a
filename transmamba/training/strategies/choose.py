"""Which strategy a launch means, and what it asks for that no strategy carries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..stage import TrainerConfig
from .strategy import Plain, Strategy

if TYPE_CHECKING:
    from accelerate import Accelerator

FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
_NONE = ("", "none", "false", "no", "0")
# what a launcher's file may ask of them and we do not do: variable, as the file calls it, what to write
_OFFLOAD = "ACCELERATE_DEEPSPEED_OFFLOAD"
_NOT_CARRIED = (
    (FSDP, "FSDP_OFFLOAD_PARAMS", "fsdp_config.fsdp_offload_params", "false"),
    (FSDP, "FSDP_ACTIVATION_CHECKPOINTING", "fsdp_config.fsdp_activation_checkpointing", "false"),
    (DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE", "deepspeed_config.deepspeed_config_file", "zero_stage"),
    (
        DEEPSPEED,
        f"{_OFFLOAD}_OPTIMIZER_DEVICE",
        "deepspeed_config.offload_optimizer_device",
        "none",
    ),
    (DEEPSPEED, f"{_OFFLOAD}_PARAM_DEVICE", "deepspeed_config.offload_param_device", "none"),
    (DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO3_INIT", "deepspeed_config.zero3_init_flag", "false"),
)


def asked(variable: str) -> bool:
    """Whether the launcher set it."""
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def strategy_of(accelerator: Accelerator, config: TrainerConfig) -> Strategy:
    """The strategy that `accelerate launch`, or whoever made the accelerator, asks for.

    On the CPU Accelerate forgets that it was asked for FSDP or DeepSpeed: so the launcher's own variables
    are read. Raises UserError for what the strategy cannot carry.
    """
    kind = str(accelerator.distributed_type.value)
    if kind == "DEEPSPEED" or asked(DEEPSPEED):
        strategy = _zero(accelerator)
    elif kind == "FSDP" or asked(FSDP):
        strategy = _fsdp(accelerator)
    else:
        return Plain(accelerator)
    check_carried(strategy.name, config)
    return strategy


def check_carried(name: str, config: TrainerConfig) -> None:
    """Raises UserError for an option of the recipe, or of the launcher, that sharding does not carry."""
    if config.cuda_graphs:
        raise UserError(
            f"trainer.cuda_graphs is true, but under {name} weights move while a step is recorded; "
            "write trainer.cuda_graphs=false, or launch with recipes/accelerate/single_gpu.yaml"
        )
    if config.compile and name != "fsdp2":
        raise UserError(
            f"trainer.compile is true, which {name} does not carry; write trainer.compile=false, or launch "
            "with recipes/accelerate/fsdp2.yaml"
        )
    if config.precision == "fp16":
        raise UserError(
            f"trainer.precision is fp16, whose loss scale {name} does not carry; write trainer.precision=bf16"
        )
    used = FSDP if name == "fsdp2" else DEEPSPEED
    for strategy, variable, key, instead in _NOT_CARRIED:
        value = os.environ.get(variable, "")
        if strategy == used and value.lower() not in _NONE:
            raise UserError(f"{key} is {value}, which {name} does not carry here; write {instead}")


def _fsdp(accelerator: Accelerator) -> Strategy:
    from .fsdp2 import Fsdp2

    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    version = str(plugin.fsdp_version) if plugin is not None else os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"fsdp_config.fsdp_version is {version}; write 2, as recipes/accelerate/fsdp2.yaml does"
        )
    # an older launcher names FSDP1's strategies here, of which FULL_SHARD is this
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return Fsdp2(accelerator, reshard=reshard in ("true", "1", "yes", "full_shard"))


def _zero(accelerator: Accelerator) -> Strategy:
    try:
        from .zero import Zero
    except ImportError as error:
        raise UserError("ZeRO needs DeepSpeed; pip install 'transmamba[deepspeed]'") from error
    plugin: Any = getattr(accelerator.state, "deepspeed_plugin", None)
    told = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    stage = str(plugin.zero_stage) if plugin is not None else told
    if stage not in ("2", "3"):
        raise UserError(
            f"deepspeed_config.zero_stage is {stage}; write 2 or 3, or use recipes/accelerate/ddp.yaml"
        )
    return Zero(accelerator, int(stage))
