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

# The package without its __init__: what that imports is its own tests' matter.
SCRIPT = """
import json, sys, types
sys.modules["transmamba"] = package = types.ModuleType("transmamba")
package.__path__ = [sys.argv[1]]
from transmamba.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as stop:
    assert not stop.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported_by(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(PACKAGE), *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: transmamba")
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "words", [[], *([verb] for verb in VERBS), *(["bench", w] for w in BENCH if w != "kernels")]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    found = imported_by(*words, "--help")
    assert "transmamba.cli.main" in found and found.isdisjoint(HEAVY)


def test_the_kernels_options_are_the_kernels_own() -> None:
    """Only this help imports them."""
    assert "transmamba_kernels" in imported_by("bench", "kernels", "--help")
