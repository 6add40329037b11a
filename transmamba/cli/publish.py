"""`transmamba report` and `transmamba push`: what others are to see of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import UserError


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; several are compared")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="left out: RUN/report.html, or comparison.html in the last of several",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="of several runs, print how their students differ from the first one's instead of a page",
    )


def run_report(arguments: argparse.Namespace) -> int:
    runs = [Path(run) for run in arguments.runs]
    if arguments.json:
        from ..reporting.comparison import compared

        if arguments.output is not None:
            raise UserError("--json writes no page; leave --output out")
        print(json.dumps(compared(runs), indent=2))
    elif len(runs) == 1:
        from ..reporting.report import write_report

        print(write_report(runs[0], arguments.output))
    else:
        from ..reporting.comparison import write_comparison

        print(write_comparison(runs, arguments.output))
    return 0


def add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="RUN or STUDENT")
    parser.add_argument("repo_id", help="such as me/vim-small-digits")
    parser.add_argument("--private", action="store_true")


def run_push(arguments: argparse.Namespace) -> int:
    from ..api import push_to_hub

    print(push_to_hub(arguments.model, arguments.repo_id, private=arguments.private))
    return 0
