"""Run the miniature recipes whose logged losses are kept in tests/golden, and compare.

    OMP_NUM_THREADS=1 python scripts/golden_metrics.py --output runs/golden
    OMP_NUM_THREADS=1 python scripts/golden_metrics.py --output runs/golden --only digits --write

A refactor leaves every loss as it is. Digits (no data needed), MNIST and CIFAR-10 (from $TRANSMAMBA_DATA, by
default ../shared/data): few steps of the recipes in recipes/configs, every step logged, on the CPU. Bits
depend on the processor and on torch's version: before a change is blamed, run the commit that wrote the
files. `--write` renews them; say why in the commit.
"""

import argparse
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from compare_losses import MEASURED, differences, read_rows

from transmamba.cli.mistakes import guarded
from transmamba.reporting.tracking import METRICS_FILE, read_metrics
from transmamba.runs.run import load_recipe, run

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
CONFIGS = ROOT / "recipes" / "configs"
IMAGES_PER_CLASS = {"train": 40, "test": 10}

EVERY_STEP = ["trainer.log_every=1", "trainer.save_every=0", "trainer.workers=0", "wandb=null"]


def recipes(output: Path, data: Path) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Golden set -> run -> (recipe, overrides), in the order in which they run."""
    cifar10 = [
        f"task.data.root={output / 'cifar10_images'}",
        "trainer.precision=no",
        "trainer.cuda_graphs=false",
    ]
    return {
        "digits": {
            "teacher": ("digits_vit.yaml", ["stages.0.epochs=2"]),
            "student": (
                "digits_vit_to_vim.yaml",
                [
                    "teacher_recipe=null",
                    f"teacher.model={output / 'digits.teacher'}",
                    "stages.0.steps=8",
                    "stages.1.steps=12",
                    "trainer.eval_every=6",
                ],
            ),
        },
        "mnist": {
            "student": (
                "mnist_vit_to_vim.yaml",
                [
                    f"task.data.path={data / 'mnist' / 'mnist.npz'}",
                    f"teacher.checkpoint={data / 'checkpoints' / 'vit_mnist_mit' / 'vit_mnist_model.pth'}",
                    "trainer.global_batch=32",
                    "stages.0.steps=8",
                    "stages.1.steps=8",
                    "stages.1.token_fraction=0.5",
                ],
            )
        },
        "cifar10": {
            "teacher": (
                "cifar10_vit.yaml",
                [
                    *cifar10,
                    "trainer.global_batch=16",
                    "stages.0.epochs=null",
                    "stages.0.steps=4",
                    "trainer.eval_every=2",
                ],
            ),
            "student": (
                "cifar10_vit_to_vim.yaml",
                [
                    *cifar10,
                    "trainer.global_batch=32",
                    "trainer.micro_batch=16",
                    f"teacher.model={output / 'cifar10.teacher'}",
                    "init.calibration_images=32",
                    "stages.0.percent=null",
                    "stages.0.steps=3",
                    "stages.1.steps=4",
                    "trainer.eval_every=2",
                ],
            ),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path, default=Path("runs/golden"))
    parser.add_argument("--only", action="append", default=[], help="digits, mnist, cifar10")
    parser.add_argument("--write", action="store_true", help="renew the files in tests/golden")
    arguments = parser.parse_args()
    return guarded(lambda: compare_all(arguments))


def compare_all(arguments: argparse.Namespace) -> int:
    data = Path(os.environ.get("TRANSMAMBA_DATA", ROOT.parent / "shared" / "data"))
    output = arguments.output.resolve()
    different = 0
    for name, runs in recipes(output, data).items():
        if arguments.only and name not in arguments.only:
            continue
        if name == "cifar10":
            extract_cifar10(data / "cifar10", output / "cifar10_images")
        for part, (recipe, overrides) in runs.items():
            folder = output / f"{name}.{part}"
            chosen = [*EVERY_STEP, *overrides, f"output_dir={folder}"]
            run(load_recipe(CONFIGS / recipe, chosen), overwrite=True, quiet=True)
            different += settle(folder, GOLDEN / f"{name}_{part}.jsonl", arguments.write)
    return 1 if different else 0


def settle(folder: Path, golden: Path, write: bool) -> bool:
    """Whether a run's rows differ from the kept ones; with `write` they become the kept ones."""
    if write:
        rows = (
            {k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(folder / METRICS_FILE)
        )
        golden.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"written: {golden}")
        return False
    found: list[Any] = list(differences(read_rows(golden), read_rows(folder), 0.0))
    print(
        f"{golden.stem}: " + (f"differs from step {found[0][0]}: {found[0][1][0]}" if found else "identical")
    )
    return bool(found)


def extract_cifar10(source: Path, target: Path) -> None:
    """The first images of each class, as class folders."""
    if target.is_dir():
        return
    for split, most in IMAGES_PER_CLASS.items():
        taken: dict[str, int] = {}
        with tarfile.open(source / f"cifar10_{split}_jpeg.tar.xz") as archive:
            for member in archive:
                label = Path(member.name).parent.name
                if not member.isfile() or taken.get(label, 0) >= most:
                    continue
                taken[label] = taken.get(label, 0) + 1
                file = target / split / label / Path(member.name).name
                file.parent.mkdir(parents=True, exist_ok=True)
                opened = archive.extractfile(member)
                assert isinstance(opened, io.BufferedReader), "a file of the archive"
                file.write_bytes(opened.read())


if __name__ == "__main__":
    sys.exit(main())
