"""Invariant 3: losses see only Outputs, so they cannot tell whether the distiller is wrapped."""

from __future__ import annotations

import ast
from pathlib import Path

import harness
import pytest
import torch

import transmamba.losses
from transmamba.config.registry import LOSSES
from transmamba.distillation.distiller import Distiller

FILES = sorted(Path(transmamba.losses.__file__).parent.glob("*.py"))
MODELS = {"students", "teachers", "layers", "distiller", "training", "accelerate", "timm"}
FORBIDDEN = {
    "module": "a wrapper's insides",
    "register_forward_hook": "a hook",
    "register_forward_pre_hook": "a hook",
    "register_full_backward_hook": "a hook",
    "register_hook": "a hook",
    "unwrap_model": "a wrapper's insides",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_wrapped_modules_and_no_hooks(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN:
            pytest.fail(f"{path.name}:{node.lineno}: .{node.attr} is {FORBIDDEN[node.attr]}")
        if isinstance(node, ast.Attribute) and node.attr in ("teacher", "student"):
            of = ast.unparse(node.value)
            assert of in ("signals", "stream"), f"{path.name}:{node.lineno}: {of}.{node.attr} is a model"
        if isinstance(node, ast.ImportFrom):
            imported = f"{node.module or ''}.{'.'.join(alias.name for alias in node.names)}"
            assert not MODELS & set(imported.split(".")), f"{path.name} imports {imported}"


def test_files_are_found() -> None:
    assert {path.stem for path in FILES} >= set(LOSSES)


def terms_agree() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator()
    for kind in ("vim", "ssd_vit"):
        distiller = Distiller(
            harness.tiny_student(kind),
            harness.tiny_teacher(),
            harness.classifier_losses(),
            token_fraction=0.6,
        )
        batch = harness.tiny_batch(4, seed=accelerator.process_index)
        drawn = distiller.draw_tokens(7, batch.index.device)
        assert list(drawn) == ["image"]
        plain = distiller(batch, drawn)
        wrapped = accelerator.prepare(distiller)
        assert wrapped is not distiller and wrapped.module is distiller
        for name, term in wrapped(batch, drawn).items():
            assert torch.equal(term.sum, plain[name].sum)
            assert term.parts is None or torch.equal(term.parts, plain[name].parts)


def test_the_same_inside_ddp() -> None:
    harness.in_ranks(2, terms_agree)
