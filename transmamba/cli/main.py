"""`transmamba VERB ...`: thin, each verb calls one function.

Nothing heavy is imported before a verb runs: help costs no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError, suggest
from . import (
    bench,
    convert,
    evaluate,
    generate_data,
    inspect,
    launch,
    listing,
    predict,
    publish,
    search_peft,
    select_layers,
)
from .mistakes import guarded
from .words import Parser, parsed


@dataclass(frozen=True)
class Verb:
    """What a verb is for in a few words, the arguments it adds to a parser, and what it runs."""

    text: str
    add: Callable[[argparse.ArgumentParser], Any]
    run: Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Verbs:
    """A verb that is several."""

    text: str
    verbs: Mapping[str, Verb]


BENCH = {
    "recipe": Verb("time a recipe's step beside plain training", bench.add_recipe, bench.run_recipe),
    "inference": Verb("time students beside their teacher", bench.add_inference, bench.run_inference),
    "experts": Verb("time experts beside an MLP of as much work", bench.add_experts, bench.run_experts),
    "decode": Verb("time a hybrid language model beside its teacher", bench.add_decode, bench.run_decode),
    "adapters": Verb("time adapters beside full tuning", bench.add_adapters, bench.run_adapters),
    "kernels": Verb("time kernels, beside others where installed", bench.add_kernels, bench.run_kernels),
}
VERBS: dict[str, Verb | Verbs] = {
    "inspect": Verb("say what a model is as a teacher", inspect.add, inspect.run),
    "convert": Verb("write a student that starts from a teacher's weights", convert.add, convert.run),
    "distill": Verb("run a recipe on this process", launch.add, launch.run),
    "evaluate": Verb("measure a model, and its teacher beside it", evaluate.add, evaluate.run),
    "select-layers": Verb(
        "which attention layers a hybrid language model or LLaVA keeps", select_layers.add, select_layers.run
    ),
    "search-peft": Verb("which methods of an adapter, and how large", search_peft.add, search_peft.run),
    "generate-data": Verb(
        "let a language model write texts to train on", generate_data.add, generate_data.run
    ),
    "predict": Verb("say what a model sees in images", predict.add, predict.run),
    "report": Verb("write RUN/report.html again, or compare runs", publish.add_report, publish.run_report),
    "list": Verb("teachers, students, losses, tasks and data readers", listing.add, listing.run),
    "push": Verb("upload a student to the Hugging Face Hub", publish.add_push, publish.run_push),
    "bench": Verbs("time a recipe's step, students beside a teacher, or kernels", BENCH),
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import __version__

        print(f"transmamba {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _chosen("transmamba", "Turn a Transformer into a Mamba student.", VERBS, words))


def _chosen(prog: str, text: str, verbs: Mapping[str, Verb | Verbs], words: Sequence[str]) -> int:
    """Run the verb that `words` begin with on the rest of them."""
    parser = Parser(
        prog=prog,
        description=text,
        epilog="\n".join(["verbs:", *(f"  {name:<14} {verb.text}" for name, verb in verbs.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if verbs is VERBS:
        parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and stop")
    parser.add_argument("verb", metavar="VERB")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help=f"{prog} VERB --help")
    chosen = parser.parse_args(words)
    if chosen.verb not in verbs:
        raise UserError(f"unknown verb {chosen.verb!r}{suggest(chosen.verb, verbs)}")
    prog, verb = f"{prog} {chosen.verb}", verbs[chosen.verb]
    if isinstance(verb, Verbs):
        return _chosen(prog, verb.text, verb.verbs, chosen.arguments)
    own = Parser(prog=prog, description=verb.text, allow_abbrev=False)
    verb.add(own)
    return verb.run(parsed(own, chosen.arguments))


if __name__ == "__main__":
    sys.exit(main())
