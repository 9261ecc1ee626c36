"""A fit takes no more memory than is foreseen, and few copies of the moments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import svd
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import LayerMoments
from tensorlrf.compression.calibration._memory import Gathered, Need
from tensorlrf.compression.calibration._statistics import OutputError, Stream
from tensorlrf.compression.calibration.moments._form import Form
from tensorlrf.compression.fit._factor import factor
from tensorlrf.compression.fit._factored import Options
from tensorlrf.decomposition.configs import BLR, SVD, Kron, Method
from tensorlrf.decomposition.linalg.compact import dense
from tests.alive import Alive
from tests.draws import seeded32


def fitted(m: int, n: int, method: Method, *, lags: bool, held: bool) -> tuple[int, Need]:
    """The most bytes that were alive from the first input on, and what was foreseen."""
    layer = DenseLayer.of(nn.Linear(n, m, bias=False).requires_grad_(False))
    inputs = [seeded32(n, n, seed=k) for k in range(5)]
    lost = [x + 0.1 * seeded32(n, n, seed=9) if lags else None for x in inputs]
    with Alive() as alive:
        moments = LayerMoments(layer, lags=lags, holds_out=held)
        for k, (x, x0) in enumerate(zip(inputs, lost, strict=True)):
            moments.add(x, x0, held and k == 4)
        factor("layer", layer, method, moments, Options(affine=False, random_state=0))
    gathered = Gathered(lags=lags, held=held)
    return alive.peak, gathered.need(layer, as_matrix=not method.multiplies_moments)


SHAPES = [(96, 384), (384, 96), (192, 192)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("lags", "held"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("method", [SVD(rank=0.5), BLR(rank=0.5), Kron(rank=0.3)])
def test_no_more_than_is_foreseen(
    shape: tuple[int, int], lags: bool, held: bool, method: Method
) -> None:
    peak, need = fitted(*shape, method, lags=lags, held=held)
    assert peak <= need.whole


@pytest.mark.parametrize("lags", [False, True])
def test_a_wide_layer_is_fitted_in_little_more_than_its_moments(lags: bool) -> None:
    """With m much less than n the moments are what counts: they themselves, once in a Cholesky
    factor; with no copy that is drawn, or over a count, beside them."""
    m, n = 16, 640
    peak, _ = fitted(m, n, SVD(rank=0.5), lags=lags, held=False)
    square, weight = 8 * n * n, 8 * m * n
    assert peak <= 2.1 * square + 12 * weight


def test_moments_that_a_caller_keeps_stay_as_they_are() -> None:
    layer: Any = DenseLayer.of(nn.Linear(24, 12).requires_grad_(False))
    own = LayerMoments(layer, lags=False, holds_out=False)
    own.add(seeded32(100, 24), None, False)
    sums = [one.tensors() for one in own.sums]
    before = {name: t.clone() for name, t in sums[0].items()}
    given = LayerMoments(layer, lags=False, holds_out=False, known=own.sums)
    factor("layer", layer, SVD(rank=3), given, Options(affine=False, random_state=0))
    upper = {name: t.triu() if t.ndim == 2 else t for name, t in sums[0].items()}
    for name, t in before.items():
        assert upper[name].equal(t.triu() if t.ndim == 2 else t), name


@pytest.mark.parametrize("form", [Form("full"), Form("sketch", 4), Form("blocks", 8)])
@pytest.mark.parametrize("lags", [False, True])
def test_errors_in_what_is_drawn_are_those_in_its_matrix(form: Form, lags: bool) -> None:
    """E||W x0 - A x||^2 in G' = (1 - a) G + a m I, with the same of what is known to be lost."""
    layer = DenseLayer.of(nn.Linear(24, 20, bias=False).requires_grad_(False))
    stream = Stream(layer, lags=lags, form=form)
    for k in range(3):
        x = seeded32(60, 24, seed=k) * (torch.arange(24, device="cpu") + 1.0).reciprocal()
        stream.add(x, x + 0.3 * seeded32(60, 24, seed=9) if lags else None)
    (own,) = stream.statistics()
    given = OutputError([layer.weight], [own])
    near = svd(layer.weight, 5)
    given.of([near])  # so that its products are there
    amount, n = own.warranted, 24
    assert 0 < amount < 1
    gram = dense(own.gram)
    drawn = (1 - amount) * gram + amount * gram.diagonal().mean() * torch.eye(n, dtype=gram.dtype)
    weight = layer.weight.double()
    left = weight - near.to_dense().double()
    cross = torch.zeros_like(weight) if own.lag is None else (1 - amount) * own.lag.cross
    lost = 0.0 if own.lag is None else own.lag.lost

    def energy(d: Tensor) -> float:
        return float(((d @ drawn + 2 * cross) * d).sum()) + lost

    wanted = (energy(left) / energy(weight)) ** 0.5
    assert given.drawn().of([near]) == pytest.approx(wanted, rel=1e-5)  # float32 factors
    assert given.drawn().of([near.to_dense()]) == pytest.approx(wanted, rel=1e-5)
