"""Write a language model's first layers, with its words, its last norm and its tokenizer, as a folder.

    python scripts/first_layers.py HuggingFaceTB/SmolLM2-135M-Instruct runs/smollm2_8 --layers 8 --plain

What it writes is no language until it is trained; it is a start for a small decoder that costs what its
layers cost. With `--plain` the chat template is left out, and with it the system prompt of every row.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from transmamba.cli.mistakes import guarded
from transmamba.errors import UserError


def first(model: Any, layers: int) -> Any:
    """The model with so many of its layers. Raises UserError where it has none to leave out."""
    if not hasattr(getattr(model, "model", None), "layers"):
        raise UserError(f"{type(model).__name__} has no model.layers; take a Llama-like model")
    count = model.config.num_hidden_layers
    if not 0 < layers <= count:
        raise UserError(f"--layers is {layers}; the model has {count}")
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]
    return model


def write(source: str, folder: Path, layers: int, plain: bool) -> None:
    """Raises UserError where the folder is in use, and as `first` does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and no empty folder; write another")
    try:
        whole = AutoModelForCausalLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: {' '.join(str(error).split())[:200]}; write a folder or an id") from None
    model = first(whole, layers)
    words: Any = AutoTokenizer.from_pretrained(source)
    if plain:
        words.chat_template = None
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    print(f"{folder}: {layers} layers, {model.num_parameters():,} parameters")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("source", metavar="MODEL", help="a folder or an id of a Llama-like model")
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--plain", action="store_true", help="without the chat template")
    parsed = parser.parse_args(arguments)
    write(parsed.source, parsed.folder, parsed.layers, parsed.plain)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
