"""Many terms of a Kronecker sum in the metric of the inputs: by conjugate gradients."""

from __future__ import annotations

import pytest
import torch

from tensorlrf.decomposition import fit_kron
from tensorlrf.decomposition.kron import _als as _kron_als
from tensorlrf.decomposition.kron._als import KroneckerALS
from tensorlrf.decomposition.kron._gradients import marginals
from tests.decomposition.kron.test_kron import planted
from tests.decomposition.kron.test_kron_gram import inputs_of
from tests.draws import seeded
from tests.largest import Largest
from tests.metrics import in_moments, second_moments


def test_marginals_of_a_product_are_its_factors() -> None:
    one, other = second_moments(inputs_of(5, 40)), second_moments(inputs_of(3, 40, seed=1))
    whole = torch.kron(one, other)
    torch.testing.assert_close(torch.kron(*marginals(whole, 5)), whole)


@pytest.mark.parametrize("pair", [((6, 32), (16, 3)), ((32, 3), (3, 32)), ((16, 12), (6, 8))])
def test_many_terms_end_no_higher_than_by_normal_matrices(
    pair: tuple[tuple[int, int], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = seeded(96, 96, dtype=torch.float32), second_moments(inputs_of(96, 400))
    s = min(pair[0][0] * pair[0][1], pair[1][0] * pair[1][1]) // 2
    metric = KroneckerALS(in_moments(weight, gram), pair)
    by_default = metric.many_terms(s, pair[0][1], pair[1][0])
    found: dict[bool, float] = {}
    for many in (False, True):
        monkeypatch.setattr(KroneckerALS, "many_terms", lambda *_, many=many: many)
        found[many] = fit_kron(weight, s, shapes=pair, gram=gram, n_iter_max=10, tol=0.0).error
    assert by_default
    assert found[True] <= 1.05 * found[False]


def test_one_term_goes_by_its_normal_matrix() -> None:
    weight, gram = seeded(96, 96), second_moments(inputs_of(96, 400))
    metric = KroneckerALS(in_moments(weight, gram), ((16, 12), (6, 8)))
    assert not metric.many_terms(1, 12, 6)
    assert not metric.many_terms(1, 8, 16)


@pytest.mark.parametrize("s", [1, 8])
def test_lopsided_pairs_need_no_more_memory_than_the_moments(s: int) -> None:
    weight, gram = seeded(64, 512, dtype=torch.float32), second_moments(inputs_of(512, 40))
    with Largest() as largest:
        fit_kron(weight, s, shapes=((16, 2), (4, 256)), gram=gram, n_iter_max=2)
    assert largest.numbers <= max(_kron_als.PRODUCTS, 4 * gram.numel())


def test_an_error_just_above_rounding_is_reached_with_inputs_too() -> None:
    pair = ((4, 4), (4, 4))
    weight = planted(3, pair).float()
    weight = weight / weight.norm()
    extra = torch.kron(seeded(4, 4, seed=8), seeded(4, 4, seed=9)).float()
    weight = weight + 3e-6 * extra / extra.norm()
    fit = fit_kron(weight, error=1e-6, shapes=pair, gram=second_moments(inputs_of(16, 60)))
    assert fit.converged
    assert fit.error <= 1e-6
