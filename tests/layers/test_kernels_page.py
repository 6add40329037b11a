"""docs/kernels.md: its code runs, and it shows every operator's arguments as they are."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transmamba_kernels

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSMAMBA_KERNELS", raising=False)
    logger = logging.getLogger("transmamba_kernels")
    level = logger.level
    names: dict[str, Any] = {"__name__": "documentation"}
    torch.manual_seed(0)
    try:
        for i, block in enumerate(blocks("python")):
            exec(compile(block, f"docs/kernels.md, block {i}", "exec", dont_inherit=True), names)
    finally:
        logger.setLevel(level)
    assert names["tokens"].grad is not None and "patch_transformers" in names


def test_every_operator_is_there_with_its_arguments() -> None:
    shown = re.findall(r"^(\w+)\(((?:[^()]|\n)*)\)$", "\n".join(blocks("")), re.MULTILINE)
    signatures = {name: re.sub(r"\s+", " ", arguments) for name, arguments in shown}
    for name in set(transmamba_kernels.__all__) - {"patch_transformers", "seq_idx_from_cu_seqlens"}:
        parameters = inspect.signature(getattr(transmamba_kernels, name)).parameters.values()
        assert signatures.pop(name) == ", ".join(
            p.name if p.default is p.empty else f"{p.name}={_literal(p.default)}" for p in parameters
        ), name
    assert not signatures


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_every_name_of_the_package_is_there() -> None:
    from transmamba_kernels import compat

    for name in (*transmamba_kernels.__all__, *compat.__all__):
        assert name in PAGE, name
