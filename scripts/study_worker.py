"""A process of `scripts/study.py --keep-process`: recipes in turn, each as recipes/distill.py runs it.

A line of JSON on standard input is a run: its `arguments` and its `log`. When it has ended its status stands
on standard output. It ends with its input.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch


def main() -> int:
    # what a run writes goes to its log, on the level of files, for libraries write there themselves
    told = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        with Path(asked["log"]).open("w") as log:
            status = in_log(asked["arguments"], log)
        told.write(f"{status}\n")
        told.flush()
        if status:
            return 1  # what a failed run leaves behind in a process nobody knows
    return 0


def in_log(arguments: Sequence[str], log: IO[str]) -> int:
    """One run, whose output and errors are in `log`."""
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        return run_one(arguments)
    except Exception:  # in the log, as it would be of a process
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_one(arguments: Sequence[str]) -> int:
    """One run as in a new process: its status."""
    from accelerate.state import AcceleratorState, GradientState

    from transmamba.cli.launch import main as launch

    # Accelerate keeps the precision of the first run for all that follow
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    status = launch(arguments)
    gc.collect()
    return status


if __name__ == "__main__":
    sys.exit(main())
