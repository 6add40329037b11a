"""Every function's prompts against a slow loop that is written from its definition, a row and an example at a
time, with random numbers out of numpy's hash."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from transmamba.config.registry import FUNCTIONS
from transmamba.data.functions.chain import ChainOfThought
from transmamba.data.functions.draws import RowDraws
from transmamba.data.functions.mqar import MQAR
from transmamba.data.functions.outliers import ManyOutlier, OrthogonalOutlier
from transmamba.data.functions.parity import SparseParity
from transmamba.data.functions.prompts import Drawn, Function, Prompts
from transmamba.data.functions.regression import DecisionTree, Linear, SparseLinear, TwoLayerNetwork
from transmamba.data.hashing import hash64
from transmamba.errors import WrongValues

SEED, ROWS, STEP = 5, (3, 4, 2**35 + 1), 7
DIMS = (4, 3, 4)  # alive, of four


class Row:
    """The numbers of one row, or of one step, as the definitions ask for them: one at a time."""

    def __init__(self, *keys: int) -> None:
        self.keys = keys

    def bits(self, stream: int, place: int) -> int:
        return int(hash64(*self.keys, stream, place)[0])

    def uniform(self, stream: int, place: int) -> float:
        return ((self.bits(stream, place) >> 41) + 0.5) / 2**23

    def normal(self, stream: int, place: int) -> float:
        bits = self.bits(stream, place)
        one, two = ((b + 0.5) / 2**23 for b in (bits >> 41, (bits >> 18) % 2**23))
        return math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * two)

    def normals(self, stream: int, *shape: int) -> np.ndarray:
        flat = [self.normal(stream, place) for place in range(math.prod(shape))]
        return np.array(flat).reshape(shape)

    def below(self, stream: int, bound: int, place: int) -> int:
        return (self.bits(stream, place) >> 32) * bound >> 32

    def lowest(self, stream: int, count: int, bound: int) -> list[int]:
        """Those `count` numbers below `bound` whose hashes are lowest."""
        return sorted(range(bound), key=lambda place: self.bits(stream, place) >> 1)[:count]


def drawn(dims: tuple[int, ...] = DIMS) -> Drawn:
    seed, rows, step = (
        torch.tensor(x).expand(3) if isinstance(x, int) else torch.tensor(x) for x in (SEED, ROWS, STEP)
    )
    return Drawn(RowDraws((seed, torch.zeros_like(rows), rows)), RowDraws((seed, step)), torch.tensor(dims))


Slow = Callable[[Any, Row, Row, int], tuple[list[Any], list[Any], list[bool]]]
STREAM_X, STREAM_TASK, STREAM_NOISE, STREAM_OWN = 0, 1, 2, 3


def xs_of(f: Any, row: Row, dims: int) -> np.ndarray:
    x = row.normals(STREAM_X, f.points, f.d)
    x[:, dims:] = 0
    return x


def in_turn(
    f: Any, x: np.ndarray, y: list[float], after: Any = None, asked: Any = None
) -> tuple[list[Any], list[Any], list[bool]]:
    tokens: list[Any] = []
    values: list[Any] = []
    wanted: list[bool] = []
    for i in range(f.points):
        behind = np.eye(f.d)[0] * y[i] if after is None else after[i]
        tokens += [x[i], behind]
        values += [[y[i]], [0.0]]
        wanted += [True if asked is None else asked[i], False]
    return tokens, values, wanted


def linear(f: Any, row: Row, step: Row, dims: int) -> Any:
    x, w = xs_of(f, row, dims), row.normals(STREAM_TASK, f.d)
    y = [
        sum(w[j] * x[i, j] for j in range(f.d)) + f.noise * row.normal(STREAM_NOISE, i)
        for i in range(f.points)
    ]
    return in_turn(f, x, y)


def sparse_linear(f: Any, row: Row, step: Row, dims: int) -> Any:
    x, w = xs_of(f, row, dims), row.normals(STREAM_TASK, f.d)
    alive = row.lowest(STREAM_OWN, f.k, dims)
    return in_turn(f, x, [sum(w[j] * x[i, j] for j in alive) for i in range(f.points)])


def two_layer_network(f: Any, row: Row, step: Row, dims: int) -> Any:
    x, W, v = xs_of(f, row, dims), row.normals(STREAM_TASK, f.hidden, f.d), row.normals(STREAM_OWN, f.hidden)
    y = [
        math.sqrt(2 / f.hidden) * sum(v[h] * max(0.0, float(W[h] @ x[i])) for h in range(f.hidden))
        for i in range(f.points)
    ]
    return in_turn(f, x, y)


def decision_tree(f: Any, row: Row, step: Row, dims: int) -> Any:
    x, y = xs_of(f, row, dims), []
    for i in range(f.points):
        node = 0
        for _ in range(f.depth):
            coordinate = row.below(STREAM_TASK, dims, node)
            node = 2 * node + (2 if x[i, coordinate] > 0 else 1)
        y.append(row.normal(STREAM_OWN, node - (2**f.depth - 1)))
    return in_turn(f, x, y)


def sparse_parity(f: Any, row: Row, step: Row, dims: int) -> Any:
    x = np.zeros((f.points, f.d))
    for i in range(f.points):
        for j in range(dims):
            x[i, j] = -1.0 if row.bits(STREAM_X, i * f.d + j) >> 63 else 1.0
    chosen = (step if f.as_released else row).lowest(STREAM_TASK, f.k, dims)
    return in_turn(f, x, [float(np.prod([x[i, j] for j in chosen])) for i in range(f.points)])


def many_outlier(f: Any, row: Row, step: Row, dims: int) -> Any:
    x, w = xs_of(f, row, dims), row.normals(STREAM_TASK, f.d)
    odd = [row.uniform(3, i) < f.share for i in range(f.points)]
    y = [1.0 if odd[i] else float(w @ x[i]) for i in range(f.points)]
    x[odd, :dims] = 1.0
    return in_turn(f, x, y, asked=[not each for each in odd])


def across(row: Row, w: np.ndarray, stream: int, dims: int) -> np.ndarray:
    u, w = row.normals(stream, len(w)), w.copy()
    u[dims:], w[dims:] = 0, 0
    return u - (u @ w) / (w @ w) * w


def orthogonal_outlier(f: Any, row: Row, step: Row, dims: int) -> Any:
    x, w = xs_of(f, row, dims), row.normals(STREAM_TASK, f.d)
    y = [float(w @ x[i]) for i in range(f.points)]
    after = [np.eye(f.d)[0] * each for each in y]
    odd = [row.uniform(3, i) < f.share for i in range(f.points)]
    for i in range(f.points):
        if not odd[i]:
            continue
        made = []
        for factors, other in ((6, 8), (7, 9)):
            if f.as_released:
                w_other = row.normals(other, f.d)
                a, b = (row.normal(factors, place) for place in (0, 1))
                a = a / (a * a + b * b)
                b = b / (a * a + b * b)
            else:
                w_other = w
                a, b = (row.normal(factors, 2 * i + place) for place in (0, 1))
                a, b = a / math.hypot(a, b), b / math.hypot(a, b)
            made.append(a * across(row, w_other, 4, dims) + b * across(row, w_other, 5, dims))
        x[i], after[i] = made
        if not f.as_released:
            assert abs(x[i][:dims] @ w[:dims]) < 1e-6 and abs(after[i][:dims] @ w[:dims]) < 1e-6
    return in_turn(f, x, y, after, [not each for each in odd])


def chain_of_thought(f: Any, row: Row, step: Row, dims: int) -> Any:
    x = xs_of(f, row, dims)
    W = math.sqrt(2 / f.hidden) * row.normals(STREAM_TASK, f.hidden, f.d)
    v = row.normals(STREAM_OWN, f.hidden)
    tokens, values, asked = [], [], []
    for i in range(f.points):
        s = [max(0.0, float(W[h] @ x[i])) for h in range(f.hidden)]
        y = sum(v[h] * s[h] for h in range(f.hidden))
        no_x, no_s = [0.0] * f.d, [0.0] * f.hidden
        tokens += [[*x[i], *no_s, 0], [*no_x, *s, 0], [*no_x, *no_s, y]]
        values += [[*s, 0], [*no_s, y], [*no_s, 0]]
        asked += [[True] * f.hidden + [False], [False] * f.hidden + [True], [False] * (f.hidden + 1)]
    return tokens, values, asked


def mqar(f: Any, row: Row, step: Row, dims: int) -> Any:
    both = row.normals(STREAM_X, 2 * f.pairs + 1, f.d)
    both[:, dims:] = 0
    both = [math.sqrt(dims) * each / np.linalg.norm(each) for each in both]
    keys, values = both[: 2 * f.pairs : 2], both[1 : 2 * f.pairs : 2]
    slots = [*keys, both[-1]] if f.as_released else keys
    asked = sorted(range(len(slots)), key=lambda place: row.bits(STREAM_OWN, place) >> 1)[: f.queries]
    answers = []
    for place in asked:
        if place == f.pairs:  # new: the key that is most like it
            place = max(range(f.pairs), key=lambda k: float(slots[f.pairs] @ keys[k]))
        answers.append(values[place])
    tokens = [*both[:-1], *(slots[place] for place in asked)]
    nothing = [np.zeros(f.d)] * (2 * f.pairs)
    return tokens, [*nothing, *answers], [False] * (2 * f.pairs) + [True] * f.queries


SMALL: dict[str, tuple[Function, Slow]] = {
    "linear": (Linear(d=4, points=5, noise=0.3), linear),
    "sparse_linear": (SparseLinear(d=4, points=5, k=2), sparse_linear),
    "two_layer_network": (TwoLayerNetwork(d=4, points=5, hidden=6), two_layer_network),
    "decision_tree": (DecisionTree(d=4, points=12, depth=3), decision_tree),
    "orthogonal_outlier": (OrthogonalOutlier(d=4, points=9), orthogonal_outlier),
    "orthogonal_outlier_released": (OrthogonalOutlier(d=4, points=9, as_released=True), orthogonal_outlier),
    "many_outlier": (ManyOutlier(d=4, points=9, share=0.6), many_outlier),
    "sparse_parity": (SparseParity(d=4, points=9), sparse_parity),
    "sparse_parity_released": (SparseParity(d=4, points=9, as_released=True), sparse_parity),
    "chain_of_thought": (ChainOfThought(d=4, points=4, hidden=3), chain_of_thought),
    "mqar": (MQAR(d=4, pairs=5, queries=3), mqar),
    "mqar_released": (MQAR(d=4, pairs=5, queries=5, as_released=True), mqar),
}


def test_every_function_has_a_loop() -> None:
    assert {name.removesuffix("_released") for name in SMALL} == set(FUNCTIONS)


@pytest.mark.parametrize("name", SMALL)
def test_prompts_are_the_loop_s(name: str) -> None:
    function, slow = SMALL[name]
    made = function.make(drawn())
    for b, (row, dims) in enumerate(zip(ROWS, DIMS, strict=True)):
        tokens, values, asked = slow(function, Row(SEED, 0, row), Row(SEED, STEP), dims)
        wanted = torch.tensor(asked)
        wanted = wanted if wanted.dim() == 2 else wanted[:, None].expand_as(made.asked[b])
        assert torch.equal(made.asked[b], wanted)
        torch.testing.assert_close(
            made.points[b].double(), torch.tensor(np.array(tokens)), rtol=1e-4, atol=2e-5
        )
        mine, theirs = made.values[b].double(), torch.tensor(np.array(values, dtype=float))
        torch.testing.assert_close(mine[wanted], theirs[wanted], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_what_is_asked_are_as_a_function_says(name: str) -> None:
    """`asks` alone counts what a step divides its loss by, before there are prompts."""
    function = SMALL[name][0]
    made, shape = function.make(drawn()), function.shape
    assert made.points.shape == (3, shape.length, shape.width) and made.values.shape[2] == shape.outputs
    assert made.asked.shape == made.values.shape and len(function.places()) == shape.length
    assert torch.equal(made.asked.any(dim=-1), function.asks(drawn()))
    assert max(function.places()) == function.examples - 1
    assert made.points.dtype == made.values.dtype == torch.float32


def test_every_function_has_its_paper_s_settings() -> None:
    """As ../reference names them: dimensions, examples, what else there is."""
    shown = {name: (FUNCTIONS[name]().dims, FUNCTIONS[name]().examples) for name in FUNCTIONS}
    assert shown == {
        "linear": (20, 41),
        "sparse_linear": (20, 41),
        "two_layer_network": (20, 101),
        "decision_tree": (20, 101),
        "orthogonal_outlier": (20, 101),
        "many_outlier": (20, 512),
        "sparse_parity": (10, 140),
        "chain_of_thought": (10, 101),
        "mqar": (20, 16),
    }
    assert SparseLinear().k == 3 and SparseParity().k == 2 and TwoLayerNetwork().hidden == 100
    assert DecisionTree().depth == 4 and OrthogonalOutlier().share == 0.5 and ManyOutlier().share == 0.9
    assert ChainOfThought().hidden == 8 and MQAR().pairs == 32


@pytest.mark.parametrize("function", [Linear(d=4, points=9, noise=3.0), SparseLinear(d=4, k=2, noise=2.0)])
def test_who_says_0_misses_about_1(function: Linear) -> None:
    """With noise too: errors are divided by the second moment of y."""
    rows = torch.arange(4000)
    some = RowDraws((rows,))
    y = function.make(Drawn(some, some, torch.full_like(rows, 4))).values[:, ::2]
    assert float(y.double().square().mean()) / function.scale == pytest.approx(1, rel=0.05)


class TestDraws:
    def test_bits_are_those_of_hashing(self) -> None:
        rows = torch.tensor(ROWS)
        made = RowDraws((torch.full_like(rows, SEED), rows)).bits(9, 2, 3)
        wanted = [[hash64(SEED, row, 9, place)[0].view(np.int64) for place in range(6)] for row in ROWS]
        assert made.flatten(1).tolist() == wanted

    def test_normals_are_normal_and_rows_independent(self) -> None:
        rows = torch.arange(4000)
        x = RowDraws((rows,)).normal(0, 50)
        assert x.dtype == torch.float32 and torch.isfinite(x).all()
        flat = x.flatten().double()
        moments = [flat.mean(), flat.square().mean(), (flat**3).mean(), (flat**4).mean()]
        assert torch.allclose(torch.stack(moments), torch.tensor([0.0, 1, 0, 3]).double(), atol=0.05)
        apart = torch.corrcoef(x[:40].double()) - torch.eye(40)
        assert apart.abs().max() < 0.65 and (x[1:] * x[:-1]).mean().abs() < 0.01

    def test_subsets_are_even_and_within_their_bound(self) -> None:
        draws = RowDraws((torch.arange(6000),))
        bound = torch.tensor([3, 5]).repeat(3000)
        made = draws.subset(1, 2, bound, 6)
        assert (made < bound[:, None]).all() and (made[:, 0] != made[:, 1]).all()
        for of in (3, 5):
            share = torch.bincount(made[bound == of].flatten(), minlength=of) / 3000
            assert torch.allclose(share, torch.full((of,), 2 / of), atol=0.04)

    def test_below_is_even(self) -> None:
        found = torch.bincount(RowDraws((torch.arange(500),)).below(0, 7, 40).flatten(), minlength=7) / 20000
        assert torch.allclose(found, torch.full((7,), 1 / 7), atol=0.01)


def test_a_batch_shares_its_parity_as_released_alone() -> None:
    def sets(function: SparseParity) -> int:
        """How many of the six sets of two fit each row, over rows: one set for all as released."""
        made: Prompts = function.make(drawn((4, 4, 4)))
        x, y = made.points[:, ::2], made.values[:, ::2, 0]
        fits = [
            {(i, j) for i in range(4) for j in range(i) if torch.equal(x[b, :, i] * x[b, :, j], y[b])}
            for b in range(3)
        ]
        assert all(len(each) == 1 for each in fits)
        return len(set.union(*fits))

    assert sets(SparseParity(d=4, points=40, as_released=True)) == 1
    assert sets(SparseParity(d=4, points=40)) > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseParity(d=4, k=5), "k is 5, above d, 4; write 4 at most"),
        (lambda: SparseLinear(d=2), "k is 3, above d, 2; write 2 at most"),
        (lambda: MQAR(pairs=4, queries=5), "queries is 5, above pairs, 4; write 4 at most"),
        (lambda: Linear(points=0), "points is 0; write a number of at least 1"),
        (lambda: ManyOutlier(share=1.0), "share is 1.0; write 0 or a share below 1"),
        (lambda: DecisionTree(depth=0), "depth is 0; write a number of at least 1"),
        (lambda: Linear(noise=-1.0), "noise is -1.0; write 0 or a number above it"),
        (lambda: ChainOfThought(hidden=0), "hidden is 0; write a number of at least 1"),
        (
            lambda: DecisionTree(depth=40),
            "depth is 40, of a tree of 2^40 leaves for 101 points; write 12 at most",
        ),
        (lambda: Linear(noise=math.inf), "noise is inf; write 0 or a number above it"),
        (
            lambda: MQAR(pairs=1, queries=1),
            "pairs is 1, whose value is right whatever is said; write at least 2",
        ),
        (lambda: MQAR(d=1), "d is 1, where there are two keys in all; write at least 2"),
        (lambda: OrthogonalOutlier(d=1), "d is 1, where nothing is orthogonal to w; write at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(WrongValues) as told:
        make()
    assert str(told.value) == message
