"""Tokenizers of language models: equal where they do the same, and which tokens of a conversation are
answers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import small_language
from small_language import PLAIN_TEMPLATE, TEMPLATE, TEXTS, THINKING_TEMPLATE, reading, tokenizer_folder
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from transmamba.core.text import LanguageTokenizer, Message
from transmamba.errors import UserError
from transmamba.teachers.load import adapt_teacher, load_teacher


def turns(*said: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant by turns."""
    first = () if system is None else (Message("system", system),)
    return first + tuple(Message(("user", "assistant")[k % 2], text) for k, text in enumerate(said))


CONVERSATIONS = (
    turns("The cat?", "sat on the mat."),
    turns("one", "two", "three", "four\nfive", system="the dog"),
    turns("a\n\nb", "\n the end"),
    turns("Ünï", "数字 “too”"),
    turns("one", "two", "three"),
)


def slowly(library: Any, conversation: tuple[Message, ...]) -> tuple[list[int], list[bool]]:
    """By the renderings of its beginnings, token by token: a token is asked if it begins where the assistant
    writes, up to the token that ends what it says."""
    messages = [{"role": m.role, "content": m.content} for m in conversation]
    text = library.apply_chat_template(messages, tokenize=False)
    found = library(text, add_special_tokens=False, return_offsets_mapping=True)
    asked = [False] * len(found.input_ids)
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = len(library.apply_chat_template(messages[:k], tokenize=False, add_generation_prompt=True))
        end = text.index(message["content"], start) + len(message["content"])
        for place, (begin, stop) in enumerate(found.offset_mapping):
            begin -= begin == stop  # a space, which offsets leave out
            asked[place] |= start <= begin < end
        behind = next((p for p, (begin, _) in enumerate(found.offset_mapping) if begin >= end), None)
        if behind is not None and found.input_ids[behind] == library.eos_token_id:
            asked[behind] = True
    return found.input_ids, asked


@pytest.mark.parametrize("template", [TEMPLATE, THINKING_TEMPLATE])
def test_answers_are_what_the_assistant_writes(template: str, tmp_path: Path) -> None:
    tokenizer = reading(tmp_path, template=template).text
    library = AutoTokenizer.from_pretrained(tmp_path)
    found = tokenizer.chat(CONVERSATIONS)
    for conversation, (ids, asked) in zip(CONVERSATIONS, found, strict=True):
        assert (ids, asked) == slowly(library, conversation)
        said = tokenizer.decode([token for token, is_asked in zip(ids, asked, strict=True) if is_asked])
        answers = [m.content + "<|im_end|>" for m in conversation if m.role == "assistant"]
        thought = "<think>\n\n</think>\n\n" if template == THINKING_TEMPLATE else ""
        if conversation[-1].role == "assistant":
            answers[-1] = thought + answers[-1]
        assert said == "".join(answers)


def test_a_template_whose_answers_nothing_ends(tmp_path: Path) -> None:
    """The space before an answer is the prompt's: the token that holds both is no answer."""
    tokenizer = reading(tmp_path, template=PLAIN_TEMPLATE, words=400).text
    assert len(tokenizer.encode([" the"])[0]) == 1
    ids, asked = tokenizer.chat([turns("The cat", "the dog ran")])[0]
    assert tokenizer.decode(ids) == "user: The cat\nassistant: the dog ran\n"
    prompt = tokenizer.encode(["user: The cat\nassistant:"])[0]
    assert ids[: len(prompt)] == prompt and not any(asked[: len(prompt)])
    assert tokenizer.decode([t for t, a in zip(ids, asked, strict=True) if a]) == " dog ran\n"


@pytest.mark.parametrize("bos", [False, True])
def test_numbers_are_the_library_s_own(bos: bool, tmp_path: Path) -> None:
    tokenizer: LanguageTokenizer = reading(tmp_path, context=64, bos=bos).text
    library = AutoTokenizer.from_pretrained(tmp_path)
    assert [[*tokenizer.prefix, *ids] for ids in tokenizer.encode(TEXTS)] == library(list(TEXTS)).input_ids
    assert len(tokenizer.prefix) == bos and tokenizer.eos == library.eos_token_id
    assert tokenizer.vocabulary == len(library) and tokenizer.context == 64
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(TEXTS)] == list(TEXTS)
    assert tokenizer.encode([]) == []


def test_equal_is_what_does_the_same(tmp_path: Path) -> None:
    one = reading(tmp_path / "one")
    one.text.save(tmp_path / "saved")
    library = AutoTokenizer.from_pretrained(tmp_path / "one")
    # what a call with padding leaves behind
    library.backend_tokenizer.enable_padding(length=3, pad_token="<|endoftext|>")
    library.backend_tokenizer.enable_truncation(3)
    library.save_pretrained(tmp_path / "used")
    for same in ("saved", "used"):
        again = type(one.text)(str(tmp_path / same))
        assert again == one.text and hash(again) == hash(one.text) and again.identity == one.text.identity
    assert pickle.loads(pickle.dumps(one)) == one
    others = dict(words=290), dict(bos=True), dict(template=PLAIN_TEMPLATE), dict(eos=False)
    for number, options in enumerate(others):
        assert reading(tmp_path / str(number), **options) != one
    assert reading(tmp_path / "one", context=5) != one


def test_what_is_missing_is_said_in_a_line(tmp_path: Path) -> None:
    bare = reading(tmp_path / "bare", eos=False, template=None).text
    with pytest.raises(UserError, match=r"^tokenizer of .*bare': has no token that ends a text; name one as"):
        bare.eos
    with pytest.raises(UserError, match=r"^tokenizer of .*bare': has no chat template"):
        bare.chat([turns("a", "b")])
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"takes no conversation of user, assistant \(roles must alternate\)"):
        reading(tmp_path / "strict", template=strict).text.chat([turns("a", "b")])
    turned = "{% for message in messages | reverse %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="does not begin with its prompt"):
        reading(tmp_path / "turned", template=turned).text.chat([turns("a", "b")])


def test_a_teacher_brings_its_tokenizer(tmp_path: Path) -> None:
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=48, **shape))
    model.save_pretrained(tmp_path)
    assert load_teacher(tmp_path).preprocessing is None, "nothing lies beside it"
    tokenizer_folder(tmp_path)
    wanted = small_language.reading(tmp_path / "another", context=48)
    assert load_teacher(tmp_path).preprocessing == wanted
    assert adapt_teacher(LlamaForCausalLM.from_pretrained(tmp_path)).preprocessing == wanted
    assert adapt_teacher(model).preprocessing is None
