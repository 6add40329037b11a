"""`transmamba generate-data`: texts that a language model writes, for its student to be trained on."""

from __future__ import annotations

import argparse
import dataclasses
import sys


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a causal language model: a folder, a Hugging Face id or a .gguf")
    parser.add_argument("out", help="the .jsonl to write, also .jsonl.gz, .xz, .bz2 or .zst")
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="DATA",
        help="a file of texts, or a text reader's name with its options; its train split is taken. Of "
        "conversations the assistant's last turn is written anew",
    )
    parser.add_argument("--documents", type=int, help="how many; left out: one a prompt")
    parser.add_argument(
        "--prompt-tokens", type=int, default=8, help="of a text that are given; 8 if left out"
    )
    parser.add_argument("--tokens", type=int, default=256, help="new ones at most; 256 if left out")
    parser.add_argument("--temperature", type=float, default=1.0, help="1 if left out; 0: the likeliest word")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest words; 1: from all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument(
        "--precision",
        default="no",
        choices=("no", "bf16", "fp16", "fp32"),
        help="of the weights; no: as they lie",
    )
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="of the reader, such as train=FILE (list texts)"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..config import load as configs
    from ..config.registry import TEXTS
    from ..reporting.progress import Display
    from ..runs.generate_data import Writing, generate_data
    from .arguments import reader_of

    display = Display()
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Writing)}
    written = generate_data(
        arguments.source,
        arguments.out,
        reader_of(arguments.prompts, arguments.options, TEXTS, option="--prompts"),
        configs.parse(Writing, values, "generate-data"),
        device=arguments.device,
        watch=display.watch,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(written)
    return 0
