"""What an SVD in the metric of the inputs takes apart, counted; and that its checks stay sharp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import svd
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum, square_root
from tensorlrf.decomposition.second_moments import second_moments as checked
from tensorlrf.decomposition.shrinkage import LARGE, is_spanned, share_of_least
from tensorlrf.errors import ArgumentError
from tests.draws import seeded
from tests.metrics import second_moments

SIDE = LARGE + 40


@contextmanager
def taken_apart() -> Iterator[list[tuple[str, torch.dtype, tuple[int, ...]]]]:
    """Name, dtype and shape of all that goes to LAPACK."""
    seen: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cholesky_ex", "eigh", "qr", "svd"):
            function = getattr(torch.linalg, name)

            def counted(matrix: Tensor, *args: object, _of=function, _name=name, **more: object):
                seen.append((_name, matrix.dtype, tuple(matrix.shape)))
                return _of(matrix, *args, **more)

            patch.setattr(torch.linalg, name, counted)
        yield seen


def gram_of(n: int, samples: int) -> Tensor:
    return second_moments(seeded(n, samples, seed=n))


def weight(m: int, n: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(m))


def test_a_wide_weight_takes_nothing_of_the_side_of_its_inputs_apart_in_float64() -> None:
    with taken_apart() as seen:
        svd(weight(30, SIDE), 4, gram=gram_of(SIDE, 4 * SIDE))
    assert ("cholesky_ex", torch.float32, (SIDE, SIDE)) in seen
    assert [one for one in seen if one[1] == torch.float64] == [("eigh", torch.float64, (30, 30))]


def test_a_tall_weight_takes_one_spectrum_and_the_columns_that_are_kept() -> None:
    m = SIDE + 60
    with taken_apart() as seen:
        svd(weight(m, SIDE), 4, gram=gram_of(SIDE, 4 * SIDE))
    spectra = [one for one in seen if one[0] != "cholesky_ex"]
    assert spectra == [("eigh", torch.float64, (SIDE, SIDE)), ("qr", torch.float64, (m, 4))]


def test_w_times_g_is_made_once_and_not_at_all_for_a_tall_weight() -> None:
    for m, n in ((30, 50), (50, 30)):
        gram = gram_of(n, 4 * n)
        tensor = weight(m, n)
        products: list[tuple[int, ...]] = []
        multiplied = Tensor.__matmul__

        def counted(left: Tensor, right: Tensor, _of=multiplied, _to=products, _n=n) -> Tensor:
            if tuple(right.shape) == (_n, _n) and right.dtype == torch.float64:
                _to.append(tuple(left.shape))
            return _of(left, right)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "__matmul__", counted)
            svd(tensor, 4, gram=gram)
        assert products.count((m, n)) == (1 if m < n else 0)


@pytest.mark.parametrize("least", [0.0, 0.5, 0.9, 1.1, 2.0, 100.0])
@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_the_trial_in_float32_never_sees_more_than_there_is(least: float, spread: float) -> None:
    """A direction with `least` times what each is to hold; columns of very different sizes."""
    draws = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=draws, dtype=torch.float64))
    values = torch.logspace(0, -spread, SIDE, dtype=torch.float64)
    gram = (turn * values) @ turn.T
    held = share_of_least(gram) * float(gram.diagonal().mean()) / 2
    values = values.clamp(min=1.5 * held)
    values[-1] = least * held
    gram = (turn * values) @ turn.T
    gram = (gram + gram.T) / 2
    held = share_of_least(gram) * float(gram.diagonal().mean()) / 2
    assert is_spanned(gram) == (float(torch.linalg.eigvalsh(gram)[0]) > held)


@pytest.mark.parametrize("n", [8, SIDE])
def test_indefinite_moments_are_refused_and_singular_ones_are_not(n: int) -> None:
    ones = torch.ones(n, n)
    for wrong in (2 * ones - torch.eye(n), torch.eye(n) - 1e-2 * ones * (200 / n)):
        with pytest.raises(ArgumentError, match="gram is indefinite"):
            checked(wrong, None, n, ones)
    for fine in (ones, torch.zeros(n, n), gram_of(n, n // 2), gram_of(n, 2 * n).float()):
        assert checked(fine, None, n, ones).shrinkage >= 0


@pytest.mark.parametrize("samples", [0, 5, 60])
def test_the_root_is_one_of_singular_moments_too(samples: int) -> None:
    gram = gram_of(20, samples) if samples else torch.zeros(20, 20, dtype=torch.float64)
    root = square_root(gram)
    # float64's rounding of entries near one, in sums of 20.
    torch.testing.assert_close(root @ root.T, gram, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (20, 20)])
@pytest.mark.parametrize("samples", [3, 80])
def test_energies_of_outputs_are_those_of_their_moments(
    shape: tuple[int, int], samples: int
) -> None:
    m, n = shape
    tensor = weight(m, n)
    second = checked(gram_of(n, samples), None, n, tensor)
    wide = tensor.double()
    own = OutputSpectrum(Target.of(tensor, second), tensor)
    whole = wide @ second.gram @ wide.T
    values, vectors = torch.linalg.eigh(whole)
    torch.testing.assert_close(own.energies[:3], values.flip(0)[:3])
    # A span is known to the rounding of the energies over the gap below it.
    basis, best = own.leading(3), vectors[:, -3:]
    torch.testing.assert_close(basis @ basis.T, best @ best.T, rtol=0, atol=1e-6)
