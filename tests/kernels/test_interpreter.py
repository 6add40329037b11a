"""Runs the Triton kernels in Triton's interpreter, in processes of their own.

Which way the kernels run is settled when they are imported, so one process cannot have both. Two processes,
so that on a busy machine too each stays far from the time that a test may take.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreter").glob("test_*.py"))
SCANS = [file for file in FILES if file.stem.split("_")[1] in ("compile", "conv", "scan")]
GROUPS = {"scans": SCANS, "others": [file for file in FILES if file not in SCANS]}


def interpreted(*arguments: str | Path, timeout: float) -> None:
    """pytest with these arguments, in the interpreter."""
    pytest.importorskip("triton")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "TRANSMAMBA_KERNELS": "triton",
        "OMP_NUM_THREADS": "1",
    }
    # A worker of pytest-xdist must not hand its role to the child.
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("group", GROUPS)
def test_in_interpreter(group: str) -> None:
    interpreted("-m", "not slow", *GROUPS[group], timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_every_combination_in_interpreter(group: str) -> None:
    interpreted("-m", "slow", *GROUPS[group], timeout=880)
