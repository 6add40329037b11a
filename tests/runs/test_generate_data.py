"""Texts that a teacher writes: which, how they are gone on with after a kill, and what reads them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import PLAIN_TEMPLATE, TEXTS, llama_folder, texts_file, write_jsonl

import transmamba
from transmamba import UserError, Writing, generate_data
from transmamba.cli.main import main
from transmamba.config.registry import TEXTS as READERS
from transmamba.data.pairs.captions import LeftOut

SHORT: dict[str, Any] = dict(documents=11, prompt_tokens=3, tokens=9, batch_size=2, seed=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def texts(tmp_path: Path) -> Any:
    return READERS["text"](train=texts_file(tmp_path / "train.jsonl"))


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def killed_after(parts: int, *arguments: Any) -> None:
    """The same call in a process of its own that is killed in the middle of the next part."""

    def watch(numbers: Any, title: str) -> Iterator[int]:
        for done, number in enumerate(numbers):
            if done == parts:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    torch.set_num_threads(1)
    child = multiprocessing.get_context("fork").Process(
        target=generate_data, args=arguments, kwargs={"watch": watch}
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.xz", ".jsonl.gz"])
def test_a_killed_call_is_gone_on_with_to_the_same_bytes(
    ending: str, model: Path, texts: Any, tmp_path: Path
) -> None:
    whole, torn = tmp_path / f"whole{ending}", tmp_path / f"torn{ending}"
    writing = Writing(**SHORT)
    assert generate_data(model, whole, texts, writing).texts == 11
    killed_after(3, model, torn, texts, writing)
    partial = torn.with_name(f"{torn.name}.partial")
    begun = partial.read_bytes()
    assert len(begun.splitlines()) == 6 and not torn.exists()
    partial.write_bytes(begun + b'{"text": "torn')  # what a crash within a part leaves
    killed_after(1, model, torn, texts, writing)
    assert partial.read_bytes().startswith(begun)
    done = generate_data(model, torn, texts, writing)
    assert torn.read_bytes() == whole.read_bytes() and not partial.exists()
    assert (done.texts, done.already) == (11, False)
    before = torn.stat().st_mtime_ns
    again = generate_data(model, torn, texts, writing)
    assert again.already and torn.stat().st_mtime_ns == before
    assert (again.texts, again.cut, again.tokens) == (done.texts, done.cut, done.tokens)


def test_texts_begin_as_documents_do_and_do_not_depend_on_the_batch(
    model: Path, texts: Any, tmp_path: Path
) -> None:
    written = []
    for size in (1, 4, 11):
        path = tmp_path / f"{size}.jsonl"
        generate_data(model, path, texts, Writing(**SHORT | dict(batch_size=size)))
        written.append(rows(path))
    assert written[0] == written[1] == written[2]
    found = [row["text"] for row in written[0]]
    begins = [text[:2] for text in TEXTS if len(text) > 3]
    assert all(any(text.startswith(begin) for begin in begins) for text in found)
    assert len(set(found)) == 11, "a prompt that comes again is gone on with otherwise"
    generate_data(model, tmp_path / "seed.jsonl", texts, Writing(**SHORT | dict(seed=5)))
    assert rows(tmp_path / "seed.jsonl") != written[0]


@pytest.mark.parametrize("change", [dict(seed=5), dict(temperature=0.5), dict(batch_size=3), dict(tokens=8)])
def test_a_file_of_other_options_is_refused_by_name(
    change: dict[str, Any], model: Path, texts: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    generate_data(model, path, texts, Writing(**SHORT))
    ((key, value),) = change.items()
    with pytest.raises(UserError, match=rf"begun with .*{key} .*, not {value}.*; write another name"):
        generate_data(model, path, texts, Writing(**SHORT | change))


def test_a_file_of_another_model_or_of_other_prompts_is_refused(
    model: Path, texts: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    generate_data(model, path, texts, Writing(**SHORT))
    other = llama_folder(tmp_path / "other", seed=2)
    with pytest.raises(UserError, match="begun with teacher"):
        generate_data(other, path, texts, Writing(**SHORT))
    reader = READERS["text"](train=texts_file(tmp_path / "b.jsonl", TEXTS[1:]))
    with pytest.raises(UserError, match="begun with prompts"):
        generate_data(model, path, reader, Writing(**SHORT))
    path.write_text("changed")
    with pytest.raises(UserError, match="is not what was written there"):
        generate_data(model, path, texts, Writing(**SHORT))
    path.unlink()
    assert generate_data(model, path, texts, Writing(**SHORT)).texts == 11
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n")
    with pytest.raises(UserError, match="is there already"):
        generate_data(model, mine, texts, Writing(**SHORT))
    assert mine.read_text() == "{}\n"


def test_two_at_once_are_refused(model: Path, texts: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def watch(numbers: Any, title: str) -> Iterator[int]:
        yield from numbers
        with pytest.raises(UserError, match="written by another process"):
            generate_data(model, path, texts, Writing(**SHORT))

    assert generate_data(model, path, texts, Writing(**SHORT), watch=watch).texts == 11


CHATS = [
    {"prompt": "The cat", "response": "sat."},
    {"prompt": "A dog ran off, and", "response": "no"},
    {"prompt": "x", "response": "y"},
]


def test_answers_are_those_that_end_and_the_reader_reads_them(model: Path, tmp_path: Path) -> None:
    prompts = READERS["instructions"](train=write_jsonl(tmp_path / "chats.jsonl", CHATS))
    path = tmp_path / "answers.jsonl"
    # hot enough that some of them end
    writing = Writing(documents=300, tokens=12, temperature=1.5, batch_size=100)
    done = generate_data(model, path, prompts, writing)
    found = rows(path)
    assert 0 < done.texts == len(found) and done.left_out == 300 - len(found) and done.cut == 0
    assert {row["prompt"] for row in found} == {row["prompt"] for row in CHATS}
    assert not any("<|" in row["response"] for row in found)
    left_out = LeftOut()
    read = list(READERS["instructions"](train=str(path)).build("train").documents(left_out))
    assert [turns[1].content for turns in read] == [row["response"] for row in found]
    assert left_out.total == 0


def test_a_conversation_keeps_its_earlier_turns(tmp_path: Path) -> None:
    turns = [
        ("system", "Be odd"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "4"),
    ]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    model = llama_folder(tmp_path / "model", template=PLAIN_TEMPLATE, context=256)
    prompts = READERS["instructions"](train=write_jsonl(tmp_path / "c.jsonl", [chat]), messages="messages")
    path = tmp_path / "answers.jsonl"
    generate_data(model, path, prompts, Writing(documents=150, tokens=12, temperature=1.5, batch_size=50))
    found = rows(path)
    assert found and all(row["messages"][:-1] == chat["messages"][:-1] for row in found)
    read = list(
        READERS["instructions"](train=str(path), messages="messages").build("train").documents(LeftOut())
    )
    assert len(read) == len(found)


def test_the_command(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train = texts_file(tmp_path / "train.jsonl")
    out = tmp_path / "out.jsonl"
    words = [*f"--documents 3 --tokens 5 --prompt-tokens 2 --batch-size 2 --prompts {train}".split()]
    assert main(["generate-data", str(model), str(out), *words]) == 0
    assert len(rows(out)) == 3
    said = capfd.readouterr()
    assert f"{out}: 3 texts" in said.out and "writes 3 texts from 4 prompts" in said.err
    assert "left out: 1 shorter than a prompt" in said.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--tokens", "0"], "tokens: 0; write at least 1"),
        (["--top-p", "1.5"], "top_p: 1.5"),
        (["--temperature", "-1"], "temperature: -1.0; write 0"),
        (["--tokens", "96"], "the model reads at most 96"),
        (["--prompt-tokens", "80", "--tokens", "5"], "holds no prompts: 5 shorter than a prompt"),
        (["--prompts", "nowhere.jsonl"], "--prompts nowhere.jsonl: no such file"),
        (["--prompts", "txet"], "did you mean 'text'"),
        (["--prompts", "text", "test={train}"], "was given no train split"),
        (["--prompts", "text", "trian={train}"], "trian"),
        (["--device", "abacus"], "device 'abacus'"),
        (["out=x.csv"], "out"),
    ],
)
def test_mistakes_are_told_in_one_line(
    change: list[str], says: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = texts_file(tmp_path / "train.jsonl")
    words = ["generate-data", str(model), str(tmp_path / "out.jsonl"), "--prompts", train]
    assert main([*words, *(word.format(train=train) for word in change)]) == 2
    error = capfd.readouterr().err
    assert says in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if "error: " in line]) == 1
    assert not list(tmp_path.glob("out.*"))


def test_what_writes_no_texts_and_what_is_no_jsonl_are_refused(
    model: Path, texts: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
        generate_data(model, tmp_path / "a.txt", texts)
    (model.parent / "vit").mkdir(exist_ok=True)
    (model.parent / "vit" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="no causal language model"):
        generate_data(model.parent / "vit", tmp_path / "a.jsonl", texts)
    assert transmamba.generate_data is generate_data
