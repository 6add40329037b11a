"""CLIP_benchmark, in a process of its own, measures on a student what we measure.

Needs `pip install clip_benchmark requests` (its dependencies lack the second) and is skipped without.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import made

import transmamba
from transmamba.config import load as configs
from transmamba.data.scenes import Scenes
from transmamba.tasks.image_text import ImageTextConfig

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("clip_benchmark", "webdataset", "requests")),
    reason="needs clip_benchmark: pip install clip_benchmark requests",
)

COUNT, SIDE = 120, 16
CLASSES = ("red disc", "green arrow", "blue box", "yellow heart", "grey cross", "white flower", "pink oval")
TEMPLATES = ("a drawing of a {c}.", "{c} on a ground")
# its accuracy() gives float() an array of one number, which numpy 2.4 refuses; the same number, as one
RUN = """
import sys
import transmamba  # registers the towers
from clip_benchmark import cli
from clip_benchmark.metrics import zeroshot_classification

def accuracy(output, target, topk=(1,)):
    ranked = output.topk(max(topk), dim=1).indices == target[:, None]
    return [ranked[:, :k].any(dim=1).double().mean().item() for k in topk]

zeroshot_classification.accuracy = accuracy
cli.main()
"""


def benchmark(student: Path, data: Path, task: str) -> dict[str, float]:
    """What it prints to its file, of local shards."""
    output = data / "found.json"
    words = ["eval", "--model", f"local-dir:{student}", "--pretrained", "x", "--dataset", f"wds/{data.name}"]
    words += ["--dataset_root", str(data), "--task", task, "--split", "test", "--recall_k", "1", "5", "10"]
    words += ["--batch_size", "32", "--num_workers", "0", "--no_amp", "--output", str(output), "--quiet"]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        cwd=data,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())["metrics"]


def shards(folder: Path, pictures: Sequence[bytes], beside: Sequence[str], kind: str) -> None:
    """Two of them, with a text file beside each picture, as CLIP_benchmark wants its folders."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("2")
    half = len(pictures) // 2
    for number, places in enumerate((range(half), range(half, len(pictures)))):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for place in places:
                for ending, content in (("png", pictures[place]), (kind, beside[place].encode())):
                    entry = tarfile.TarInfo(f"{place:05}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(Scenes(split="test", count=COUNT, side=SIDE).picture(number)).save(file, "PNG")
    return file.getvalue()


def captions(number: int) -> list[str]:
    """Two of a picture."""
    said = Scenes(split="test", count=COUNT, side=SIDE).caption(number)
    return [said, f"{CLASSES[number % 7]} {number} with {said}"]


def embedded(model: Any, transform: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all pictures (N, E) and of their captions (2 N, E), not of length 1."""
    pixels = [transform(Image.open(io.BytesIO(png(number)))) for number in range(COUNT)]
    texts = tokenizer([text for number in range(COUNT) for text in captions(number)])
    with torch.no_grad():
        return model.encode_image(torch.stack(pixels)), model.encode_text(texts)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both towers Mamba; instead of training, its projections are such that pictures differ, and that texts
    come as near theirs as least squares can bring them."""
    folder = tmp_path_factory.mktemp("student") / "clip"
    kinds: dict[str, Any] = {"image": {"kind": "vim"}, "text": {"kind": "mamba2"}}
    model, _ = transmamba.convert(made(text={"width": 64}, quick_gelu=True), "clip", **kinds)
    transmamba.save_student(model, folder)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    head, projection = (model.get_submodule(name) for name in ("visual.head.proj", "text.text_projection"))
    features: list[torch.Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    image, _ = embedded(model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}"))
    hook.remove()
    shared = torch.nn.functional.normalize(image.mean(dim=0), dim=0)
    apart = torch.eye(len(shared)) - torch.outer(shared, shared)
    wanted = torch.nn.functional.normalize(image @ apart, dim=-1).repeat_interleave(2, dim=0)
    with torch.no_grad():
        head.weight.copy_(apart @ head.weight)
        projection.weight.copy_(torch.linalg.lstsq(torch.cat(features), wanted).solution.T)
    transmamba.save_student(model, folder, overwrite=True)
    return folder


def measured(student: Path, values: dict[str, Any]) -> dict[str, float]:
    task = configs.parse(ImageTextConfig, values, "task")
    return transmamba.evaluate(student, task, device="cpu")["student"]


def test_retrieval(student: Path, tmp_path: Path) -> None:
    pictures = [png(number) for number in range(COUNT)]
    folder = tmp_path / "retrieval"
    shards(folder, pictures, ["\n".join(captions(number)) for number in range(COUNT)], "txt")
    (folder / "dataset_type.txt").write_text("retrieval")
    theirs = benchmark(student, folder, "zeroshot_retrieval")

    values = {"data": {"name": "webdataset", "test": str(folder / "test" / "{0..1}.tar")}}
    ours = measured(student, values)
    for k in (1, 5, 10):
        assert ours[f"t2i_r{k}"] == pytest.approx(100 * theirs[f"image_retrieval_recall@{k}"], abs=0.1)
        assert ours[f"i2t_r{k}"] == pytest.approx(100 * theirs[f"text_retrieval_recall@{k}"], abs=0.1)
    assert 10 < ours["mean_recall"] < 95  # by chance 4.4


def test_zero_shot_classification(student: Path, tmp_path: Path) -> None:
    """Two of three pictures are of the class that open_clip alone finds."""
    pictures = [png(number) for number in range(COUNT)]
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{student}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{student}")
    image, _ = embedded(model.eval(), transform, tokenizer)
    with torch.no_grad():
        named = [template.format(c=name) for name in CLASSES for template in TEMPLATES]
        vectors = model.encode_text(tokenizer(named), normalize=True).unflatten(0, (len(CLASSES), -1))
    labels = (image @ torch.nn.functional.normalize(vectors.mean(dim=1), dim=-1).T).argmax(dim=1).numpy()
    labels = np.where(np.arange(COUNT) % 3, labels, np.arange(COUNT) % len(CLASSES))
    names = sorted(CLASSES)
    folder, images_folder = tmp_path / "classes", tmp_path / "images"
    classes = [names.index(CLASSES[label]) for label in labels]
    shards(folder, pictures, [str(label) for label in classes], "cls")
    (folder / "classnames.txt").write_text("\n".join(names))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    theirs = benchmark(student, folder, "zeroshot_classification")

    for number, picture in enumerate(pictures):
        path = images_folder / "test" / names[classes[number]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    for name in names:
        (images_folder / "test" / name).mkdir(parents=True, exist_ok=True)
    values = {
        "data": {"name": "scenes", "side": SIDE, "count_train": 2, "count_test": 2},
        "zero_shot": [
            {
                "data": {"name": "image_folder", "root": str(images_folder)},
                "templates": str(folder / "zeroshot_classification_templates.txt"),
            }
        ],
    }
    ours = measured(student, values)
    for mine, other in (("top1", "acc1"), ("top5", "acc5"), ("per_class", "mean_per_class_recall")):
        assert ours[f"zero_shot_{mine}"] == pytest.approx(100 * theirs[other], abs=0.1), mine
    assert 15 < ours["zero_shot_top1"] < 95
