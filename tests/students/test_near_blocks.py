"""Attention to near tokens in blocks, against one mask over all pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hybrids import hybrid, llama, qwen3, relative, texts
from torch import Tensor

from transmamba.core.output import Context
from transmamba.students.hybrid_lm import nearby
from transmamba.students.hybrid_lm.nearby import Nearby, Reading
from transmamba.students.hybrid_lm.own import blocks_transmamba
from transmamba.views.rope import Rope
from transmamba.views.sublayers import attend

LENGTH, ROWS = 37, 3


@pytest.fixture(autouse=True, params=[4, 8, 16])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks_transmamba, "BLOCK", request.param)
    return int(request.param)


def contexts() -> dict[str, Context]:
    """Rows of one text, of padding on either side or within, and of packed documents of all lengths."""
    text = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    found = {"alone": Context(), "numbered": Context.of({"text": text})}
    for name, padded in (("left", slice(0, 9)), ("right", slice(20, None)), ("within", slice(6, 19))):
        mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
        mask[1, padded] = False
        mask[2, 2 if name == "right" else slice(0, LENGTH - 2)] = False
        found[name] = Context.of({"text": text, "text_mask": mask})
    begins = torch.zeros(ROWS, LENGTH, dtype=torch.int32)
    begins[0, [3, 4, 15]], begins[1, [16, 32]], begins[2, 1:] = 1, 1, 1
    segments = begins.cumsum(dim=1).int()
    found["packed"] = Context.of({"text": text, "text_segment": segments})
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    mask[:, 33:] = False
    found["packed, padded"] = Context.of({"text": text, "text_segment": segments, "text_mask": mask})
    return found


def near(context: Context, window: int, sinks: int) -> Nearby:
    places = torch.arange(LENGTH)[None] if context.positions is None else context.positions
    return Nearby.of(context, places, window, sinks)


def real(context: Context) -> Tensor:
    return torch.ones(ROWS, LENGTH, dtype=torch.bool) if context.mask is None else context.mask


@pytest.mark.parametrize("name", contexts())
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (1, 2), (5, 0), (5, 3), (9, 1), (20, 6), (5, 40)])
def test_each_token_reads_the_same_others_each_once(name: str, window: int, sinks: int) -> None:
    """By queries of zeros, for which softmax is even, over values that are one another's marks."""
    context = contexts()[name]
    made = near(context, window, sinks)
    assert made.blocks is not None and made.allowed is not None
    zeros, marks = torch.zeros(ROWS, 1, LENGTH, LENGTH), torch.eye(LENGTH).expand(ROWS, 1, -1, -1)
    found = made.attend(zeros, zeros, marks)[:, 0]
    allowed = made.allowed.expand(ROWS, -1, -1, -1)[:, 0].double()
    wanted = allowed / allowed.sum(dim=-1, keepdim=True)
    assert (found - wanted)[real(context)].abs().max() < 1e-6
    assert found.isfinite().all()


@pytest.mark.parametrize("name", contexts())
@pytest.mark.parametrize("heads", [2, 6])
def test_values_and_gradients_are_those_of_one_mask(name: str, heads: int) -> None:
    context = contexts()[name]
    made = near(context, 5, 3)
    torch.manual_seed(0)
    each = [(ROWS, heads, LENGTH, 4), (ROWS, 2, LENGTH, 4), (ROWS, 2, LENGTH, 4)]
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in each]
    asked = torch.randn(ROWS, heads, LENGTH, 4, dtype=torch.float64) * real(context)[:, None, :, None]
    values, gradients = [], []
    for attended in (made.attend, lambda q, k, v: attend(q, k, v, made.allowed)):
        value = attended(*given)
        values.append(value.transpose(1, 2)[real(context)])
        gradients.append(torch.autograd.grad((value * asked).sum(), given))
    assert relative(values[0], values[1]) < 1e-12
    for mine, theirs in zip(*gradients, strict=True):
        assert relative(mine, theirs) < 1e-12


def test_short_texts_are_read_as_a_whole(block: int) -> None:
    for window, whole in ((5, True), (4, False)):
        places = torch.arange(block + 5)[None]
        made = Nearby.of(Context(), places, window, 2)
        assert (made.blocks is None) == whole


def test_no_mask_over_all_pairs_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a layer that reads everything."""
    asked = []
    monkeypatch.setattr(nearby, "readable", lambda *given: asked.append(given))
    x, rope = torch.zeros(ROWS, LENGTH, 1), Rope(torch.ones(2), 1.0)
    for context in contexts().values():
        reading = Reading.of(context, x, rope, (5,), 3)
        reading.nearby[5].attend(*torch.zeros(3, ROWS, 1, LENGTH, 4))
    assert not asked
    assert reading.allowed is None and len(asked) == 1


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [llama, qwen3])
def test_a_mask_is_made_once_a_pass_and_changes_nothing(
    make: Callable[..., Any], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside masks of bool, which torch itself turns into what is added, in each layer anew. A Qwen3's
    queries and keys are wider than its values under autocast."""
    student = hybrid(make(), 1, window=5, sinks=2).train()
    student = student if autocast else student.double()
    wanted, text = torch.bfloat16 if autocast else torch.float64, texts(2, LENGTH)
    made: list[torch.dtype] = []
    ours = blocks_transmamba.added

    def counted(allowed: Tensor, dtype: torch.dtype) -> Tensor:
        made.append(dtype)
        return ours(allowed, dtype)

    found = []
    for added in (counted, lambda allowed, _: allowed):
        monkeypatch.setattr(blocks_transmamba, "added", added)
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = student(text)
        logits.double().logsumexp(dim=-1).sum().backward()
        found.append([logits, *(p.grad for p in student.parameters() if p.grad is not None)])
    assert made == [wanted]
    for mine, theirs in zip(*found, strict=True):
        assert relative(mine, theirs) < (1e-2 if autocast else 1e-12)
