"""Cross-Mamba in each mode: its definition token by token in float64, what it may read, what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from crossed import MASK, inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transmamba.errors import UserError
from transmamba.layers.cross_base import Mode
from transmamba.layers.cross_mamba import MODES, CrossMamba, CrossMambaConfig, cross_mamba
from transmamba.layers.prompt import Prompt

D, E, H, S, W = 10, 7, 2, 3, 8
P = W // H
Parameters = dict[str, Tensor]


@pytest.fixture(params=("state", "prefix", "reported"))
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=get_args(Mode))
def any_mode(request: pytest.FixtureRequest) -> str:
    """Rivals, too."""
    return request.param


@pytest.fixture
def make(randomise: Callable[..., None]) -> Callable[..., CrossMamba]:
    def build(mode: str, gate: float = 0.7, **options: Any) -> CrossMamba:
        sizes: dict[str, Any] = {"num_heads": H, "state_size": S, "width": W, "length": 6, **options}
        module = cross_mamba(D, E, CrossMambaConfig(mode=mode, **sizes)).double()  # type: ignore[arg-type]
        randomise(module, seed=3)
        torch.nn.init.constant_(module.scale, gate)
        return module

    return build


# The definition, one row and one token at a time.


def linear(p: Parameters, name: str, u: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ u + p[f"{name}.bias"]


def rms(p: Parameters, name: str, u: Tensor) -> Tensor:
    return u / (u.square().mean() + 1e-6).sqrt() * p[f"{name}.weight"]


def convolved(p: Parameters, tokens: list[Tensor]) -> list[Tensor]:
    """Every token from itself and those before it."""
    kernel, bias = p["conv1d.weight"][:, 0], p["conv1d.bias"]
    taps = kernel.shape[1]
    return [
        bias + sum(kernel[:, taps - 1 - back] * tokens[t - back] for back in range(taps) if t - back >= 0)
        for t in range(len(tokens))
    ]


def scan(p: Parameters, decay: str, steps: list[Tensor], B: list[Tensor], x: list[Tensor]) -> list[Tensor]:
    """The state (H, P, S) after each token, from an empty one."""
    A, h, found = -torch.exp(p[decay]), torch.zeros(H, P, S, dtype=torch.float64), []
    for raw, b, value in zip(steps, B, x, strict=True):
        dt = torch.log1p(torch.exp(raw))
        h = torch.exp(dt * A)[:, None, None] * h
        h = h + dt[:, None, None] * value.view(H, P)[:, :, None] * b.view(H, S)[:, None, :]
        found.append(h)
    return found


def read(C: Tensor, h: Tensor) -> Tensor:
    return (h * C.view(H, 1, S)).sum(-1) / S**0.5


def by_state(p: Parameters, vision: list[Tensor], language: list[Tensor]) -> list[Tensor]:
    h = torch.zeros(H, P, S, dtype=torch.float64)
    for decay, tokens in (("A_log", language), ("A_b_log", language[::-1])):
        written = convolved(p, [linear(p, "write", token) for token in tokens])
        steps = [linear(p, "dt_proj", token) for token in tokens]
        states = scan(p, decay, steps, [w[: H * S] for w in written], [w[H * S :] for w in written])
        h = h + (states[-1] / 2 if states else 0)
    return [read(linear(p, "read", token), h) for token in vision]


def by_prefix(p: Parameters, vision: list[Tensor], language: list[Tensor]) -> list[Tensor]:
    mixed = [linear(p, "write", t) for t in language] + [linear(p, "write_vision", t) for t in vision]
    steps = [linear(p, "dt_proj", t) for t in language] + [linear(p, "dt_vision", t) for t in vision]
    written = convolved(p, mixed)
    states = scan(p, "A_log", steps, [w[: H * S] for w in written], [w[H * S :] for w in written])
    behind = states[len(language) :]
    return [read(linear(p, "read", token), h) for token, h in zip(vision, behind, strict=True)]


def by_reported(p: Parameters, vision: list[Tensor], language: list[Tensor]) -> list[Tensor]:
    step = p["dt_proj.bias"]
    if language:
        step = torch.stack([linear(p, "dt_proj", token) for token in language]).mean(0)
    outputs = [torch.zeros(H, P, dtype=torch.float64) for _ in vision]
    for decay, order in (("A_log", 1), ("A_b_log", -1)):
        x = convolved(p, [linear(p, "in_proj", token) for token in vision[::order]])
        states = scan(p, decay, [step] * len(x), [linear(p, "select_B", value) for value in x], x)
        y = [read(linear(p, "select_C", value), h) for value, h in zip(x, states, strict=True)]
        outputs = [a + b / 2 for a, b in zip(outputs, y[::order], strict=True)]
    return outputs


DEFINITIONS = {"state": by_state, "prefix": by_prefix, "reported": by_reported}


def defined(mode: str, p: Parameters, vision: Tensor, language: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for row in range(len(vision)):
        u = [rms(p, "norm", token) for token in vision[row]]
        prompt = [rms(p, "norm_language", token) for token in language[row][mask[row]]]
        for t, y in enumerate(DEFINITIONS[mode](p, u, prompt)):
            z = linear(p, "gate", u[t])
            added = p["proj.weight"] @ rms(p, "norm_y", y.flatten() * z * torch.sigmoid(z))
            rows.append(vision[row, t] + torch.tanh(p["scale"]) * added)
    return torch.stack(rows).view(vision.shape)


@pytest.mark.parametrize("taps", (1, 4))
def test_outputs_and_gradients_equal_the_loop(mode: str, taps: int, make: Callable[..., CrossMamba]) -> None:
    module = make(mode, conv_kernel=taps)
    truth = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    given = [tensor.requires_grad_() for tensor in inputs()]
    apart = [tensor.detach().clone().requires_grad_() for tensor in given]
    found, wanted = module(*given, MASK), defined(mode, truth, *apart, MASK)
    assert (wanted - given[0]).std() > 0.1, "a test of nothing"
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    pairs = {name: (p.grad, truth[name].grad) for name, p in module.named_parameters()}
    pairs |= {"vision": (given[0].grad, apart[0].grad), "language": (given[1].grad, apart[1].grad)}
    for name, (mine, true) in pairs.items():
        assert mine is not None and true is not None and true.norm() > 0, name
        assert (mine - true).norm() <= 1e-9 * true.norm(), name
    assert not given[1].grad[~MASK].any()  # type: ignore[index]


def test_new_module_gives_back_its_input_and_then_learns_from_both(any_mode: str) -> None:
    torch.manual_seed(0)
    config = CrossMambaConfig(mode=any_mode, num_heads=2, state_size=4, length=6)  # type: ignore[arg-type]
    module = cross_mamba(D, E, config)
    vision, language = (tensor.float() for tensor in inputs())
    assert torch.equal(module(vision, language, MASK), vision)
    if isinstance(module, CrossMamba):
        steps = torch.nn.functional.softplus(module.dt_proj.bias)
        torch.testing.assert_close(steps, torch.full_like(steps, 1 / 6))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    language.requires_grad_()
    for first in (True, False):  # at first the gate alone has a gradient
        optimizer.zero_grad()
        module(vision, language, MASK).square().sum().backward()
        moved = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == ({"scale"} if first else {name for name, _ in module.named_parameters()})
        optimizer.step()
    assert language.grad is not None and language.grad[:3].any()
    assert not torch.equal(module(vision, language, MASK)[:3], vision[:3])


def test_answers_and_padding_change_no_bit(any_mode: str, make: Callable[..., CrossMamba]) -> None:
    module, (vision, language) = make(any_mode), inputs()
    before = module(vision, language, MASK)
    gradients = torch.autograd.grad(before.sum(), list(module.parameters()))
    for value in (torch.randn_like(language), torch.full_like(language, float("nan"))):
        after = module(vision, torch.where(MASK.unsqueeze(-1), language, value), MASK)
        assert torch.equal(before, after)
        for one, other in zip(
            gradients, torch.autograd.grad(after.sum(), list(module.parameters())), strict=True
        ):
            assert torch.equal(one, other)
    asked = language.clone()
    asked[0, 4] += 1
    changed = (module(vision, asked, MASK) != before).any(2)
    assert changed[0].all() and not changed[1:].any(), "the prompt is read, by its own row"


def test_padding_changes_no_bit(any_mode: str, make: Callable[..., CrossMamba]) -> None:
    module, (vision, language) = make(any_mode).float(), inputs()
    vision, language = vision.float(), language.float()
    whole = torch.ones(MASK.shape, dtype=torch.bool)
    whole[1, 6:] = False
    before = module(vision, language, whole)
    for left, right in ((3, 0), (0, 70), (70, 5)):
        padded = torch.nn.functional.pad(language, (0, 0, left, right), value=7.0)
        mask = torch.nn.functional.pad(whole, (left, right))
        assert torch.equal(before, module(vision, padded, mask)), (left, right)
        assert torch.equal(before, module(vision, Prompt.of(padded, mask))), "cut out before"
    bound = module(vision, padded, mask, longest=20)  # keeps padding of its own
    torch.testing.assert_close(bound, before, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="a prompt is longer than longest=8"):
        module(vision, padded, mask, longest=8)


def test_rows_of_a_batch_equal_rows_alone(any_mode: str, make: Callable[..., CrossMamba]) -> None:
    module, (vision, language) = make(any_mode), inputs(visual=70)
    together = module(vision, language, MASK)
    for row in range(len(MASK)):
        kept = language[row][MASK[row]].unsqueeze(0)
        one = module(vision[row : row + 1], kept, torch.ones(kept.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(together[row : row + 1], one, rtol=1e-12, atol=1e-12)


def test_a_row_without_prompt_or_picture(make: Callable[..., CrossMamba]) -> None:
    vision, language = inputs()
    module = make("state")
    assert torch.equal(module(vision, language, MASK)[3], vision[3])
    none = vision[:, :0]
    assert module(none, language, MASK).shape == none.shape
    assert Prompt.of(language[:, :0], MASK[:, :0]).tokens.shape == (4, 1, E)


class Elements(TorchDispatchMode):
    """Counts the elements that operators read and write, within scans too, and what products multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:  # moves nothing
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.total += sum(tensor.numel() for tensor in tensors)
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default, torch.ops.aten.baddbmm.default):
            left, right = args[-2:]
            self.total += left.numel() * right.shape[-1]
        elif func is torch.ops.aten.addmm.default:
            self.total += args[1].numel() * args[2].shape[1]
        return result


@pytest.mark.parametrize("grows", ("vision", "language"))
def test_cost_is_linear_in_both_lengths(grows: str, mode: str, make: Callable[..., CrossMamba]) -> None:
    module, counts = make(mode), []
    for chunks in (8, 16, 32):
        visual, words = (64 * chunks, 64) if grows == "vision" else (64, 64 * chunks)
        mask = torch.ones(1, words, dtype=torch.bool)
        vision, language = (torch.randn(1, n, k).double() for n, k in ((visual, D), (words, E)))
        with Elements() as counter:
            module(vision, language.requires_grad_(), mask).sum().backward()
        counts.append(counter.total)
    assert counts[1] > 1.05 * counts[0], "a test of nothing"
    # Linear: as much again for every token more. Quadratic would be twice that; 2 % for what is constant.
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.02)


def test_wrong_configs_are_refused() -> None:
    for options, message in (
        ({"mode": "stat"}, f"mode is 'stat'; did you mean 'state'? known: {', '.join(sorted(MODES))}"),
        ({"num_heads": 0}, "num_heads is 0; write a number of at least 1"),
        ({"width": -4}, "width is -4; write a number of at least 1, or null"),
    ):
        with pytest.raises(ValueError) as error:
            CrossMambaConfig(**options)  # type: ignore[arg-type]
        assert str(error.value) == message
    with pytest.raises(UserError, match="width is 10; write a multiple of num_heads, 4"):
        cross_mamba(10, E)
    assert set(MODES) == set(get_args(Mode))
    with pytest.raises(dataclasses.FrozenInstanceError):
        CrossMambaConfig().mode = "prefix"  # type: ignore[misc]


def test_wrong_inputs_are_refused_by_one_line(any_mode: str, make: Callable[..., CrossMamba]) -> None:
    module, (vision, language) = make(any_mode), inputs()
    for given, message in (
        ((vision[..., :4], language, MASK), "vision: shape (4, 5, 4), expected (B, N, 10)"),
        ((vision[0], language, MASK), "vision: shape (5, 10), expected (B, N, 10)"),
        ((vision, language[..., :2], MASK), "language: shape (4, 9, 2), expected (B, L, 7)"),
        (
            (vision[:2], language, MASK),
            "language: 4 rows, vision has 2; give each picture its own text's row",
        ),
        ((vision, language, MASK[:, 1:]), "mask: shape (4, 8), expected (4, 9), (B, L) of language"),
        ((vision, language, MASK.long()), "mask: dtype torch.int64, expected torch.bool, True on the prompt"),
    ):
        with pytest.raises(UserError) as error:
            module(*given)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
