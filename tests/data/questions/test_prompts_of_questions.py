"""How questions become batches, held against rows that are put together by hand."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked_items import EARLIER, ITEMS, PARTS_TEMPLATE, PLACES, WHY, Listed, asking, item
from small_language import PLAIN_TEMPLATE, TEMPLATE

from transmamba import UserError
from transmamba.core.text import Message, TextOnly
from transmamba.data.questions.asked import Asking, Style
from transmamba.data.questions.bad import ForgivingQuestions
from transmamba.data.questions.batches import AskedQuestions, EvalQuestions, TrainQuestions, check_places

ALL = [each for each, _, _ in ITEMS.values()]


def chatml(turns: tuple[str, ...]) -> str:
    said = "<|im_start|>system\nBe kind<|im_end|>\n"
    for k, turn in enumerate(turns):
        said += f"<|im_start|>{'assistant' if k % 2 else 'user'}\n{turn}<|im_end|>\n"
    return said + "<|im_start|>assistant\n"


def vicuna(turns: tuple[str, ...]) -> str:
    said = "".join(f"ASSISTANT: {t}<|im_end|>" if k % 2 else f"USER: {t} " for k, t in enumerate(turns))
    return said + "ASSISTANT:"


def parts(turns: tuple[str, ...]) -> str:
    return "".join(f"{'ASSISTANT' if k % 2 else 'USER'}: {t} " for k, t in enumerate(turns)) + "ASSISTANT:"


# the tokenizer's options -> a prompt by hand, what stands between it and the answer
FORMS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "chat": (dict(template=TEMPLATE), chatml, ""),
    "plain": (dict(template=None, bos=True), lambda turns: "<|im_start|>" + vicuna(turns), " "),
    "parts": (dict(template=PARTS_TEMPLATE), parts, " "),
}


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    options, prompt, gap = FORMS[request.param]
    return asking(tmp_path_factory.mktemp("words"), options=options), prompt, gap


def tokens_of(made: Asking, text: str) -> list[int]:
    """By transformers' own tokenizer, pictures' tokens written out in the text, as its processors do."""
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(made.tokenizer.name)
    found: list[int] = library(
        text.replace("<image>", "<image>" * PLACES), add_special_tokens=False
    ).input_ids
    return found


def test_each_row_is_what_is_put_together_by_hand(form: Any) -> None:
    made, prompt, gap = form
    batch = EvalQuestions(Listed(ALL), made).batch(np.arange(len(ALL)))
    image = made.image_token
    longest = batch.inputs["text"].shape[1]
    for row, (asked, turns, answer) in enumerate(ITEMS.values()):
        before = tokens_of(made, prompt(turns))
        whole = tokens_of(made, f"{prompt(turns)}{gap}{answer}<|im_end|>")
        assert whole[: len(before)] == before
        read, end = whole[:-1], longest - len(whole) + 1
        assert batch.inputs["text"][row].tolist() == read + [0] * end
        assert batch.inputs["text_mask"][row].tolist() == [True] * len(read) + [False] * end
        words = [place < len(before) and token != image for place, token in enumerate(read)]
        assert batch.inputs["prompt_mask"][row].tolist() == words + [False] * end
        asks = [token if place >= len(before) else -100 for place, token in enumerate(whole)][1:]
        assert batch.targets["tokens"][row].tolist() == asks + [-100] * end
        wanted = batch.targets["tokens"][row]
        assert made.tokenizer.decode(wanted[wanted >= 0].tolist()) == f"{gap}{answer}<|im_end|>"
        assert read.count(image) == PLACES * len(asked.pictures)
        assert made.prompt(asked) == before
    real, asked_tokens = batch.inputs["text_mask"].sum(), (batch.targets["tokens"] >= 0).sum()
    words = int(real) - 7 * PLACES
    assert batch.counts == dict(
        samples=7, tokens=int(real), words=words, answers=int(asked_tokens), pictures=7
    )
    # grey level n is n / 255, and mean and deviation a half
    levels = [picture.level for each in ALL for picture in each.pictures]  # type: ignore[attr-defined]
    torch.testing.assert_close(
        batch.inputs["image"][:, 1, 2, 3], torch.tensor(levels) / 255 * 2 - 1, atol=1e-6, rtol=0
    )
    assert batch.inputs["image_row"].tolist() == [n for n, each in enumerate(ALL) for _ in each.pictures]
    assert batch.index.tolist() == list(range(7)) and pickle.loads(pickle.dumps(made)) == made


ANSWERS = ("cat", "the cat did not", "sat", "one two three four", "\nran off", "数字", "x" * 40)


@pytest.mark.parametrize("template", [TEMPLATE, PLAIN_TEMPLATE, PARTS_TEMPLATE, None])
def test_nothing_of_a_prompt_depends_on_its_answer(template: str | None, tmp_path: Path) -> None:
    """Also where the answer's first letters would be one token with the end of the prompt."""
    made = asking(tmp_path, options=dict(template=template))
    question = dict(question="the mat?", pictures=[7, 8], earlier=EARLIER)
    first = len(made.prompt(item(**question)))  # type: ignore[arg-type]
    seen = set()
    for answer in ANSWERS:
        source = Listed([item(answer=answer, **question), ALL[0]])  # type: ignore[arg-type]
        batch = EvalQuestions(source, made).batch(np.arange(2))
        before = [batch.inputs[name][0, :first].tolist() for name in ("text", "text_mask", "prompt_mask")]
        asks = batch.targets["tokens"][0, : first - 1].tolist()
        seen.add(str([before, asks, batch.inputs["image"].tolist(), batch.inputs["image_row"].tolist()]))
        assert not batch.inputs["prompt_mask"][0, first:].any() and set(asks) == {-100}
        wanted = batch.targets["tokens"][0]
        said = made.tokenizer.words(wanted[wanted >= 0].tolist())
        assert said.strip() == answer.strip() and int(wanted[wanted >= 0][-1]) == made.tokenizer.eos
    assert len(seen) == 1
    if template == PLAIN_TEMPLATE:  # so that the case is there: the space belongs to what follows
        alone = tokens_of(made, "assistant: ")
        assert any(tokens_of(made, f"assistant: {each}")[: len(alone)] != alone for each in ANSWERS)


def test_prompts_are_padded_before(form: Any) -> None:
    made, *_ = form
    every = np.arange(len(ALL))
    batch = AskedQuestions(Listed(ALL), made, 5, every + 10, every, every).batch(every)
    for row, each in enumerate(ALL):
        ids = made.prompt(each)
        rest = batch.inputs["text"].shape[1] - len(ids)
        assert batch.inputs["text"][row].tolist() == [0] * rest + ids
        assert batch.inputs["text_mask"][row].tolist() == [False] * rest + [True] * len(ids)
        words = [token != made.image_token for token in ids]
        assert batch.inputs["prompt_mask"][row].tolist() == [False] * rest + words
    assert batch.index.tolist() == (every + 10).tolist() and "answers" not in batch.counts
    learned = EvalQuestions(Listed(ALL), made).batch(every)
    for name in ("image", "image_row"):
        assert torch.equal(batch.inputs[name], learned.inputs[name])


def test_styles(tmp_path: Path) -> None:
    made = asking(tmp_path, rationales=True, instruction="In stages.", choices="words")
    choice = item(answer="mat", choices=("cat", "mat"), pictures=[6], rationale=WHY)
    assert made.turns(choice) == (Message("user", "<image>\none two?\nA. cat\nB. mat\nIn stages."),)
    assert made.answer(choice) == WHY.written("mat")
    blind = Asking(made.reads, Style(pictures=False), 400)
    batch = EvalQuestions(Listed(ALL), blind).batch(np.arange(len(ALL)))
    assert "image" not in batch.inputs and not (batch.inputs["text"] == blind.image_token).any()
    assert blind.turns(ITEMS["two, where they are marked"][0]) == (Message("user", "the  or the ?"),)
    # a model that reads texts alone has the same
    alone = EvalQuestions(Listed(ALL), Asking(TextOnly(made.reads.text), Style(pictures=False), 400))
    other = alone.batch(np.arange(len(ALL)))
    assert other.tensors().keys() == batch.tensors().keys()
    assert all(torch.equal(other.tensors()[name], tensor) for name, tensor in batch.tensors().items())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (item("the <image>?", pictures=[1, 2]), "question 0: its text has 1 mark of a picture.* 2 pictures"),
        (item("the <image>?"), "1 mark of a picture, and there are 0"),
        (item("<image>", pictures=[1]), "question 0: it has no question"),
        (item(" ", pictures=[1]), "no question"),
        (item(answer=" "), "its answer is empty"),
        (item(answer="an <image>", pictures=[1]), "its answer holds the mark of a picture: 'an <image>'"),
        (item("one " * 300), r"question 0: its \d+ tokens are more than the 400"),
        (item(choices=tuple(map(str, range(27))), answer="3"), "27 choices"),
        (item(pictures=[-1]), "picture -1 does not decode"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(bad: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        EvalQuestions(Listed([bad]), asking(tmp_path)).batch(np.array([0]))
    assert "\n" not in str(error.value)


def test_no_rationale_and_no_room_are_refused(tmp_path: Path) -> None:
    made = asking(tmp_path, rationales=True)
    with pytest.raises(UserError, match="question 0: it has no rationale"):
        EvalQuestions(Listed([item()]), made).batch(np.array([0]))
    every = np.array([0])
    with pytest.raises(UserError, match=r"its \d+ tokens and its answer of 390 are more than the 400"):
        AskedQuestions(Listed([item()]), made, 390, every, every, every).batch(every)


def test_tokens_and_pictures_that_disagree_are_told_by_both_numbers() -> None:
    inputs = {"text": torch.tensor([[9, 9, 1], [9, 9, 2]]), "image_row": torch.tensor([0, 1, 1])}
    with pytest.raises(
        UserError, match="question 8: its text has 2 image tokens, but its 2 pictures of 2 take 4"
    ):
        check_places(inputs, np.array([7, 8]), 9, 2)
    check_places({**inputs, "image_row": torch.tensor([0, 1])}, np.array([7, 8]), 9, 2)


def test_a_training_question_that_cannot_be_used_is_another_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = asking(tmp_path, longest=80)
    items = [item(f"n {n}?", answer=str(n), pictures=[n]) for n in range(12)]
    items[3], items[5] = item("one " * 99, answer="long"), item(answer="dark", pictures=[-1])

    def check(number: int, each: Any) -> Any:
        return made.example(each)

    indices = np.arange(2, 12)
    source = ForgivingQuestions(Listed(items), 2, indices, check)
    pairs = np.stack([np.zeros(10, np.int64), np.arange(10)], axis=1)
    batch = TrainQuestions(source, indices, made).batch(pairs)
    assert source.bad == 2 and "takes the place of one that is bad" in caplog.text
    rows = batch.targets["tokens"]
    said = [made.tokenizer.words(row[row >= 0].tolist()) for row in rows]
    assert not {"long", "dark", "0", "1"} & set(said) and batch.index.tolist() == list(range(2, 12))
    levels = (batch.inputs["image"][:, 0, 0, 0] + 1) / 2 * 255
    assert [f"{level:.0f}" for level in levels] == said, "each with its own picture"
    with pytest.raises(UserError, match=r"2 of 12 questions cannot be used \(its \d+ tokens"):
        TrainQuestions(ForgivingQuestions(Listed(items), 1, indices, check), indices, made).batch(pairs)


def test_a_training_question_is_made_and_tokenised_once_a_batch(tmp_path: Path) -> None:
    """Drawing and tokenising is most of what a batch costs, in the first epoch and later."""
    made, asked, tokenised = asking(tmp_path), list[int](), list[int]()

    class Counted(Listed):
        def item(self, index: int) -> Any:
            asked.append(index)
            return super().item(index)

    def check(number: int, each: Any) -> Any:
        tokenised.append(number)
        return made.example(each)

    items = [item(f"n {n}?", answer=str(n), pictures=[n]) for n in range(4)]
    indices = np.arange(4)
    source = TrainQuestions(ForgivingQuestions(Counted(items), 0, indices, check), indices, made)
    plain = TrainQuestions(ForgivingQuestions(Listed(items), 0), indices, made)
    for epoch in range(2):
        pairs = np.stack([np.full(4, epoch), np.arange(4)[::-1]], axis=1)
        found, wanted = source.batch(pairs), plain.batch(pairs)
        assert asked == tokenised == [3, 2, 1, 0] * (epoch + 1)
        for name, tensor in {**wanted.inputs, **wanted.targets}.items():
            assert torch.equal({**found.inputs, **found.targets}[name], tensor)


def test_what_batches_depend_on_tells_them_apart(tmp_path: Path) -> None:
    made, every = asking(tmp_path), np.arange(len(ALL))

    def identity(items: Any, style: Style = made.style, indices: Any = every) -> str:
        source = ForgivingQuestions(Listed(items), 0)
        return json.dumps(TrainQuestions(source, indices, Asking(made.reads, style, 400)).identity())

    assert identity(ALL) == identity(list(ALL))
    others = [
        identity(ALL, Style(choices="words")),
        identity(ALL, Style(instruction="Say it.")),
        identity(ALL, indices=every[::-1].copy()),
        identity([item(pictures=[10]), *ALL[1:]]),
        identity([item(answer="mat", pictures=[9]), *ALL[1:]]),
    ]
    assert len({identity(ALL), *others}) == 6


def test_twins_stay_twins_where_neither_is_replaced() -> None:
    items = [item(pictures=[n if n != 4 else -1]) for n in range(8)]
    twins = ForgivingQuestions(Listed(items, twins=True), 2)
    assert [twins.twin(n) for n in range(8)] == [1, 0, 3, 2, None, None, 7, 6]
    assert ForgivingQuestions(Listed(items), 2).twin(0) is None


def test_the_first_rows_keep_their_pictures(tmp_path: Path) -> None:
    made = EvalQuestions(Listed(ALL), asking(tmp_path))
    batch = made.batch(np.arange(len(ALL)))
    for count in (1, 3, 4):
        first = batch.first(count)
        assert len(first) == count and first.inputs["text"].shape[0] == count
        assert len(first.inputs["image"]) == sum(len(each.pictures) for each in ALL[:count])
        assert torch.equal(first.inputs["image"], made.batch(np.arange(count)).inputs["image"])
