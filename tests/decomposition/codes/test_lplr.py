"""Low rank in few bits: what its sweeps gain, and what bytes it takes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_lplr, fit_svd
from tensorlrf.decomposition.codes._lplr import bytes_at
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import Quantized
from tests.draws import seeded
from tests.metrics import output_error, second_moments


def decaying(m: int = 40, n: int = 28) -> Tensor:
    scales = torch.logspace(0, -2, n, dtype=torch.float64)
    return (seeded(m, n) * scales).to(torch.float32)


@pytest.mark.parametrize("codes", ["int8", "int4", "fp8"])
def test_sweeps_lower_the_loss_below_both_factors_rounded(codes: str) -> None:
    w = decaying()
    fit, exact = fit_lplr(w, 12, codes=codes), fit_svd(w, 12)
    rounded = Quantized.encode(exact.factors, codes)
    assert all(b <= a for a, b in pairwise(fit.errors[:-1]))
    assert exact.error < fit.error < rounded.rel_error(w)
    gone = (rounded.rel_error(w) ** 2 - fit.error**2) / (rounded.rel_error(w) ** 2 - exact.error**2)
    assert gone > 0.3  # of what rounding costs


def test_eight_bits_beat_floats_at_equal_bytes() -> None:
    w = decaying()
    coded = fit_lplr(w, 0.2)
    assert coded.factors.n_bytes <= 0.2 * w.nbytes
    floats = next(
        f for r in range(28, 0, -1) if (f := fit_svd(w, r)).factors.n_bytes <= 0.2 * w.nbytes
    )
    assert coded.error < 0.5 * floats.error


def test_bytes_are_told_before_the_fit() -> None:
    w = decaying()
    for codes, group in (("int8", None), ("int4", 4), ("fp8", 2)):
        for r in (3, 8):
            f = tensorlrf.lplr(w, r, codes=codes, group=group, n_iter_max=1)
            assert f.n_bytes == bytes_at(r, (40, 28), codes, group, 4)


def test_fits_the_outputs_of_inputs() -> None:
    w, x = decaying(), seeded(28, 200, seed=3) * torch.linspace(0.1, 3, 28).double()[:, None]
    gram = second_moments(x)
    served, plain = fit_lplr(w, 6, codes="int4", gram=gram), fit_lplr(w, 6, codes="int4")
    assert served.error < 0.9 * output_error(w, plain.factors, gram)
    assert served.error == pytest.approx(output_error(w, served.factors, gram), rel=1e-5)


def test_a_callback_ends_it_and_the_best_stays() -> None:
    seen: list[float] = []

    def watch(factors: Quantized, error: float) -> bool:
        seen.append(error)
        assert factors.rank == 6
        return len(seen) == 2

    fit = fit_lplr(decaying(), 6, codes="int4", callback=watch)
    assert len(seen) == 2
    assert "stopped by callback" in fit.reason
    assert fit.error == pytest.approx(min(seen), rel=1e-5)


def test_refuses_by_name() -> None:
    w = decaying()
    with pytest.raises(ArgumentError, match="codes='int2'"):
        fit_lplr(w, 3, codes="int2")
    with pytest.raises(ArgumentError, match=r"group=7 does not divide the 40 numbers .* left"):
        fit_lplr(w, 3, group=7)
    with pytest.raises(RankError, match="rank=29 is above"):
        fit_lplr(w, 29)
