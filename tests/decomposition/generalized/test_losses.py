"""The losses themselves: derivatives, what their short forms leave out, and what data they are
for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import Loss, huber_loss, negative_binomial_loss
from tensorlrf.decomposition.generalized._dense import DenseObjective, DenseRows
from tensorlrf.decomposition.generalized._loss import KnownLoss, Units
from tensorlrf.decomposition.generalized._losses import LOSSES, loss_of
from tensorlrf.decomposition.generalized._nonzeros import Nonzeros, SparseObjective
from tensorlrf.errors import ArgumentError
from tests.decomposition.generalized.planted import planted
from tests.draws import seeded

SHAPE, RANK = (3, 4, 5), 2
DEEP = {**LOSSES, "huber 1": huber_loss(1.0), "negative_binomial 3": negative_binomial_loss(3)}


def data(name: str) -> Tensor:
    return planted(name.split()[0])[0][tuple(slice(n) for n in SHAPE)].contiguous()


def stack(seed: int = 3) -> Tensor:
    return seeded(sum(SHAPE), RANK, seed=seed).abs() + 0.1


def model_of(stacked: Tensor) -> Tensor:
    a, b, c = stacked.split(list(SHAPE))
    return torch.einsum("ir,jr,kr->ijk", a, b, c)


@pytest.mark.parametrize("name", DEEP)
def test_the_derivative_is_that_of_autograd_and_of_differences(name: str) -> None:
    loss = DEEP[name]
    x, m = data(name), model_of(stack())
    point = m.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(loss.value(x, point).sum(), point)
    given = loss.slope(x, m)
    assert torch.allclose(given, by_autograd, rtol=1e-9, atol=1e-12)
    step = 1e-6
    by_difference = (loss.value(x, m + step) - loss.value(x, m - step)) / (2 * step)
    assert torch.allclose(given, by_difference, rtol=1e-6, atol=1e-6)
    assert torch.equal(Loss(loss.value).slope(x, m), by_autograd)
    assert torch.autograd.gradcheck(lambda at: loss.value(x, at), (point,))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", DEEP)
def test_the_gradient_of_the_objective_is_that_of_autograd(name: str, weighted: bool) -> None:
    loss, x = DEEP[name], data(name)
    weights = seeded(*SHAPE, seed=5).abs() if weighted else None
    objective = DenseObjective(DenseRows(x, weights), loss, not weighted)
    objective.step = 5  # rows of a block, so that there are several, and one that is not full
    point = stack().requires_grad_()
    total = loss.value(x, model_of(point))
    total = (total if weights is None else total * weights).sum()
    (gradient,) = torch.autograd.grad(total, point)
    wanted = total.item()
    value, found = objective(point.detach())
    assert value == pytest.approx(wanted, rel=1e-12)
    assert torch.allclose(found, gradient, rtol=1e-9, atol=1e-9)
    single = DenseObjective(
        DenseRows(x.float(), None if weights is None else weights.float()), loss, not weighted
    )
    value, found = single(point.detach())
    assert value == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-3)


def test_the_kernels_op_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = data("gaussian")
    usual = DenseObjective(DenseRows(x), LOSSES["gaussian"], True)
    by_op = DenseObjective(DenseRows(x), LOSSES["gaussian"], True)
    by_op.step = len(x.flatten(0, usual.rows.cut - 1)) // SHAPE[0]  # a slice of the first mode
    monkeypatch.setattr(by_op, "_by_kernel", lambda slope, back: True)
    (value, gradient), (same, found) = usual(stack()), by_op(stack())
    assert value == pytest.approx(same, rel=1e-12)
    assert torch.allclose(gradient, found, rtol=1e-10)


@pytest.mark.parametrize("name", ["gaussian", "poisson"])
def test_factors_give_what_zeros_cost(name: str) -> None:
    """So that time and memory are those of the nonzeros."""
    loss = LOSSES[name]
    assert isinstance(loss, KnownLoss)
    x = data("poisson") * (seeded(*SHAPE, seed=7) > 0.5)
    at = x.nonzero().T
    sparse = SparseObjective(Nonzeros(SHAPE, at, x[tuple(at)]), loss)
    sparse.chunk = 7
    value, gradient = sparse(stack())
    wanted, of_all = DenseObjective(DenseRows(x), loss, False)(stack())
    assert value == pytest.approx(wanted, rel=1e-10)
    assert torch.allclose(gradient, of_all, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "name", [name for name, loss in DEEP.items() if getattr(loss, "divided", None)]
)
def test_totals_of_divided_data_are_told_in_the_unit_of_the_data(name: str) -> None:
    loss, scale = DEEP[name], 2.0**-7
    assert isinstance(loss, KnownLoss)
    assert loss.divided is not None
    assert loss.undivided is not None
    x, m = data(name), model_of(stack())
    total = float(loss.divided(scale).value(x / scale, m / scale).sum())
    told = loss.undivided(total, Units(scale, float(x.numel()), float((x / scale).sum())))
    assert told == pytest.approx(float(loss.value(x, m).sum()), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_model_and_what_it_expects_are_linked(name: str) -> None:
    """What is expected at a model, and the model that expects it: best for data that all are so."""
    loss = LOSSES[name]
    assert isinstance(loss, KnownLoss)
    mean = 0.3
    model = torch.tensor(loss.link(mean), dtype=torch.float64, device="cpu")
    assert float(loss.expected(model)) == pytest.approx(mean, rel=1e-6)
    if name not in ("rayleigh", "huber"):
        x = torch.full_like(model, mean)
        assert abs(float(loss.slope(x, model))) < 1e-6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("cubic",), r"loss='cubic' is unknown; choose one of gaussian, .*rayleigh, a Loss"),
        ((3,), "loss=3 is unknown"),
        ((None,), "loss=None is unknown"),
    ],
)
def test_what_is_no_loss(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        loss_of(*given)


def test_constants_and_functions_that_are_none() -> None:
    for odd in (0, -1.0, math.inf, math.nan, True, "1"):
        with pytest.raises(ArgumentError, match=r"^delta="):
            huber_loss(odd)  # type: ignore[arg-type]  # what is tried
        with pytest.raises(ArgumentError, match=r"^failures="):
            negative_binomial_loss(odd)  # type: ignore[arg-type]  # what is tried
    square: Any = lambda x, m: (x - m) ** 2  # noqa: E731  # a value among others
    for words, options in (
        ("value=3 must be a function", {"value": 3}),
        ("value=None must be a function", {"value": None}),
        ("derivative='2x' must be", {"value": square, "derivative": "2x"}),
        ("lower=1.0 must be 0, .*shift the data", {"value": square, "lower": 1.0}),
        ("support='odd' is unknown; .*binary", {"value": square, "support": "odd"}),
    ):
        with pytest.raises(ArgumentError, match=words):
            Loss(**options)
