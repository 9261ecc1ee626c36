"""Dictionaries: what was made of few atoms is worth its bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_dictionary, fit_svd
from tensorlrf.decomposition.codes._dictionary import pursuit
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tests.draws import generator, seeded
from tests.metrics import output_error, second_moments


def of_subspaces(m: int = 60, n: int = 30, k: int = 12, s: int = 2) -> Tensor:
    """Rows in a union of the planes that pairs of atoms span."""
    places = torch.rand(m, k, generator=generator(1)).topk(s).indices
    codes = torch.zeros(m, k, dtype=torch.float64).scatter(1, places, seeded(m, s, seed=2))
    return codes @ seeded(k, n, seed=3)


def test_beats_low_rank_at_equal_bytes_on_a_union_of_subspaces() -> None:
    w = of_subspaces().to(torch.float32)
    fit = fit_dictionary(w, 12, nonzeros=2, random_state=0)
    assert all(b <= a for a, b in pairwise(fit.errors[:-1]))
    alone = next(
        f for r in range(12, 0, -1) if (f := fit_svd(w, r)).factors.n_bytes <= fit.factors.n_bytes
    )
    assert fit.error < 0.6 * alone.error


def test_all_atoms_a_row_are_a_low_rank() -> None:
    w = seeded(20, 14)
    found = fit_dictionary(w, 5, nonzeros=5, random_state=0)
    assert found.error == pytest.approx(fit_svd(w, 5).error, rel=1e-4)


def test_pursuit_takes_what_least_squares_leave_most_of() -> None:
    atoms, signals = seeded(9, 14, seed=1), seeded(7, 14, seed=2)
    atoms = torch.cat([atoms, atoms[:1]])  # one twice
    atoms /= torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    places = pursuit(signals @ atoms.T, atoms @ atoms.T, 6)
    for signal, taken in zip(signals, places.tolist(), strict=True):
        assert len(set(taken)) == 6
        for step in range(1, 6):
            known = atoms[taken[:step]].T
            rest = signal - known @ torch.linalg.lstsq(known, signal[:, None]).solution[:, 0]
            found = (atoms @ rest).abs()
            assert float(found[taken[step]]) >= float(found.max()) * (1 - 1e-9)


def test_pursuit_takes_the_atoms_that_a_signal_is_made_of() -> None:
    """Of orthogonal atoms the largest ones."""
    atoms = torch.linalg.qr(seeded(12, 8))[0].T
    codes = seeded(6, 8, seed=1)
    places = pursuit(codes @ atoms @ atoms.T, atoms @ atoms.T, 3)
    assert torch.equal(places.sort(1).values, codes.abs().topk(3).indices.sort(1).values)


def test_serves_the_outputs_of_inputs() -> None:
    w = seeded(40, 24)
    gram = second_moments(seeded(24, 200, seed=5) * torch.linspace(0.1, 3, 24).double()[:, None])
    aware, plain = (
        fit_dictionary(w, 8, nonzeros=3, random_state=0, **k) for k in ({"gram": gram}, {})
    )
    assert aware.error < 0.9 * output_error(w, plain.factors, gram)


def test_refuses_by_name() -> None:
    w = seeded(10, 8)
    with pytest.raises(RankError, match="of which no row takes nonzeros=4"):
        fit_dictionary(w, 3, nonzeros=4)
    for nonzeros in (0, 1.5, True):
        with pytest.raises(ArgumentError, match="nonzeros="):
            fit_dictionary(w, 3, nonzeros=nonzeros)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"dictionary takes a matrix .*\(4, 3, 2\)"):
        tensorlrf.dictionary(torch.ones(4, 3, 2), 2)
