"""Write llama2.c's stories260K (github.com/karpathy/llama2.c, MIT) as a Hugging Face folder.

    python scripts/stories260k.py ../shared/data/stories260k runs/stories260k

A Llama of 5 layers and 260 thousand parameters that tells stories: the teacher of
recipes/configs/llama_to_hybrid_debug.yaml. FOLDER holds stories260K.bin (the legacy format: seven int32, then
float32) and tok512.bin (its words with scores).
"""

import argparse
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transmamba.cli.mistakes import guarded
from transmamba.errors import UserError

UNKNOWN, BOS, EOS = 0, 1, 2


def model_of(file: Path) -> Any:
    """A LlamaForCausalLM in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    data = file.read_bytes()
    dim, hidden, layers, heads, kv_heads, words, context = struct.unpack("7i", data[:28])
    values, at = torch.from_numpy(np.frombuffer(data, dtype=np.float32, offset=28).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        at += math.prod(shape)
        return values[at - math.prod(shape) : at].view(shape)

    narrow = dim * kv_heads // heads
    table = take(words, dim)
    shapes = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (narrow, dim),
        "self_attn.v_proj": (narrow, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    state = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    for name, shape in shapes.items():
        for i, tensor in enumerate(take(layers, *shape)):
            count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            if count:  # its pairs of channels lie side by side, transformers' half a head apart
                pairs = tensor.view(count, -1, 2, dim)
                tensor = pairs.transpose(1, 2).reshape(tensor.shape)
            state[f"model.layers.{i}.{name}.weight"] = tensor
    state["model.norm.weight"] = take(dim)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


def words_of(file: Path, count: int) -> list[tuple[str, float]]:
    """(word, score) by number."""
    data, at, found = file.read_bytes(), 4, []
    for _ in range(count):
        score, length = struct.unpack_from("fi", data, at)
        found.append((data[at + 8 : at + 8 + length].decode(errors="replace"), score))
        at += 8 + length
    return found


def tokenizer_of(words: list[tuple[str, float]], context: int) -> Any:
    """As llama2.c encodes: the pair with the best score is merged first, what is unknown is bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = {word.strip("\n").replace(" ", "▁"): n for n, (word, _) in enumerate(words) if n > EOS}
    pieces |= {"<unk>": UNKNOWN, "<s>": BOS, "</s>": EOS}
    merges = [
        (words[number][1], (piece[:cut], piece[cut:]))
        for piece, number in pieces.items()
        if number > EOS + 256
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    merges.sort(key=lambda merge: -merge[0])
    made = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=[pair for _, pair in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(word, special=True) for word in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def write(source: Path, folder: Path) -> None:
    """Raises UserError where a file is missing or the folder is in use."""
    for name in ("stories260K.bin", "tok512.bin"):
        if not (source / name).is_file():
            raise UserError(f"{source / name} does not exist; write the folder that holds it")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; write another folder")
    model = model_of(source / "stories260K.bin")
    words = words_of(source / "tok512.bin", model.config.vocab_size)
    model.save_pretrained(folder)
    tokenizer_of(words, model.config.max_position_embeddings).save_pretrained(folder)
    print(f"{folder}: a Llama of {model.num_parameters():,} parameters, {len(words)} words")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="FOLDER", help="with stories260K.bin and tok512.bin")
    parser.add_argument("folder", type=Path, metavar="OUT")
    parsed = parser.parse_args(arguments)
    write(parsed.source, parsed.folder)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
