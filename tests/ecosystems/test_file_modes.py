"""Files of weights may be read by whom any new file may be, as the umask says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import run_quietly, tiny_recipe, tiny_vit

from transmamba.ecosystems.find import save_model
from transmamba.subcloning.checkpoint import convert_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
from decoders_made import make


@pytest.fixture(params=[0o022, 0o007, 0o077])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    return {path.stat().st_mode & 0o777 for path in files}


@pytest.mark.skipif(os.name != "posix", reason="modes are Unix's")
def test_of_students(mode: int, tmp_path: Path) -> None:
    make("Llama 2").save_pretrained(tmp_path / "lm")
    convert_checkpoint(str(tmp_path / "lm"), tmp_path / "hybrid", student="hybrid_lm")
    save_model(tiny_vit(), tmp_path / "vit")
    convert_checkpoint(str(tmp_path / "vit"), tmp_path / "vim")
    for name in ("hybrid", "vit", "vim"):
        assert modes(tmp_path / name) == {mode}, name
        assert not list((tmp_path / name).glob("tmp*"))


@pytest.mark.skipif(os.name != "posix", reason="modes are Unix's")
def test_of_a_run(mode: int, tmp_path: Path) -> None:
    run_quietly(tiny_recipe(tmp_path))
    assert modes(tmp_path / "run") == {mode}
