"""Without peft: one line that says what to install, whatever was asked for."""

from __future__ import annotations

from pathlib import Path

import fresh_process
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] == "peft" else real(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
from transmamba.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
SAYS = "adapters need peft: pip install 'transmamba[peft]'"
RECIPE = str(ROOT / "recipes/configs/digits_adapter.yaml")


@pytest.mark.parametrize(
    ("words", "others"),
    [
        (["distill", "--config", RECIPE], []),
        (["distill", "--config", RECIPE, "trainer.wrkers=2"], ["trainer.wrkers: unknown key"]),
        (["bench", "adapters", "--model", "mamba-130m", "--device", "cpu"], []),
    ],
)
def test_it_is_said_once(words: list[str], others: list[str], tmp_path: Path) -> None:
    done = fresh_process.run(PROGRAM, *words, folder=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.count("peft: pip install") == 1 and SAYS in done.stderr
    assert len(done.stderr.splitlines()) == 1 + (len(others) + 1 if others else 0)
    assert all(other in done.stderr for other in others)
    assert not any(tmp_path.iterdir())
