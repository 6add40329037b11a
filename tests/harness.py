"""A recipe so small that a whole run takes about a second, and processes to run it in.

Children come from a forkserver that has imported everything already, so that killing one costs no import.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import transmamba.runs.run
import transmamba.training.trainer
from transmamba.config import load as configs
from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch, image_batch
from transmamba.distillation.distiller import Distiller
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe
from transmamba.teachers.load import adapt_teacher
from transmamba.teachers.teacher import Teacher
from transmamba.training.interrupted import Interrupted

# what `accelerate launch` sets for recipes/accelerate/fsdp2.yaml
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
TIMING = frozenset({"waited", "seconds", "data_wait", "peak_memory_mb", "minutes"})
TEACHER = dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
VIM = dict(patch_size=4, embed_dim=12, depth=4, d_state=4)
SHALLOW = dict(VIM, depth=2)  # for FSDP2 and ZeRO, which take their time for each weight, however small

# What the CIFAR-10 recipe is made of, as changes of a tiny recipe.
FULL_METHOD: dict[str, Any] = dict(
    init=dict(layers="all", calibration_images=8, mimic=True, fold=True, average=True),
    stages=[
        dict(name="align", losses=["mixer"], steps=5, lr=3e-3),
        dict(
            name="distill",
            losses=[
                "kl",
                dict(name="feature", standardize=True),
                dict(name="bidirectional", standardize=True),
            ],
            steps=8,
            lr=3e-3,
            token_fraction=0.6,
        ),
    ],
)

_context = multiprocessing.get_context("forkserver")
# What a run imports at once or later; this file itself is not on the forkserver's path.
_PARTS = (
    "runs.run",
    "cli.launch",
    "students.vim",
    "students.ssd_vit",
    "teachers.auto",
    "tasks.image_classification",
    "evaluation.classification",
    "evaluation.once",
    "training.strategies.fsdp2",
)
# this file's own, and what a run imports of others once it draws, saves and writes its card; the last is
# DeepSpeed's, which may be absent
_OTHERS = ["pytest", "jinja2", "numpy.ctypeslib", "PIL.ImageFile", "rich._emoji_codes", "encodings.idna"]
_OTHERS += ["torch.utils.serialization.config", "accelerate", "torch._dynamo", "torchvision.transforms.v2"]
_OTHERS += ["torch._inductor.compile_fx"]
_context.set_forkserver_preload(
    [*(f"transmamba.{name}" for name in _PARTS), *_OTHERS[: None if find_spec("deepspeed") else -1]]
)


def tiny_vit(num_classes: int = 3) -> torch.nn.Module:
    """A ViT on 8 x 8 pixels with four patches; its weights are spread wide enough for features to differ."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **TEACHER)
    model.transmamba_args = TEACHER  # timm before 1.0.31 does not remember them
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tiny_teacher(num_classes: int = 3) -> Teacher:
    return adapt_teacher(tiny_vit(num_classes))


def tiny_student(kind: str = "vim", num_classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(1)
    if kind == "vim":
        return timm.create_model("vim_micro_patch2_8", img_size=8, num_classes=num_classes, **VIM)
    return timm.create_model("ssd_vit_micro_patch2_8", num_classes=num_classes, **TEACHER)


def classifier_losses() -> list[str]:
    """Registered losses that a classifier of images can have; the others say at once what they compare,
    which it has not."""
    found = []
    for name in sorted(LOSSES):
        try:
            Distiller(tiny_student(), tiny_teacher(), (name,))
        except UserError as error:
            assert str(error).startswith(f"loss {name} compares "), error
        else:
            found.append(name)
    return found


def tiny_batch(size: int, seed: int = 0, num_classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return image_batch(images, torch.randint(num_classes, (size,), generator=generator))


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch of images, counted anew."""
    return image_batch(batch.inputs["image"][rows], batch.targets["classes"][rows], batch.index[rows])


def tiny_recipe(folder: Path, **changes: Any) -> Recipe:
    """Two stages of 5 and 8 steps in folder/run, from the teacher in folder/teacher (made if missing).

    changes: `trainer__save_every=2` for nested keys, as in keyword arguments.
    """
    if not (folder / "teacher").is_dir():
        save_model(tiny_vit(), folder / "teacher")
    data = dict(name="synthetic", num_train=37, num_test=11, num_classes=3, size=8)
    values: dict[str, Any] = dict(
        output_dir=str(folder / "run"),
        task=dict(name="image_classification", data=data, augment=dict(crop_padding=1, hflip=True)),
        teacher=dict(name="timm_vit", model=str(folder / "teacher")),
        student=dict(name="vim", model="vim_micro_patch2_8", kwargs=dict(VIM, drop_path_rate=0.1)),
        init=dict(layers="all", calibration_images=8),
        stages=[
            dict(name="align", losses=["mixer"], steps=5, lr=3e-3),
            dict(
                name="distill",
                losses=["cross_entropy", "kl", "bidirectional"],
                steps=8,
                lr=3e-3,
                token_fraction=0.6,
            ),
        ],
        trainer=dict(
            global_batch=8, micro_batch=4, save_every=3, log_every=2, eval_every=4, eval_batch_size=4
        ),
        seed=3,
    )
    for path, value in copy.deepcopy(changes).items():
        *above, last = path.split("__")
        target = values
        for key in above:
            target = target[key]
        target[last] = value
    return configs.parse(Recipe, values, "tiny")


def run_quietly(recipe: Recipe, **options: Any) -> dict[str, Any]:
    """`transmamba.runs.run.run` without drawing the report, in a process of its own too."""
    drawn = transmamba.runs.run.write_report
    transmamba.runs.run.write_report = lambda folder: None  # type: ignore[assignment]
    try:
        return transmamba.runs.run.run(recipe, quiet=True, **options)
    finally:
        transmamba.runs.run.write_report = drawn


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """`target(*arguments)` in a new process with one thread; exit code 0, or 1 with a traceback."""
    process = _context.Process(target=_child, args=(target, arguments, {}))
    process.start()
    return process


def start_ranks(world: int, target: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """`target(*arguments)` as each of `world` ranks on gloo, in processes of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common["ACCELERATE_USE_CPU"] = "true"
    processes = []
    for rank in range(world):
        environment = {key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(_context.Process(target=_child, args=(target, arguments, environment)))
        processes[-1].start()
    return processes


def in_ranks(world: int, target: Callable[..., Any], *arguments: Any, timeout: float = 120) -> None:
    """`target(*arguments)` as each of `world` ranks on gloo. Raises AssertionError when one fails."""
    finish(*start_ranks(world, target, *arguments), timeout=timeout)


def finish(*processes: BaseProcess, timeout: float = 120) -> None:
    """Wait for processes that must exit with 0; the others are killed when one does not."""
    until = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes) and time.monotonic() < until:
        for process in processes:
            process.join(0.02)
        if any(process.exitcode not in (None, 0) for process in processes):
            break
    for process in processes:
        if process.exitcode is None:
            process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _child(target: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    gc.freeze()  # all that the forkserver imported is no garbage
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in an ordinary process
    torch.set_num_threads(1)
    try:
        target(*arguments)
    except Interrupted:
        code = 0  # what `launch.run_recipe` makes of it
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    if torch.distributed.is_initialized():
        with contextlib.suppress(Exception):
            torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill(process: BaseProcess) -> bool:
    """SIGKILL; whether it was still at work."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def is_timing(key: str) -> bool:
    """Whether a key's value differs from run to run."""
    return key in TIMING or key.endswith("_per_second")


def without_timing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_timing(item) for key, item in value.items() if not is_timing(key)}
    return value


def metrics_rows(run: Path) -> list[dict[str, Any]]:
    return [without_timing(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_near(run: Path, wanted: Path) -> None:
    """Every number logged and every weight, but for rounding."""
    ours, theirs = metrics_rows(run), metrics_rows(wanted)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and mine.pop("stage_name", "") == other.pop("stage_name", "")
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    one, two = (load_file(folder / "student/model.safetensors") for folder in (run, wanted))
    assert one.keys() == two.keys()
    for name, weight in two.items():
        torch.testing.assert_close(one[name], weight, rtol=1e-4, atol=1e-5)


def signalled(recipe: Recipe, number: signal.Signals, step: int, rank: int | None = None) -> None:
    """Runs, and sends itself a signal before `step`; of several ranks all of them, or only one."""
    real = transmamba.training.trainer.Trainer._step

    def watched(self: Any, *arguments: Any) -> bool:
        if self.progress.step == step and rank in (None, self.accelerator.process_index):
            os.kill(os.getpid(), number)
        return real(self, *arguments)

    transmamba.training.trainer.Trainer._step = watched  # type: ignore[method-assign]
    run_quietly(recipe)
    raise AssertionError("the run did not stop")
