"""What every registered method does that takes mask= and weights=. See `tests/laws/methods.py`."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import Fit
from tensorlrf.errors import ArgumentError, UnsupportedError
from tests.draws import seeded
from tests.laws.checks import quiet, same
from tests.laws.refusals import MethodRefusals
from tests.metrics import moments


def observed_error(weight: Tensor, dense: Tensor, counts: Tensor) -> float:
    """Relative, over entries that count so much."""
    wide, off = weight.double(), weight.double() - dense.double()
    return math.sqrt(float((counts * off.square()).sum() / (counts * wide.square()).sum()))


class MaskLaws(MethodRefusals):
    """For those that take mask= and weights=."""

    def mask(self) -> Tensor:
        """Two thirds of the entries."""
        return seeded(*self.shape, seed=9) > -0.5

    def counts(self) -> Tensor:
        return seeded(*self.shape, seed=8).square() * self.mask()

    def few(self, weight: Tensor, **given: Any) -> Fit[Any]:
        """A few sweeps."""
        return self.fit(weight, **{**given, "n_iter_max": 5})

    def test_what_is_hidden_is_not_read(self) -> None:
        mask, weight = self.mask(), self.weight(torch.float32)
        usual = self.few(weight, mask=mask)
        for value in (math.nan, math.inf, 1e30):
            fit = self.few(weight.masked_fill(~mask, value), mask=mask)
            assert same(fit.factors, usual.factors)
            assert fit.errors == usual.errors

    def test_a_mask_is_weights_of_zero_and_one_whatever_holds_them(self) -> None:
        mask, weight = self.mask(), self.weight()
        usual = self.few(weight, mask=mask).factors
        for given in (
            {"weights": mask.double()},
            {"weights": 0.3 * mask},
            {"mask": mask.numpy()},
            {"mask": mask, "weights": np.ones(self.shape)},
            {"mask": mask.mT.contiguous().mT},
        ):
            assert same(self.few(weight, **given).factors, usual)

    def test_where_nothing_is_hidden_it_is_the_plain_fit(self) -> None:
        weight = self.weight()
        usual = self.fit(weight).factors
        for given in ({"mask": mask_of(weight)}, {"weights": torch.full(self.shape, 7)}):
            assert same(self.fit(weight, **given).factors, usual)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    @pytest.mark.parametrize("solver", ["", "em"])
    def test_no_sweep_raises_the_loss_and_the_last_error_is_true(
        self, dtype: torch.dtype, solver: str
    ) -> None:
        if solver and not self.method.takes("solver"):
            return
        chosen = {"solver": solver} if solver else {}
        weight, counts = self.weight(dtype), self.counts()
        fit = self.fit(weight, weights=counts, **chosen)
        assert fit.factors.dtype == dtype
        assert all(b <= a for a, b in pairwise(fit.errors[:-1]))
        dense = fit.factors.to(torch.float64).to_dense()
        assert fit.error == pytest.approx(observed_error(weight, dense, counts), rel=1e-3)
        plain = self.fit(weight).factors.to(torch.float64).to_dense()
        assert fit.error < observed_error(weight, plain, counts)

    def test_a_power_of_two_changes_nothing_in_what_is_observed(self) -> None:
        weight, counts = self.weight(torch.float32), self.counts()
        usual = self.few(weight, weights=counts)
        for fit in (
            self.few(weight * 2.0**40, weights=counts),
            self.few(weight * 2.0**-40, weights=counts * 2.0**-30),
        ):
            assert fit.error == pytest.approx(usual.error, rel=1e-3)

    def test_a_callback_sees_errors_and_stops_at_the_best(self) -> None:
        seen: list[float] = []

        def callback(factors: object, error: float) -> bool:
            seen.append(error)
            return len(seen) == 2

        fit = self.fit(self.weight(), mask=self.mask(), callback=callback)
        assert seen == list(fit.errors[1:-1])
        assert len(seen) == 2
        assert not fit.converged

    def test_masks_and_weights_that_are_none(self) -> None:
        mask, counts = self.mask(), self.counts()
        slice_hidden = mask.clone()
        slice_hidden[:, 2] = False
        negative, odd = counts.clone(), counts.clone()
        negative[(1,) * mask.ndim], odd[(1,) * mask.ndim] = -1, math.nan
        where = r"\(1, 1" + ", 1" * (mask.ndim - 2)
        for given, words in (
            ({"mask": mask.float()}, r"^mask has dtype torch\.float32; it must be bool"),
            ({"mask": mask[1:]}, "^mask has shape .* the tensor .* the same"),
            ({"mask": [True]}, "^mask is a list"),
            ({"mask": mask & False}, "^mask= hides all"),
            ({"mask": slice_hidden}, r"leave nothing of mode 1 .*at index 2 \(1 such"),
            ({"weights": mask}, "^weights has dtype torch.bool; .*mask="),
            ({"weights": counts[1:]}, "^weights has shape"),
            ({"weights": counts * 0}, "^weights= hides all"),
            ({"weights": negative}, f"^weights has -1 at {where}"),
            ({"weights": odd}, f"^weights has nan at {where}"),
        ):
            assert isinstance(self.refused(words, **given), ArgumentError)
        hidden = self.weight().masked_fill(~mask, math.nan)
        hidden[tuple(mask.nonzero()[0])] = math.nan
        self.refused("^tensor contains NaN", weight=hidden, mask=mask)

    def test_what_does_not_go_with_a_mask_says_so(self) -> None:
        mask = self.mask()
        for name, value in (
            ("gram", moments(math.prod(self.shape[1:]))),
            ("differentiable", True),
            ("batch_dims", 1),
        ):
            if self.method.takes(name):
                words = f"^{name}= does not go with mask="
                error = self.refused(words, mask=mask, **{name: value})
                assert isinstance(error, UnsupportedError)
        if self.method.estimates:
            self.refused("^rank='auto' is .*cross_validate", "auto", weights=self.counts())
        if self.method.takes("solver"):
            self.refused("^solver='em' .*mask= or weights=", solver="em")

    def test_more_unknowns_than_entries_are_told(self) -> None:
        few = torch.zeros(self.shape, dtype=torch.bool)
        for k, n in enumerate(self.shape):
            index: list[slice | int] = [0] * len(self.shape)
            index[k] = slice(n)
            few[tuple(index)] = True
        with pytest.warns(UserWarning, match=r"free parameters for \d+ observed entries"):
            self.fit(self.weight(), mask=few)

    def test_an_error_is_kept_over_what_is_observed(self) -> None:
        weight, mask = self.weight(), self.mask()
        fit = self.fit(weight, error=0.75, mask=mask)
        assert fit.error <= 0.75
        with quiet():
            assert not self.fit(weight, error=1e-3, mask=mask).converged


def mask_of(weight: Tensor) -> Tensor:
    """That hides nothing."""
    return torch.ones(weight.shape, dtype=torch.bool)
