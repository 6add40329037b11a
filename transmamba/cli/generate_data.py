"""`transmamba generate-data`: what a model writes, for its student to be trained on: texts, or answers to
questions about pictures."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

# what texts have and answers do not
_OF_TEXTS = ("prompt_tokens", "temperature", "top_p")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a causal language model, or a LLaVA: a folder, a Hugging Face id or a .gguf"
    )
    parser.add_argument("out", help="the .jsonl to write, also .jsonl.gz, .xz, .bz2 or .zst")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--questions",
        metavar="DATA",
        help="a reader of questions with its options, answered by a LLaVA: its train split is taken. A "
        "recipe reads the file as {name: answered, data: READER, answers: OUT}",
    )
    asked.add_argument(
        "--prompts",
        metavar="DATA",
        help="a file of texts, or a text reader's name with its options; its train split is taken. Of "
        "conversations the assistant's last turn is written anew",
    )
    parser.add_argument(
        "--rationales", action="store_true", help="answer in stages, behind reasons; with --questions"
    )
    parser.add_argument("--documents", type=int, help="how many; left out: one a prompt")
    parser.add_argument("--prompt-tokens", type=int, help="of a text that are given; 8 if left out")
    parser.add_argument(
        "--tokens", type=int, help="new ones at most; 256 if left out, of an answer 16, in stages 384"
    )
    parser.add_argument("--temperature", type=float, help="1 if left out; 0: the likeliest word")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest words; 1 if left out: from all")
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
    from ..config.registry import QUESTIONS, TEXTS
    from ..errors import UserError
    from ..reporting.progress import Display
    from ..runs.generate_answers import Answering, generate_answers
    from ..runs.generate_data import Writing, generate_data
    from .arguments import reader_of

    made: Any = Writing if arguments.questions is None else Answering
    names = {field.name for field in dataclasses.fields(made)}
    said = {name: getattr(arguments, name) for name in (*_OF_TEXTS, "tokens")}
    said = {name: value for name, value in said.items() if value is not None}
    kind = "questions, which are answered by the likeliest words" if arguments.prompts is None else "texts"
    if odd := [name for name in said if name not in names]:
        raise UserError(f"--{odd[0].replace('_', '-')} does not go with {kind}; leave it out")
    if arguments.rationales and arguments.questions is None:
        raise UserError("--rationales goes with --questions; leave it out")
    values = {name: getattr(arguments, name) for name in names if name not in (*_OF_TEXTS, "tokens")} | said
    registry, option = (TEXTS, "--prompts") if arguments.questions is None else (QUESTIONS, "--questions")
    display, write = Display(), generate_data if arguments.questions is None else generate_answers
    written = write(
        arguments.source,
        arguments.out,
        reader_of(arguments.prompts or arguments.questions, arguments.options, registry, option=option),
        configs.parse(made, values, "generate-data"),
        device=arguments.device,
        watch=display.watch,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(written)
    return 0
