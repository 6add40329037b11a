"""The command line in this process, a teacher, and a recipe whose whole run takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import tiny_recipe, tiny_vit

from transmamba.cli import main as cli
from transmamba.config import load as configs
from transmamba.ecosystems.find import save_model


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def refuses(self, *says: str) -> None:
        """One line, exit status 2, and what it has to say."""
        assert self.code == 2, self
        lines = [line for line in self.err.splitlines() if line.startswith(("error: ", "config error: "))]
        assert len(lines) == 1 and "Traceback" not in self.err, self.err
        for text in says:
            assert text in self.err, f"{text!r} is not in {self.err!r}"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """command("list", "losses"): `transmamba list losses`"""

    def run(*words: Any) -> Done:
        capfd.readouterr()
        try:
            code: Any = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own way
            code = stop.code
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved ViT for three classes of 8 x 8 images."""
    folder = tmp_path_factory.mktemp("teacher")
    save_model(tiny_vit(), folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Its file."""
    path = tmp_path / "recipe.yaml"
    configs.save_yaml(tiny_recipe(tmp_path, trainer__save_every=0, trainer__eval_every=0), path)
    return path
