"""A tokenizer small enough to be made in a test, with and without what real ones have; and some texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from transmamba.core.text import TextOnly
from transmamba.ecosystems.language_tokenizer import language_preprocessing

TEXTS = (
    "The cat sat on the mat.",
    "A dog\nran off, and\n\nthe cat did not.",
    "Ünïcode — “quotes” and 数字 too.",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen " * 3,
    "x",
)
# ChatML, with a system prompt where none is given: SmolLM2's
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# what a base model's users write; nothing ends an answer, and the prompt ends in a space
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# the last answer alone has its thoughts
THINKING_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EOS, BOS = "<|im_end|>", "<|im_start|>"


def tokenizer_folder(
    folder: Path, *, words: int = 300, bos: bool = False, eos: bool = True, template: str | None = TEMPLATE
) -> Path:
    """Byte pairs learned from TEXTS; with `bos`, one that begins every text with it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", BOS, EOS]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=words, special_tokens=special, initial_alphabet=alphabet)
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    said: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS}
    if eos:
        said["eos_token"] = EOS
    if template is not None:
        said["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def reading(folder: Path, context: int | None = None, **options: Any) -> TextOnly:
    """The preprocessing of a model whose tokenizer is made in `folder`."""
    tokenizer_folder(folder, **options)
    found = language_preprocessing(str(folder), SimpleNamespace(max_position_embeddings=context))
    assert found is not None
    return found


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts_file(path: Path, texts: Iterable[str] = TEXTS) -> str:
    return write_jsonl(path, ({"text": text} for text in texts))


def llama_folder(folder: Path, *, context: int = 96, seed: int = 1, **options: Any) -> Path:
    """A Llama that a tokenizer lies beside: random, and sure enough of itself to write now this, now that."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer_folder(folder, **options)
    words = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    sizes: dict[str, Any] = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **sizes, **heads, vocab_size=words, max_position_embeddings=context, eos_token_id=2, bos_token_id=1
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
