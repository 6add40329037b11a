"""The task of language models: what an epoch is, where it goes on, and which models it takes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_language import TEXTS, reading, texts_file, tokenizer_folder, write_jsonl
from torch import Tensor

from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.core.batch import Batch
from transmamba.core.preprocessing import Preprocessing
from transmamba.core.task import Metric, Pass, Steps, Task
from transmamba.core.text import TextOnly
from transmamba.errors import ConfigError, UserError
from transmamba.evaluation import language as language_evaluation
from transmamba.tasks.language import Language
from transmamba.teachers.load import load_teacher

BLOCK = 16
MANY = tuple(f"{number} {text}" for number in range(6) for text in TEXTS)


@dataclass
class Stub:
    """In place of the evaluator."""

    split: str
    read: Callable[[Pass], Iterator[Batch]]
    text: Callable[[int], str]
    metrics = (Metric(key="perplexity", label="perplexity"),)


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    TASKS.names()  # other tasks take the real one, whichever test imports them first
    monkeypatch.setattr(language_evaluation, "LanguageEvaluator", Stub)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def words(tmp_path: Path) -> TextOnly:
    return reading(tmp_path / "tokenizer", context=64)


@pytest.fixture
def make(words: TextOnly, tmp_path: Path) -> Callable[..., Language]:
    """make(**options): the task on MANY, measured on TEXTS."""
    train, test = texts_file(tmp_path / "train.jsonl", MANY), texts_file(tmp_path / "test.jsonl")

    def made(**options: Any) -> Language:
        values = {"data": dict(name="text", train=train, test=test), "block": BLOCK, **options}
        return configs.parse(TASKS["language"], values, "task").build(words)

    return made


def steps(num_steps: int, **options: Any) -> Steps:
    return Steps(**{"micro_batch": 4, "num_steps": num_steps, "seed": 3, **options})


def train_of(task: Language, num_steps: int, **options: Any) -> list[Batch]:
    return list(task.train_batches(steps(num_steps, **options)))


def equal(a: Batch, b: Batch) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    same = ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    return same and a.counts == b.counts


def pairs_of(batches: list[Batch]) -> Counter[tuple[int, int]]:
    """(token, the one it is to predict)"""
    found: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        asked = batch.targets["tokens"] >= 0
        found.update(
            zip(batch.inputs["text"][asked].tolist(), batch.targets["tokens"][asked].tolist(), strict=True)
        )
    return found


def wanted_of(words: TextOnly, texts: tuple[str, ...]) -> Counter[tuple[int, int]]:
    """The same, from texts that are tokenised one by one."""
    found: Counter[tuple[int, int]] = Counter()
    for text in texts:
        ids = [*words.text.encode([text])[0], words.text.eos]
        found.update(itertools.pairwise(ids))
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_an_epoch_is_every_token_of_every_document(
    packed: bool, make: Callable[..., Language], words: TextOnly
) -> None:
    task = make(packed=packed)
    assert isinstance(task, Task) and task.num_classes is None and task.inputs == ("text",)
    epoch, again = (
        train_of(task, task.num_train, micro_batch=1, start_step=start) for start in (0, task.num_train)
    )
    assert pairs_of(epoch) == pairs_of(again) == wanted_of(words, MANY)
    order = [int(batch.index) for batch in epoch]
    assert sorted(order) == [*range(task.num_train)] and order != [int(batch.index) for batch in again]
    evaluated = list(task.eval_batches("test", Pass(batch_size=3)))
    assert pairs_of(evaluated) == wanted_of(words, TEXTS)
    tokens = sum(batch.counts["tokens"] for batch in epoch)
    assert abs(task.row_tokens * task.num_train - tokens) <= task.num_train
    assert packed == (task.row_tokens == BLOCK)
    first, second = (list(task.calibration(5, 2)) for _ in range(2))
    assert [len(batch) for batch in first] == [2, 2, 1] and all(map(equal, first, second))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_goes_on_where_it_was_in_the_middle_of_an_epoch(
    mixed: bool, make: Callable[..., Language], tmp_path: Path
) -> None:
    written = dict(name="text", train=texts_file(tmp_path / "w.jsonl", [text[::-1] for text in TEXTS]))
    options = {"mixed": [dict(data=written, share=0.25)]} if mixed else {}
    whole = train_of(make(**options), 30)
    for start in (7, 22):
        rest = train_of(make(**options), 30 - start, start_step=start)
        assert len(rest) == 30 - start and all(map(equal, rest, whole[start:]))
    assert not equal(train_of(make(**options), 1, seed=4)[0], whole[0])
    # however it is divided
    for world, accumulation in ((2, 1), (1, 2)):
        ranks = [
            train_of(make(**options), 5, rank=rank, world=world, micro_batch=2, accumulation=accumulation)
            for rank in range(world)
        ]
        parts = [batch for several in zip(*ranks, strict=True) for batch in several]
        for number in range(5):
            halves = parts[2 * number : 2 * number + 2]
            for name in ("text", "text_segment"):
                joined = torch.cat([half.inputs[name] for half in halves])
                assert joined.equal(whole[number].inputs[name])


def test_a_share_of_an_epoch_is_mixed_in(make: Callable[..., Language], tmp_path: Path) -> None:
    other = dict(name="text", train=texts_file(tmp_path / "o.jsonl", ["zzz " * 200, "zz"]))
    plain, task = make(), make(mixed=[dict(data=other, share=0.2), dict(data=other, share=0.3)])
    counts = Counter(int(index >= plain.num_train) for b in train_of(task, 200) for index in b.index.tolist())
    assert abs(counts[1] / counts.total() - 0.5) < 0.02 and task.num_train == 2 * plain.num_train
    for options, says in (
        (dict(share=1.0), r"mixed\.0\.share: 1\.0; write a share of the blocks, above 0 and below 1"),
        (dict(share=0.6), "shares of 1.2 together; write less than 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            make(mixed=[dict(data=other, **options)] * 2)
    missing = dict(name="text", train=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"^mixed\.0: .*none\.jsonl does not exist"):
        make(mixed=[dict(data=missing, share=0.1)]).num_train


def test_answers_alone_are_learned_or_prompts_as_well(
    make: Callable[..., Language], words: TextOnly, tmp_path: Path
) -> None:
    rows = [{"prompt": f"what {text}", "response": text[::-1]} for text in TEXTS]
    path = write_jsonl(tmp_path / "talks.jsonl", rows)
    data = dict(name="instructions", train=path, test=path)
    only, both = make(data=data), make(data=data, answers_only=False)
    asked = [
        b.targets["tokens"][b.targets["tokens"] >= 0] for b in only.eval_batches("test", Pass(batch_size=1))
    ]
    said = words.text.decode(torch.cat(asked).tolist())
    assert said == "".join(f"{row['response']}<|im_end|>" for row in rows)
    everything, few = (
        sum(batch.counts["answers"] for batch in task.eval_batches("test", Pass(batch_size=4)))
        for task in (both, only)
    )
    ids = [ids for ids, _ in words.text.chat([small_talk(row) for row in rows])]
    assert everything == sum(len(each) - 1 for each in ids) > 2 * few
    assert words.text.decode([token for each in ids for token in each]).startswith(
        "<|im_start|>system\nBe kind"
    )


def small_talk(row: dict[str, str]) -> tuple[Any, ...]:
    from transmamba.core.text import Message

    return Message("user", row["prompt"]), Message("assistant", row["response"])


def test_shares_of_the_documents_are_nested_and_apart(make: Callable[..., Language]) -> None:
    quarter, half = (
        set(make(fraction=fraction, validation=0.2).documents("train").tolist()) for fraction in (0.25, 0.5)
    )
    task = make(validation=0.2)
    held, kept = task.documents("validation").tolist(), task.documents("train").tolist()
    assert task.watched == task.final == "validation" and quarter < half < set(kept)
    assert sorted(held + kept) == [*range(len(MANY))] and len(held) == 6
    assert not pairs_of(train_of(task, 1)) - pairs_of(train_of(make(), 40, micro_batch=8))
    with pytest.raises(UserError, match="no validation split"):
        make().documents("validation")
    with pytest.raises(UserError, match="split 'dev': write train, validation or test"):
        make().documents("dev")


def test_what_is_measured(make: Callable[..., Language]) -> None:
    task = make(validation=0.2, final_split="test")
    (evaluator,) = task.evaluators("test")
    assert [metric.key for metric in task.metrics] == ["perplexity"] and isinstance(evaluator, Stub)
    read = [list(evaluator.read(Pass(batch_size=2, rank=rank, world=2))) for rank in range(2)]
    assert len(read[0]) == len(read[1])
    seen = {int(index) for batches in read for batch in batches for index in batch.index}
    assert seen == set(range(len(task.blocks("test"))))
    assert "".join(evaluator.text(block) for block in range(2)) in "<|im_end|>".join(TEXTS)
    with pytest.raises(UserError, match="write train, validation or test"):
        task.evaluators("dev")


def test_a_test_split_is_read_before_training_and_a_training_split_when_it_is_asked_for(
    make: Callable[..., Language], tmp_path: Path
) -> None:
    test = texts_file(tmp_path / "test.jsonl")
    task = make(data=dict(name="text", test=test))
    assert list(task.eval_batches("test", Pass(batch_size=9)))
    with pytest.raises(UserError, match="was given no train split"):
        task.num_train
    for broken, says in ((dict(train=test), "no test split"), (dict(test=test, column="t"), "no column 't'")):
        with pytest.raises(UserError, match=says):
            make(data=dict(name="text", **broken))


def model(vocabulary: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(vocabulary=vocabulary, view=object(), **more)


def test_models_that_do_not_fit_are_refused_with_both_sizes(
    make: Callable[..., Language], words: TextOnly, tmp_path: Path
) -> None:
    task, size = make(), words.text.vocabulary
    task.check(model(size, preprocessing=words), "teacher")
    task.check(SimpleNamespace(config=SimpleNamespace(vocab_size=size + 5)), "student")
    with pytest.raises(
        UserError, match=f"^teacher has a vocabulary of {size - 1} tokens, .* numbers {size};"
    ):
        task.check(model(size - 1), "teacher")
    for odd in (model(None), SimpleNamespace(), SimpleNamespace(config=SimpleNamespace())):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^student predicts no tokens"):
            task.check(odd, "student")
    other = reading(tmp_path / "other", words=290)
    mismatch = f"^teacher reads by another tokenizer, of 290 tokens, than the data's, of {size};"
    with pytest.raises(UserError, match=mismatch):
        task.check(model(size, preprocessing=other), "teacher")
    short = TextOnly(replace(words.text, context=BLOCK - 1))  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"^block is 16 tokens, but teacher reads at most 15 at once"):
        task.check(model(size, preprocessing=short), "teacher")


def test_models_without_words_and_blocks_that_are_too_long(make: Callable[..., Language]) -> None:
    with pytest.raises(UserError, match=r"^block is 65 tokens, but the model reads at most 64 at once"):
        make(block=65)
    config = configs.parse(TASKS["language"], dict(data=dict(name="text", test="t.txt")), "task")
    for nothing in (None, Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)):
        with pytest.raises(UserError, match="does not say how its texts are read"):
            config.build(nothing)
    with pytest.raises(ConfigError, match="block: 1; write at least 2 tokens"):
        make(block=1)


def test_a_teacher_reads_a_packed_block_as_its_documents_alone(
    make: Callable[..., Language], tmp_path: Path
) -> None:
    """What a task gives is what a view understands: no token sees another document."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=300, max_position_embeddings=64, initializer_range=0.3, **shape)
    ).save_pretrained(tmp_path / "teacher")
    tokenizer_folder(tmp_path / "teacher")
    teacher, task = load_teacher(tmp_path / "teacher"), make()
    task.check(teacher, "teacher")
    batch = train_of(task, 1, micro_batch=12)[0]
    text, segment = batch.inputs["text"], batch.inputs["text_segment"]

    def logits(inputs: dict[str, Tensor]) -> Tensor:
        made = teacher(inputs).logits
        assert made is not None
        return made()

    made, several = logits(dict(batch.inputs)), 0
    for row in range(len(text)):
        for name in segment[row].unique():
            mine = segment[row] == name
            torch.testing.assert_close(made[row, mine], logits({"text": text[row, mine][None]})[0])
            several += int(name > 0)
    assert several > 3


def test_real_texts_are_read_whole(shared_data: Path, tmp_path: Path, words: TextOnly) -> None:
    corpus = shared_data / "text_corpus" / "valid.jsonl.xz"
    if not corpus.is_file():
        pytest.skip("no text_corpus")
    data = dict(name="text", test=str(corpus))
    task = configs.parse(TASKS["language"], dict(data=data, block=64), "task").build(words)
    batches = list(task.eval_batches("test", Pass(batch_size=256)))
    texts = task.blocks("test").texts  # type: ignore[attr-defined]
    assert sum(batch.counts["answers"] for batch in batches) == texts.about.tokens - len(texts)
