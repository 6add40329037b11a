"""Help costs no torch: what it imports is what is measured, not how long that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from transmamba.cli.main import BENCH, VERBS

PACKAGE = Path(__file__).parents[2] / "transmamba"
HEAVY = ["torch", "transmamba_kernels", "pydantic", "rich", "yaml", "numpy", "PIL", "timm", "transformers"]

KERNELS = ("bench", "kernels")
COMMANDS: list[tuple[str, ...]] = [(), *((verb,) for verb in VERBS), *(("bench", word) for word in BENCH)]

# Each command in a fork of a process that has imported nothing. The package without its __init__: what that
# imports is its own tests' matter.
SCRIPT = """
import json, os, sys, types
for words in json.loads(sys.argv[2]):
    if os.fork():
        assert os.wait()[1] == 0, words
        continue
    sys.modules["transmamba"] = package = types.ModuleType("transmamba")
    package.__path__ = [sys.argv[1]]
    from transmamba.cli.main import main
    try:
        main([*words, "--help"])
    except SystemExit as stop:
        assert not stop.code
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
    sys.exit()
"""


@pytest.fixture(scope="module")
def imported() -> dict[tuple[str, ...], set[str]]:
    """What the help of each command imports."""
    arguments = [str(PACKAGE), json.dumps(COMMANDS)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: transmamba") == len(COMMANDS)
    found = [set(json.loads(line)) for line in done.stderr.splitlines()]
    return dict(zip(COMMANDS, found, strict=True))


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != KERNELS])
def test_help_imports_nothing_heavy(
    words: tuple[str, ...], imported: dict[tuple[str, ...], set[str]]
) -> None:
    assert "transmamba.cli.main" in imported[words] and imported[words].isdisjoint(HEAVY)


def test_the_kernels_options_are_the_kernels_own(imported: dict[tuple[str, ...], set[str]]) -> None:
    """Only this help imports them."""
    assert "transmamba_kernels" in imported[KERNELS]
