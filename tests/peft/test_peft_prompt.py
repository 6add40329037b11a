"""Soft tokens at a model's input, and what else stands there."""

from __future__ import annotations

import copy
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import PeftModel
from test_peft_students import adapted as adapted_student
from test_peft_students import images, student
from torch import Tensor

from transmamba.core.output import Capture, Context
from transmamba.errors import UserError
from transmamba.layers.insertion import Insertion
from transmamba.peft.families.inside import Inside


def tensors_of(model: Any) -> dict[str, Tensor]:
    return {
        name.rpartition(".")[2]: p.detach()
        for name, p in model.named_parameters()
        if "transmamba_adapters" in name
    }


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("model", tiny.MODELS)
def test_a_prompt_is_its_embeddings_in_front(model: str, mlp: bool) -> None:
    """Against the base, given prompt and words as embeddings."""
    adapted, base, ids = tiny.adapted(model, [{"name": "prompt", "mlp": mlp}]), tiny.base(model), tiny.words()
    t = tensors_of(adapted)
    tokens = t["prompt"]
    if mlp:
        tokens = torch.tanh(tokens @ t["prompt_in"].T + t["prompt_in_bias"]) @ t["prompt_out"].T
        tokens = tokens + t["prompt_out_bias"]
    with torch.no_grad():
        embedded = torch.cat([tokens.expand(2, -1, -1), base.get_input_embeddings()(ids)], dim=1)
        wanted = base(inputs_embeds=embedded).logits[:, 8:]
        made = adapted(ids, output_hidden_states=True)
        torch.testing.assert_close(made.logits, wanted, atol=1e-5, rtol=0)
        embeds = adapted.get_base_model().get_input_embeddings()(ids)
        torch.testing.assert_close(adapted(inputs_embeds=embeds).logits, wanted, atol=1e-5, rtol=0)
        assert all(hidden.shape[1] == ids.shape[1] for hidden in made.hidden_states)


@pytest.mark.parametrize("model", tiny.MODELS)
def test_padded_rows_are_written_on_as_they_are_alone(model: str) -> None:
    """Everything that begins before a text, in generation: behind the padding, in a cache and without."""
    adapted, ids = tiny.adapted(model, tiny.AT_START), tiny.words()
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, :3], mask[1, :3] = 0, 0
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, return_dict_in_generate=True)
    options |= dict(output_logits=True, eos_token_id=None)
    alone = adapted.generate(ids[1:, 3:], **options)
    for cached in (True, False):
        together = adapted.generate(padded, attention_mask=mask, use_cache=cached, **options)
        made = torch.stack(together.logits)[:, 1:]
        torch.testing.assert_close(made, torch.stack(alone.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("where", ["prefix", "suffix", "infix", "both"])
@pytest.mark.parametrize("name", ["vim", "ssd_vit"])
def test_a_prompt_of_a_vision_student(name: str, where: str) -> None:
    """Its stream with the tokens among its own, layer by layer; what is distilled has its own alone."""
    model = adapted_student(name, [{"name": "prompt", "tokens": 3, "where": where}])
    plain, x, t = student(name), images(), tensors_of(model)["prompt"]
    with torch.no_grad():
        stream = plain._embed(x)
        length = stream.shape[1]
        rows = []
        for row in stream:
            own = list(row.unbind())
            third = [(p + 1) * length // 4 for p in range(3)]
            put = {"prefix": [0, 0, 0], "suffix": [length] * 3, "infix": third, "both": [0, 0, length]}[where]
            for token, at in reversed(list(zip(t, put, strict=True))):
                own.insert(at, token)
            rows.append(torch.stack(own))
        longer = torch.stack(rows)
        kept = [i for i, token in enumerate(longer[0]) if not any(torch.equal(token, soft) for soft in t)]
        for layer in plain.layers if name == "vim" else plain.blocks:
            longer = layer(longer)
            longer = longer[0] if name == "vim" else longer
        wanted = plain.forward_head((plain.norm_f if name == "vim" else plain.norm)(longer[:, kept]))
        torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=0)
        chosen = torch.tensor([2, 0])
        capture = Capture(
            hidden=frozenset({1}), branches=frozenset({1}), tokens=chosen, mixers={0: {"B", "C"}}
        )
        output = model.get_base_model().run({"image": x}, {"image": capture})
        torch.testing.assert_close(output.logits(), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.stream.hidden[1], longer[:, kept], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            output.stream.branches[1].merged, longer[:, kept][:, chosen], atol=1e-5, rtol=0
        )
        assert output.stream.branches[1].half.shape[1] == 2
        assert all(part.shape[1] == length for part in output.stream.mixers[0].values())


def test_class_token_and_positions_are_moved() -> None:
    model, plain, x = adapted_student("vim", ["cls_token", "pos_embed"]), student("vim"), images()
    t = tensors_of(model)
    with torch.no_grad():
        plain.cls_token += t["cls_token"]
        plain.pos_embed += t["pos_embed"]
        torch.testing.assert_close(model(x), plain(x))
        again = copy.deepcopy(model)
        for name, parameter in model.named_parameters():
            if "transmamba_adapters" in name:
                parameter.zero_()
        torch.testing.assert_close(again(x), plain(x))  # the copy has tensors of its own
        torch.testing.assert_close(model(x), student("vim")(x))


@pytest.mark.parametrize("method", tiny.AT_INPUT)
def test_texts_have_neither_class_token_nor_a_table_of_positions(method: str) -> None:
    with pytest.raises(UserError, match=f"method '{method}': an embedding of tokens has no"):
        tiny.adapted("mamba", [method])


@pytest.mark.parametrize("method", ["prompt", "affix"])
def test_texts_are_read_forwards(method: str) -> None:
    with pytest.raises(UserError, match="where: prefix, not suffix"):
        tiny.adapted("mamba", [{"name": method, "where": "suffix"}])


def test_without_the_prompt_hooks_do_nothing(tmp_path: Any) -> None:
    adapted, ids = tiny.adapted("bamba", ["prompt", "lora_x"]), tiny.words()
    adapted.add_adapter("other", type(adapted.peft_config["default"])(methods=["lora_x"]))
    with torch.no_grad():
        wanted = tiny.base("bamba")(ids).logits
        with_prompt = adapted(ids).logits
        adapted.set_adapter("other")
        torch.testing.assert_close(adapted(ids).logits, wanted)
        adapted.set_adapter("default")
        assert torch.equal(adapted(ids).logits, with_prompt)
        adapted.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(tiny.base("bamba"), tmp_path)(ids).logits, with_prompt)
        assert torch.equal(adapted.unload()(ids).logits, wanted)


def test_tokens_before_documents_and_behind_padding() -> None:
    x = torch.arange(1.0, 7.0).view(1, 6, 1).expand(2, 6, 1)
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
    put = Insertion.before(6, 2, Context(segments=segments), x.device)
    longer = put.place(x, torch.tensor([[-1.0], [-2.0]]))[..., 0].tolist()
    assert longer[0] == [-1, -2, 1, 2, -1, -2, 3, 4, 5, -1, -2, 6]
    assert longer[1] == [-1, -2, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0]
    found = put.segments(segments)
    assert found is not None
    assert found.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2], [5] * 8 + [6] * 4]
    positions = put.context(Context(segments=segments)).positions
    assert positions is not None and positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2]
    mask = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    put = Insertion.before(6, 2, Context(mask=mask), x.device)
    assert put.place(x, torch.tensor([[-1.0], [-2.0]]))[0, :, 0].tolist() == [1, 2, -1, -2, 3, 4, 5, 6]
    assert put.mask(mask)[0].tolist() == [False] * 2 + [True] * 6  # type: ignore[index]
    assert torch.equal(put.drop(put.place(x, torch.zeros(2, 1))), x)


def test_packed_rows_are_looked_through_once_a_pass() -> None:
    """By the first layer that asks: it waits for the device."""
    inside, u = Inside(), torch.zeros(2, 6, 4)
    inside.affix("prefix", "", torch.zeros(2, 4))
    context = Context(segments=torch.tensor([[0, 0, 1, 1, 1, 2], [5] * 6]))
    found = inside.prefix(u, context)
    assert found is not None and found is inside.prefix(u, context)
    assert found is not inside.prefix(u, Context(segments=context.segments))


@pytest.mark.parametrize("name", ["vim", "ssd_vit"])
def test_what_is_unloaded_leaves_nothing_behind(name: str) -> None:
    with torch.no_grad():
        model = adapted_student(name, ["prompt", "pos_embed", "lora_x"])
        assert torch.equal(model.unload()(images()), student(name)(images()))
        merged = adapted_student(name, ["pos_embed"])
        wanted = merged(images())
        torch.testing.assert_close(merged.merge_and_unload()(images()), wanted)


def test_packed_rows_begin_anew_in_transformers_mixers() -> None:
    adapted = tiny.adapted("mamba2", ["affix", "initial_state"])
    layer = adapted.get_base_model().backbone.layers[0].mixer
    u = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(5))
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7], dtype=torch.int32)
    with torch.no_grad():
        together = layer(u, seq_idx=ids)
        torch.testing.assert_close(together[:1, 3:], layer(u[:1, 3:]), atol=1e-5, rtol=0)
        torch.testing.assert_close(together[:1, :3], layer(u[:1, :3]), atol=1e-5, rtol=0)
        torch.testing.assert_close(together[1:], layer(u[1:]), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="seq_idx"):
        tiny.adapted("mamba2", ["prompt"]).get_base_model().backbone(tiny.words(), seq_idx=ids)
