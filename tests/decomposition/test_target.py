"""A target: a form that is applied, and the true errors of factors in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._quadratic import Elementwise, Product, Quadratic
from tensorlrf.decomposition._source import DenseSource
from tensorlrf.decomposition._target import Target
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import LowRank
from tests.draws import seeded
from tests.metrics import second_moments

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

GRAMS: dict[str, Callable[[int, int], Tensor]] = {
    "full": lambda n, seed: second_moments(seeded(n, 3 * n, seed=seed)),
    "rank one": lambda n, seed: second_moments(seeded(n, 1, seed=seed)),
    "zero": lambda n, seed: torch.zeros(n, n, dtype=torch.float64),
    "huge": lambda n, seed: 1e280 * second_moments(seeded(n, 3 * n, seed=seed)),
    "tiny": lambda n, seed: 1e-280 * second_moments(seeded(n, 3 * n, seed=seed)),
    "one loud input": lambda n, seed: second_moments(
        seeded(n, 3 * n, seed=seed) * (1 + 1e6 * (torch.arange(n) == 0))[:, None]
    ),
}


def semidefinite(n: int, directions: int, seed: int) -> Tensor:
    root = seeded(n, directions, seed=seed)
    return root @ root.T


def form_of(kind: str, m: int, n: int, seed: int) -> Quadratic | Tensor | None:
    """What stands for gram=."""
    if kind == "plain":
        return None
    if kind == "two sides":
        return Product(semidefinite(m, 2, seed), semidefinite(n, n, seed + 1))
    if kind == "outputs":
        return Product(semidefinite(m, m, seed), None)
    if kind == "weights":
        return Elementwise(seeded(m, n, seed=seed).square())
    if kind == "mask":
        return Elementwise((seeded(m, n, seed=seed) > 0).double())
    return GRAMS[kind](n, seed)


KINDS = ["plain", "two sides", "outputs", "weights", "mask", *GRAMS]


def matrix_of(target: Target[LowRank]) -> Tensor:
    """M' as a matrix (m n, m n), column by column."""
    m, n = target.shape
    units = torch.eye(m * n, dtype=torch.float64).reshape(-1, m, n)
    return torch.stack([target.apply(unit).flatten() for unit in units], dim=1)


def sides(factors: LowRank) -> tuple[Tensor, Tensor]:
    return factors.left, factors.right


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    exponent=st.sampled_from([0, -6, 6]),
    seed=st.integers(0, 99),
)
def test_a_form_is_self_adjoint_and_positive_and_inner_is_its_product(
    kind: str, m: int, n: int, dtype: torch.dtype, exponent: int, seed: int
) -> None:
    weight = (seeded(m, n, seed=seed) * 2.0**exponent).to(dtype)
    target: Target[LowRank] = Target.of(weight, form_of(kind, m, n, seed))
    whole = matrix_of(target)
    size = float(whole.abs().max())
    torch.testing.assert_close(whole, whole.T, rtol=0, atol=1e-12 * size)
    assert float(torch.linalg.eigvalsh(whole)[0]) >= -1e-12 * m * n * size
    one, other = seeded(m, n, seed=seed + 1), seeded(m, n, seed=seed + 2)
    by_matrix = float(one.flatten() @ whole @ other.flatten())
    near = 1e-12 * m * n * size
    assert target.inner(one, other) == pytest.approx(by_matrix, rel=1e-9, abs=near)
    assert target.inner(one, other) == pytest.approx(target.inner(other, one), rel=1e-9, abs=near)
    # Of the weight itself, over the target's scale.
    torch.testing.assert_close(target.matrix * target.scale, weight.double(), rtol=0, atol=0)
    flat = target.matrix.flatten()
    torch.testing.assert_close(target.image.flatten(), whole @ flat, rtol=1e-9, atol=near)
    assert target.norm == pytest.approx(float(flat @ whole @ flat), rel=1e-9, abs=near)
    if target.form.sides is not None:
        # The marginals of a product are the product, up to a factor.
        dense = Product(*target.marginals).apply(one)
        torch.testing.assert_close(dense, target.apply(one))


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from([(5, 8), (8, 5), (4, 4), (1, 6)]),
    r=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    far=st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
    split=st.booleans(),
    seed=st.integers(0, 99),
)
def test_errors_are_those_of_the_residual_in_float64(
    kind: str,
    shape: tuple[int, int],
    r: int,
    dtype: torch.dtype,
    far: float,
    split: bool,
    seed: int,
) -> None:
    """Also of factors that are all but exact, where squares multiplied out cancel."""
    m, n = shape
    r = min(r, m, n)
    left, right = seeded(m, r, seed=seed).to(dtype), seeded(r, n, seed=seed + 1).to(dtype)
    exact = left.double() @ right.double()
    weight = (exact + far * seeded(m, n, seed=seed + 2)).to(dtype)
    target: Target[LowRank] = Target.of(
        weight, form_of(kind, m, n, seed), sides=sides if split else None
    )
    factors = LowRank(left, right)
    verdict = target.of_factors(factors)
    off, wide = weight.double() - exact, weight.double()
    lost, norm = (float((d * target.given.apply(d)).sum()) for d in (off, wide))
    expected = math.sqrt(max(0.0, lost) / norm) if norm > 0 else math.sqrt(max(0.0, lost))
    # The plain norm is taken in the working dtype, all others in float64.
    rounding = 4 * float(torch.finfo(target.work.dtype).eps) if kind == "plain" else 1e-12
    size = float(wide.square().sum()) ** 0.5
    near = rounding * max(1.0, size)
    assert verdict.error == pytest.approx(expected, rel=max(1e-6, 8 * rounding), abs=near)
    assert target.error(factors) == verdict.error
    drawn = float((off * target.apply(off)).sum())
    near *= max(1.0, math.sqrt(target.norm))
    assert math.sqrt(verdict.loss) == pytest.approx(math.sqrt(max(0.0, drawn)), rel=1e-5, abs=near)
    if kind == "zero":  # no output is off, and the plain norm decides
        assert verdict.error == 0.0
        assert target.shrinkage == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_factors_that_overflow_are_infinitely_far_off(kind: str) -> None:
    target: Target[LowRank] = Target.of(seeded(4, 5), form_of(kind, 4, 5, 0))
    factors = LowRank(torch.full((4, 1), math.inf).double(), torch.ones(1, 5).double())
    assert target.of_factors(factors).loss == math.inf


@pytest.mark.parametrize("scale", [1.0, 4.0**30, 4.0**-30])
@pytest.mark.parametrize("kind", ["plain", "full", "two sides", "mask"])
def test_the_scale_of_a_weight_is_of_no_consequence(kind: str, scale: float) -> None:
    weight, form = seeded(6, 5), form_of(kind, 6, 5, 3)
    left, right = seeded(6, 2, seed=1), seeded(2, 5, seed=2)
    one: Target[LowRank] = Target.of(weight, form)
    other: Target[LowRank] = Target.of(weight * scale, form)
    assert other.error(LowRank(left * scale, right)) == pytest.approx(
        one.error(LowRank(left, right)), rel=1e-12
    )
    # A power of four, whose root is exact, that leaves entries near one.
    assert math.log2(other.root).is_integer()
    assert 0.125 <= float(other.matrix.abs().max()) <= 4


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    m=st.integers(2, 6), n=st.integers(2, 6), kind=st.sampled_from(KINDS), seed=st.integers(0, 99)
)
def test_a_block_is_improved_towards_its_least_squares_solution(
    m: int, n: int, kind: str, seed: int
) -> None:
    """By the map of left (m, r) to left right and its adjoint; steps never raise the loss."""
    target: Target[LowRank] = Target.of(seeded(m, n, seed=seed), form_of(kind, m, n, seed))
    right, start = seeded(2, n, seed=seed + 1), seeded(m, 2, seed=seed + 2)
    block = start
    losses = []
    for _ in range(8):
        off = target.matrix - block @ right
        losses.append(target.inner(off, off))
        block = target.improved(block, lambda x: x @ right, lambda d: d @ right.T, lambda d: d)
    # What remains of the first loss is rounding where the form has few directions.
    noise = 1e-12 * (losses[0] + target.norm)
    assert all(b <= a * (1 + 1e-9) + noise for a, b in pairwise(losses))
    whole = matrix_of(target)
    units = torch.eye(2 * m, dtype=torch.float64).reshape(-1, m, 2)
    maps = torch.stack([(unit @ right).flatten() for unit in units], dim=1)
    values, vectors = torch.linalg.eigh(whole)
    root = vectors * values.clamp(min=0).sqrt()
    best = torch.linalg.lstsq(
        root.T @ maps, (root.T @ target.matrix.flatten())[:, None], driver="gelsd"
    ).solution
    least = float((root.T @ (target.matrix.flatten() - maps @ best[:, 0])).square().sum())
    assert losses[-1] >= least * (1 - 1e-6) - noise
    assert losses[-1] <= losses[0] + noise


def test_what_a_caller_gives_is_checked_in_one_place() -> None:
    weight = seeded(4, 5)
    with pytest.raises(ArgumentError, match="mean= goes with gram="):
        Target.of(weight, None, torch.zeros(5))
    with pytest.raises(ShapeError, match=r"gram has shape \(4, 4\)"):
        Target.of(weight, torch.eye(4))
    with pytest.raises(ArgumentError, match="gram is indefinite"):
        Target.of(weight, 2 * torch.ones(5, 5) - torch.eye(5))
    with pytest.raises(ArgumentError, match="mean= goes with second moments"):
        Target.of(weight, Product(None, torch.eye(5).double()), torch.zeros(5))
    for form in (Elementwise(torch.ones(4, 5).double()), Product(torch.eye(4).double(), None)):
        target: Target[LowRank] = Target.of(weight, form)
        with pytest.raises(UnsupportedError, match="fitted to second moments"):
            _ = target.moments


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    """A plain fit that asks for nothing pays for nothing: no cast, no product, no look at it."""
    target: Target[LowRank] = Target.of(seeded(4, 5))
    assert target.is_plain
    assert set(vars(target)) == {"source", "given", "sides"}
    assert set(vars(target.source)) == {"tensor", "_scale"}


def test_padded_rows_and_columns_change_no_error() -> None:
    weight, gram = seeded(4, 5), second_moments(seeded(5, 30, seed=1))
    target: Target[LowRank] = Target.of(weight, gram)
    more = target.with_rows(torch.nn.functional.pad(target.matrix[[2, 0, 3, 1]], (0, 2, 0, 3)))
    off = seeded(4, 5, seed=2)
    padded = torch.nn.functional.pad(off, (0, 2, 0, 3))
    padded[:, 5:] = seeded(7, 2, seed=3)  # inputs that are always zero
    assert more.rel_error(padded) == pytest.approx(target.rel_error(off), rel=1e-12)


def test_a_source_gives_parts_of_the_weight() -> None:
    source = DenseSource(seeded(6, 2, 4), scale=4.0)
    whole = seeded(6, 8) / 4.0
    assert source.shape == (6, 8)
    torch.testing.assert_close(source.matrix, whole)
    torch.testing.assert_close(source.gram(), whole.T @ whole)
    torch.testing.assert_close(source.contract(seeded(6, 3), 0), seeded(6, 3).T @ whole)
    torch.testing.assert_close(source.contract(seeded(8, 3), 1), whole @ seeded(8, 3))
    torch.testing.assert_close(source.residual(seeded(6, 8, seed=1)), whole - seeded(6, 8, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_told_from_errors_in_the_working_dtype(dtype: torch.dtype) -> None:
    target: Target[LowRank] = Target.of(seeded(4, 5, dtype=dtype))
    working = torch.float64 if dtype == torch.float64 else torch.float32
    assert target.floor == torch.finfo(working).eps
    assert target.work.dtype == working
    assert target.dtype == dtype


class Parts:
    """A weight of which no more than some columns are there at a time."""

    def __init__(self, weight: Tensor, width: int) -> None:
        self.parts = torch.split(weight, width, dim=1)
        self.shape, self.dtype, self.scale = tuple(weight.shape), weight.dtype, 1.0

    @property
    def work(self) -> Tensor:
        raise AssertionError("the weight as a whole was asked for")

    matrix = work

    def contract(self, side: Tensor, mode: int) -> Tensor:
        if mode == 0:
            return torch.cat([side.T @ part for part in self.parts], dim=1)
        sides = torch.split(side, self.parts[0].shape[1])
        return sum(part @ s for part, s in zip(self.parts, sides, strict=True))  # type: ignore[return-value]

    def gram(self) -> Tensor:
        return torch.cat([self.contract(part, 0) for part in self.parts])

    def residual(self, dense: Tensor) -> Tensor:
        width = self.parts[0].shape[1]
        pairs = zip(self.parts, torch.split(dense, width, dim=1), strict=True)
        return torch.cat([part - other for part, other in pairs], dim=1)


@pytest.mark.parametrize("far", [1.0, 1e-9])
def test_a_weight_may_come_in_parts(far: float) -> None:
    """Its errors in second moments are known without ever having it whole."""
    left, right = seeded(9, 2), seeded(2, 5, seed=1)
    weight = left @ right + far * seeded(9, 5, seed=2)
    given = Target.of(weight, second_moments(seeded(5, 3, seed=3))).given
    whole: Target[LowRank] = Target(DenseSource(weight), given, sides)
    parts: Target[LowRank] = Target(Parts(weight, 2), given, sides)
    one, other = (target.of_factors(LowRank(left, right)) for target in (whole, parts))
    assert one.error == pytest.approx(other.error, rel=1e-6)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)


def test_a_loss_compares_what_is_minimised() -> None:
    weight = seeded(4, 5)
    factors = LowRank(seeded(4, 2), seeded(2, 5))
    fit = Fit(factors, (0.5,), True, "")
    assert Target.of(weight).loss(fit) == 0.5
    target: Target[LowRank] = Target.of(weight, torch.eye(5))
    assert target.loss(fit) == target.of_factors(factors).loss
