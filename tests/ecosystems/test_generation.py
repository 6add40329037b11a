"""What models write in batches, against a loop over one row that has no cache, and what is drawn, against
transformers' own filters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transmamba.ecosystems.generation import Drawing, generate, left_padded
from transmamba.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from hybrids import hybrid, llama, make, moved

ROWS = [[5, 9, 11], [7], [3, 4, 50, 60, 70, 80, 90, 12], [33, 8, 33, 8]]
LIMIT = 12


@torch.no_grad()
def slowly(model: Any, ids: list[int], limit: int, drawing: Drawing | None = None) -> list[int]:
    """One row, all of it again for each word."""
    text, new = list(ids), list[int]()
    while len(new) < limit and 2 not in new:
        logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        word = int(logits.argmax() if drawing is None else drawing.draw(logits[None], len(new)))
        text, new = [*text, word], [*new, word]
    return new


def unlike(model: Any, seed: int) -> Drawing:
    return Drawing(seed, np.arange(10, 10 + len(ROWS), dtype=np.int64), temperature=0.7, top_p=0.9)


def models() -> dict[str, Any]:
    mixed = moved(hybrid(llama(), 1)).stock()
    return {name: make(name) for name in ("Llama 2", "Qwen2 (QKV biases)", "GPT-2")} | {"hybrid": mixed}


@pytest.mark.parametrize("name", ["Llama 2", "Qwen2 (QKV biases)", "GPT-2", "hybrid"])
def test_rows_of_unlike_lengths_write_what_each_writes_alone(name: str) -> None:
    model = models()[name]
    drawing = unlike(model, 3)
    for drawn in (None, drawing):
        made = generate(model, left_padded(ROWS), LIMIT, drawing=drawn).tolist()
        for row, ids in enumerate(ROWS):
            own = None if drawn is None else Drawing(3, drawing.items[[row]], 0.7, 0.9)
            wanted = slowly(model, ids, LIMIT, own)
            assert made[row][: len(wanted)] == wanted
            assert set(made[row][len(wanted) :]) <= {2}
    assert len({tuple(row) for row in made}) == len(ROWS)


def test_a_row_ends_at_any_of_the_tokens_that_end_it() -> None:
    model = llama()
    free = generate(model, left_padded(ROWS), LIMIT).tolist()
    last = free[0][4]
    made = generate(model, left_padded(ROWS), LIMIT, ends=[last]).tolist()
    place = free[0].index(last)
    assert made[0][: place + 1] == free[0][: place + 1] and set(made[0][place + 1 :]) <= {2}


def test_settings_of_its_own_are_not_followed() -> None:
    model = llama()
    plain = generate(model, left_padded(ROWS), LIMIT)
    own = model.generation_config
    own.repetition_penalty, own.temperature, own.top_k, own.do_sample = 9.0, 0.1, 3, True
    own.min_new_tokens, own.suppress_tokens = 5, plain[0, :2].tolist()
    model.train()
    assert generate(model, left_padded(ROWS), LIMIT).equal(plain)
    assert model.training and model.generation_config is own


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8), (1.0, 0.3)])
def test_words_are_drawn_as_transformers_filters_have_them(temperature: float, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)) * 2
    filtered: Tensor = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    wanted = (TopPLogitsWarper(top_p)(None, filtered) if top_p < 1 else filtered).softmax(-1)[0].double()
    count = 40_000
    drawing = Drawing(5, np.arange(count, dtype=np.int64), temperature, top_p)
    found = torch.bincount(drawing.draw(logits.expand(count, -1), 7), minlength=40).double() / count
    assert not found[wanted == 0].any()
    error = (wanted * (1 - wanted) / count).sqrt()
    assert (found - wanted).abs().le(4.5 * error + 1e-12).all()


def test_a_draw_belongs_to_seed_item_and_step() -> None:
    logits = torch.zeros(6, 1000)
    items = np.array([4, 9, 2, 4, 100, 7], dtype=np.int64)
    drawn = Drawing(1, items).draw(logits, 3)
    assert drawn[0] == drawn[3] and len(set(drawn.tolist())) == 5
    assert Drawing(1, items[::-1].copy()).draw(logits, 3).tolist() == drawn.tolist()[::-1]
    assert Drawing(2, items).draw(logits, 3).tolist() != drawn.tolist()
    assert Drawing(1, items).draw(logits, 4).tolist() != drawn.tolist()


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        Drawing(1, np.arange(2)).draw(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), 0)


@pytest.mark.parametrize("within", [False, True], ids=["a language model", "of a LLaVA"])
def test_mamba_2_writes_on_our_kernels_and_is_left_as_it_was(
    within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BambaConfig, BambaForCausalLM
    from transformers.models.bamba import modeling_bamba

    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, attn_layer_indices=[1])
    mamba = dict(mamba_n_heads=2, mamba_d_head=16, mamba_d_state=8, mamba_expand=2, mamba_n_groups=1)
    config = BambaConfig(**sizes, **heads, **mamba, eos_token_id=None, pad_token_id=None, bos_token_id=None)
    model, ours = BambaForCausalLM(config).eval(), []
    if within:  # the decoder's kind is all that is asked of it
        monkeypatch.setattr(model.config, "model_type", "llava", raising=False)
        monkeypatch.setattr(
            model.config, "text_config", BambaConfig(**sizes, **heads, **mamba), raising=False
        )
    before, write = modeling_bamba.mamba2_chunk_scan, model.generate

    def generates(**given: object) -> torch.Tensor:
        ours.append(hasattr(modeling_bamba.mamba2_chunk_scan, "replaces"))
        return write(**given)

    monkeypatch.setattr(model, "generate", generates)
    generate(model, {"text": torch.tensor([[1, 2, 3]])}, 2)
    assert ours == [True] and modeling_bamba.mamba2_chunk_scan is before
