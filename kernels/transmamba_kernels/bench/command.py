"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .measure import bench_kernels


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--ops", nargs="+", default=[], metavar="OP", help="operators; left out: all")
    parser.add_argument(
        "--shapes", nargs="+", default=[], metavar="LABEL", help="such as L197, or all of a label in quotes"
    )
    parser.add_argument("--quick", action="store_true", help="one shape an operator, few rounds")
    parser.add_argument("--graphs", action="store_true", help="also as CUDA graphs, without launch times")
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument("--out", metavar="FOLDER", help="for kernels.json and kernels.png")


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables as they come. Raises ValueError as `bench_kernels` does."""

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    bench_kernels(
        arguments.ops,
        arguments.shapes,
        quick=arguments.quick,
        out=arguments.out,
        device=arguments.device,
        graphs=arguments.graphs,
        say=say,
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m transmamba_kernels.bench", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except ValueError as error:
        parser.error(str(error))
