"""What every registered method does, whatever its format. See `tests/laws/methods.py`."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import Fit, _fit_or_plain
from tensorlrf.decomposition.methods import Registered, registered
from tensorlrf.errors import ArgumentError, RankError, TensorlrfWarning
from tensorlrf.factors import SparseTensor
from tests.draws import generator, seeded
from tests.laws.checks import DEGENERATE, finite, quiet, same, true_error, untouched
from tests.metrics import moments, output_error
from tests.torch_defaults import defaults

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHARES = (0.3, 0.52, 0.77, 1.0, "same")
ERRORS = (0.7, 0.2)


class MethodLaws:
    """For all methods."""

    name: ClassVar[str]
    shape: ClassVar[tuple[int, ...]]
    rank: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]]
    kind: ClassVar[Callable[[Tensor], Tensor]]
    sparse: ClassVar[bool | float]

    @property
    def method(self) -> Registered:
        return registered(self.name)

    def weight(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        return self.kind(seeded(*self.shape, seed=seed, dtype=dtype))

    def fit(self, weight: Any, rank: Any = None, **options: Any) -> Fit[Any]:
        """With a seed where it draws, and at the rank of the sample unless something is given."""
        seed = {"random_state": 0} if self.method.draws else {}
        asked = self.rank if rank is None and "error" not in options else rank
        return self.method.fit(weight, asked, **{**seed, **self.options, **options})

    def least(self, weight: Tensor, **options: Any) -> int:
        """Parameters of the smallest factors that it gives; of a sum with what is always dense 0,
        since it refuses a share that this does not fit in."""
        try:
            return int(self.fit(weight, 1e-9, **options).factors.n_params)
        except RankError:
            return 0

    # ---- what it gives ----------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gives_its_format_in_the_dtype_and_tells_the_error_that_is_there(
        self, dtype: torch.dtype
    ) -> None:
        weight = self.weight(dtype)
        fit = self.fit(weight)
        factors = fit.factors
        assert isinstance(factors, self.method.gives)
        assert factors.shape == self.shape
        indices = factors.index_dtypes(factors.meta())
        assert {t.dtype for k, t in factors.tensors().items() if k not in indices} == {dtype}
        assert fit.error == pytest.approx(true_error(factors, weight), rel=1e-4, abs=1e-9)
        assert fit.reason

    def test_the_short_function_gives_the_factors_alone(self) -> None:
        weight, options = self.weight(torch.float32), dict(self.options)
        if self.method.draws:
            options["random_state"] = 0
        assert same(self.method.function(weight, self.rank, **options), self.fit(weight).factors)

    def test_a_share_is_an_upper_bound_of_the_parameters(self) -> None:
        weight = self.weight()
        least = self.least(weight)
        counts = [self.fit(weight, share).factors.n_params for share in SHARES]
        for share, n_params in zip(SHARES, counts, strict=True):
            bound = weight.numel() * (1.0 if share == "same" else float(share))
            assert n_params <= max(bound, least), share
        assert counts == sorted(counts)
        assert counts[-1] > least

    # ---- scale ------------------------------------------------------------------------------

    @pytest.mark.parametrize("exponent", [-41, 40])
    def test_a_power_of_two_changes_neither_ranks_nor_errors(self, exponent: int) -> None:
        weight = self.weight(torch.float32)
        usual, scaled = self.fit(weight), self.fit(weight * 2.0**exponent)
        assert scaled.factors.rank == usual.factors.rank
        assert scaled.error == pytest.approx(usual.error, rel=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_near_the_ends_of_a_dtype(self, dtype: torch.dtype) -> None:
        """Finite and as good as for numbers near one, or refused for what they are."""
        info = torch.finfo(dtype)
        unit = self.weight() / self.weight().abs().max()
        for weight in (unit * info.max, torch.ones_like(unit) * info.max):
            with pytest.raises(ArgumentError, match=r"too near .* the largest number of"):
                self.fit(weight.to(dtype))
        usual = self.fit(unit.to(dtype)).error
        # A norm just below half the end; and numbers of all digits just above the subnormal ones.
        for largest in (info.max / 32, info.tiny * 4):
            weight = (unit * largest).to(dtype)
            digits = 64 * info.eps if largest > 1 else 0.5  # entries below the smallest are lost
            assert finite(self.fit(weight).factors).rel_error(weight) <= usual * 1.01 + digits

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_subnormal_and_mixed_numbers_stay_finite(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        unit = self.weight() / self.weight().abs().max()
        mixed = unit * info.max / 64
        mixed[len(mixed) // 2 :] *= info.tiny * 256 / info.max
        lone = torch.zeros(self.shape, dtype=torch.float64)
        lone[(1,) * lone.ndim] = info.smallest_normal * info.eps
        with quiet():
            for weight in (unit * (info.tiny / 8), lone, mixed):
                finite(self.fit(self.kind(weight.to(dtype))).factors)

    @pytest.mark.parametrize("kind", DEGENERATE)
    def test_degenerate_input_gives_finite_factors(self, kind: str) -> None:
        """Of as small an error as that of nothing at all, at the most."""
        for dtype in (torch.float32, torch.float64):
            weight = self.kind(DEGENERATE[kind](self.weight(dtype)))
            with quiet():
                fit = self.fit(weight)
            assert finite(fit.factors).rel_error(weight) <= 1 + 1e-5
            assert math.isfinite(fit.error)

    # ---- what it takes ----------------------------------------------------------------------

    def test_leaves_its_input_and_the_state_of_the_process_alone(self) -> None:
        with untouched(self.weight(torch.float32)) as (weight,):
            self.fit(weight)
        with untouched(self.weight(torch.float32).requires_grad_()) as (weight,):
            found = self.fit(weight).factors
        assert not any(t.requires_grad for t in found.tensors().values())

    def test_takes_any_layout_and_whatever_holds_the_values(self) -> None:
        weight = self.weight()
        fit = self.fit(weight)
        usual, array = fit.factors, weight.numpy()
        wide = seeded(*self.shape, 2)
        wide[..., 1] = weight
        backwards = np.ascontiguousarray(array[::-1])[::-1]
        for strided in (weight.mT.contiguous().mT, wide[..., 1], backwards):
            assert not strided.is_contiguous() if isinstance(strided, Tensor) else True
            # Sums are taken in another order, and random starts drawn in that of the memory.
            assert self.fit(strided).error == pytest.approx(fit.error, rel=0.1)
        for held in (array, np.ma.masked_array(array), torch.nn.Parameter(weight)):
            assert same(self.fit(held).factors, usual)
        fixed = array.copy()
        fixed.flags.writeable = False
        for other in (fixed, array.astype(array.dtype.newbyteorder())):
            assert same(self.fit(other).factors, usual)
        assert (fixed == array).all()

    def test_takes_a_rank_whatever_holds_the_number(self) -> None:
        weight = self.weight()
        if isinstance(self.rank, int):
            usual = self.fit(weight).factors
            for held in (np.int64(self.rank), np.array(self.rank), torch.tensor(self.rank)):
                assert same(self.fit(weight, held).factors, usual)
        usual = self.fit(weight, 0.5).factors
        for share in (np.float32(0.5), np.array(0.5), torch.tensor(0.5, requires_grad=True)):
            assert same(self.fit(weight, share).factors, usual)

    def test_a_sparse_tensor_is_the_dense_one(self) -> None:
        weight = self.weight()
        weight[weight.abs() < 0.3] = 0
        if self.sparse:
            usual = self.fit(weight)
            for held in (weight.to_sparse(), SparseTensor.of(weight)):
                apart = 1e-6 if self.sparse is True else self.sparse
                assert self.fit(held).error == pytest.approx(usual.error, rel=apart)

    @pytest.mark.parametrize("kind", ["meta", "float64", "float16"])
    def test_torchs_defaults_do_not_reach_the_result(self, kind: str) -> None:
        for dtype in (torch.float16, torch.float64):
            weight = self.weight(dtype)
            usual = self.fit(weight).factors
            with defaults(kind):
                found = self.fit(weight).factors
            assert {t.device.type for t in found.tensors().values()} == {"cpu"}
            assert same(found, usual)

    def test_autocast_has_no_say(self) -> None:
        weight = self.weight(torch.float32)
        usual = self.fit(weight)
        with torch.autocast("cpu", torch.bfloat16):
            found = self.fit(weight)
            assert torch.is_autocast_enabled("cpu")
        assert same(found.factors, usual.factors)
        assert found.errors == usual.errors


class DrawLaws(MethodLaws):
    """For those that draw random numbers."""

    def test_a_seed_repeats_and_a_generator_advances(self) -> None:
        weight = self.weight(torch.float32)
        usual = self.fit(weight, random_state=5)
        assert same(self.fit(weight, random_state=5).factors, usual.factors)
        draws = generator(5)
        assert same(self.fit(weight, random_state=draws).factors, usual.factors)
        finite(self.fit(weight, random_state=None).factors)


class ErrorLaws(MethodLaws):
    """For those that take error=."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_keeps_the_error_after_the_cast_or_says_that_it_is_out_of_reach(
        self, dtype: torch.dtype
    ) -> None:
        weight = self.weight(dtype)
        for error in (*ERRORS, 1e-6) if dtype == torch.bfloat16 else ERRORS:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", TensorlrfWarning)
                fit = self.fit(weight, error=error)
            if true_error(fit.factors, weight) > error * (1 + 1e-12):
                assert error < max(ERRORS)
                assert not fit.converged
                assert f"error={error} is out of reach" in " ".join(str(w.message) for w in told)

    def test_takes_an_error_whatever_holds_the_number(self) -> None:
        weight = self.weight()
        usual = self.fit(weight, error=0.75).factors
        for held in (np.float32(0.75), np.array(0.75), torch.tensor(0.75)):
            assert same(self.fit(weight, error=held).factors, usual)


class GramLaws(MethodLaws):
    """For those that take gram=, the second moments of inputs."""

    def of_inputs(self, kind: str = "full") -> Tensor:
        """Of inputs of the weight, which is a matrix or a kernel."""
        return moments(math.prod(self.shape[1:]), kind)

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [*(("full", dtype) for dtype in DTYPES), ("few", DTYPES[0]), ("dead", DTYPES[0])],
    )
    def test_serves_the_outputs_no_worse_than_the_plain_fit(
        self, kind: str, dtype: torch.dtype
    ) -> None:
        weight = self.weight(dtype)
        gram = self.of_inputs(kind)
        with quiet():
            served, plain = self.fit(weight, gram=gram), self.fit(weight)
        found = output_error(weight, served.factors, gram)
        assert found <= output_error(weight, plain.factors, gram) * (1 + 1e-9) + 1e-9
        assert served.error == pytest.approx(found, rel=1e-4, abs=1e-7)
        assert served.factors.n_params == plain.factors.n_params
        assert served.factors.dtype == dtype
        assert 0 <= served.shrinkage <= 1
        if kind == "full":
            assert found < 0.98 * output_error(weight, plain.factors, gram)
        # No sweep raises the error; the last one told is after the cast.
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(served.errors[:-1]))

    def test_inputs_that_all_count_alike_ask_for_no_more_than_the_plain_fit(self) -> None:
        """Nor, of those that sweep for the inputs alone, where rounding to float16 undoes that."""
        half, weights = self.weight(torch.float16), [self.weight()]
        white = torch.eye(half[0].numel(), dtype=torch.float64)
        if self.method.sweeps_in_metric:
            weights += [half, *(DEGENERATE[kind](half) for kind in DEGENERATE if kind != "zeros")]
        for weight in weights:
            with quiet():
                pair = self.fit(weight, gram=white), self.fit(weight)
            served, plain = (true_error(one.factors, weight) for one in pair)
            assert served <= plain * (1 + 1e-9) + 1e-12

    @pytest.mark.parametrize("exponent", [-600, 80])
    def test_a_power_of_two_changes_nothing_in_moments_either(self, exponent: int) -> None:
        weight = self.weight(torch.float64 if abs(exponent) > 99 else torch.float32)
        gram = self.of_inputs()
        with quiet():
            usual, fit = (self.fit(w, gram=gram) for w in (weight, weight * 2.0**exponent))
        assert fit.error == pytest.approx(usual.error, rel=1e-3)
        finite(fit.factors)

    def test_autocast_has_no_say_in_moments_either(self) -> None:
        weight = self.weight(torch.float32)
        gram = self.of_inputs().float()
        with quiet():
            usual = self.fit(weight, gram=gram)
            with torch.autocast("cpu", torch.bfloat16):
                found = self.fit(weight, gram=gram)
        assert same(found.factors, usual.factors)
        assert found.errors == usual.errors

    @pytest.mark.parametrize("kind", ["meta", "float64", "float16"])
    def test_torchs_defaults_do_not_reach_the_result_in_moments_either(self, kind: str) -> None:
        weight, gram = self.weight(torch.float32), self.of_inputs()
        with quiet():
            usual = self.fit(weight, gram=gram).factors
            with defaults(kind):
                assert same(self.fit(weight, gram=gram).factors, usual)

    def test_a_fit_that_serves_worse_than_the_plain_one_gives_the_plain_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Here one that was lost on the way, and is zero."""
        weight, gram = self.weight(), self.of_inputs()
        usual, compared = [], _fit_or_plain.fit_or_plain

        def lost(
            target: Any, plain: Callable[[], Any], fit: Callable[[], Fit[Any]], least: float = 0.0
        ) -> Fit[Any]:
            def noted() -> Any:
                usual.append(plain())
                return usual[-1]

            def zero() -> Fit[Any]:
                found = fit()
                return replace(found, factors=found.factors.map(torch.zeros_like))

            return compared(target, noted, zero, least)

        for module in [m for m in sys.modules.values() if vars(m).get("fit_or_plain")]:
            monkeypatch.setattr(module, "fit_or_plain", lost)
        with quiet():
            fit = self.fit(weight, gram=gram)
        assert any(same(fit.factors, plain) for plain in usual)
        assert fit.error == pytest.approx(output_error(weight, fit.factors, gram), rel=1e-4)

    def test_leaves_moments_alone_and_takes_them_in_any_dtype(self) -> None:
        weight = self.weight(torch.float32)
        with quiet(), untouched(weight, self.of_inputs().float()) as (_, gram):
            usual = self.fit(weight, gram=gram)
            assert same(self.fit(weight, gram=gram.double().numpy()).factors, usual.factors)

    @pytest.mark.parametrize("size", [1e300, 1e-310])
    def test_the_scale_of_moments_is_of_no_consequence(self, size: float) -> None:
        weight = self.weight()
        white = torch.eye(weight[0].numel(), dtype=torch.float64)
        with quiet():
            usual, fit = self.fit(weight, gram=white), self.fit(weight, gram=white * size)
        assert fit.error == pytest.approx(usual.error, rel=1e-6)
        finite(fit.factors)

    def test_inputs_of_zeros_ask_for_nothing(self) -> None:
        """Then the plain factors are as good as any, and no output is off."""
        weight = self.weight()
        with quiet():
            plain, fit = self.fit(weight), self.fit(weight, gram=torch.zeros_like(self.of_inputs()))
        assert (fit.error, fit.shrinkage) == (0.0, 1.0)
        off, usual = (true_error(one.factors, weight) for one in (fit, plain))
        assert off <= usual * (1 + 1e-6)

    def test_a_degenerate_weight_gives_finite_factors(self) -> None:
        gram = self.of_inputs()
        for degenerate in DEGENERATE.values():
            with quiet():
                fit = self.fit(degenerate(self.weight(torch.float32)), gram=gram)
            finite(fit.factors)
            assert math.isfinite(fit.error)


class GramErrorLaws(GramLaws):
    """For those that take error= as well."""

    @pytest.mark.parametrize("error", ERRORS)
    def test_keeps_the_error_of_the_outputs(self, error: float) -> None:
        weight, gram = self.weight(), self.of_inputs()
        with quiet():
            fit = self.fit(weight, error=error, gram=gram)
        kept = output_error(weight, fit.factors, gram) <= error * (1 + 1e-9)
        assert kept or (error < max(ERRORS) and not fit.converged)


class MeanLaws(GramLaws):
    """For those that take mean= as well."""

    def test_with_a_mean_the_moments_are_those_about_it(self) -> None:
        weight = self.weight()
        n = weight[0].numel()
        centred, mean = self.of_inputs(), seeded(n, seed=9)
        with quiet():
            fit = self.fit(weight, gram=centred + torch.outer(mean, mean), mean=mean)
            usual = self.fit(weight, gram=centred)
        assert fit.error == pytest.approx(usual.error, rel=1e-6)
        assert output_error(weight, fit.factors, centred) == pytest.approx(fit.error, rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_constant_inputs_ask_for_nothing(self, dtype: torch.dtype) -> None:
        """About their mean nothing is left of them but rounding."""
        weight = self.weight(dtype)
        for seed in range(4):
            x = seeded(weight[0].numel(), 1, seed=seed, dtype=dtype).expand(-1, 3)
            with quiet():
                fit = self.fit(weight, gram=x @ x.T / 3, mean=x.mean(1))
            finite(fit.factors)


class BatchLaws(MethodLaws):
    """For those that take batch_dims=: a batch of three, (3, ...)."""

    def batch(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.stack([self.weight(dtype, seed) for seed in range(3)])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_each_is_what_it_is_alone(self, dtype: torch.dtype) -> None:
        tensors = self.batch(dtype)
        found = self.fit(tensors, batch_dims=1).factors
        for one, tensor in zip(found, tensors, strict=True):
            alone = self.fit(tensor)
            assert type(one) is type(alone.factors)
            assert one.dtype == dtype
            assert one.n_params == alone.factors.n_params
            assert true_error(one, tensor) == pytest.approx(alone.error, rel=2e-3, abs=1e-9)

    def test_a_share_is_one_of_each(self) -> None:
        tensors = self.batch()
        least = self.least(tensors, batch_dims=1)
        for share in SHARES[:-1]:
            n_params = self.fit(tensors, share, batch_dims=1).factors.n_params
            assert n_params <= max(float(share) * tensors.numel(), least), share
            # What each alone may have; where ranks differ in a tensor, common ones spend less.
            alone = sum(self.fit(tensor, share).factors.n_params for tensor in tensors)
            assert n_params >= 0.8 * alone, share

    @pytest.mark.parametrize("exponent", [80, 600])
    def test_degenerate_ones_and_any_scale_stand_beside_each_other(self, exponent: int) -> None:
        usual = self.weight(torch.float64 if exponent > 99 else torch.float32)
        odd = [degenerate(usual) for degenerate in DEGENERATE.values()]
        tensors = torch.stack([usual, *odd, usual * 2.0**exponent, usual * 2.0**-exponent])
        found = self.fit(tensors, batch_dims=1)
        assert math.isfinite(found.error)
        alone = self.fit(usual).error
        for k, one in enumerate(found.factors):
            finite(one)
            if k in (0, len(tensors) - 2, len(tensors) - 1):
                assert one.rel_error(tensors[k]) == pytest.approx(alone, rel=2e-3)
        assert not found.factors[1].to_dense().any()

    def test_no_batch_is_one_tensor(self) -> None:
        assert same(self.fit(self.weight(), batch_dims=0).factors, self.fit(self.weight()).factors)

    def test_many_go_some_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensors = torch.stack([self.weight(torch.float32, seed) for seed in range(7)])
        whole = self.fit(tensors, batch_dims=1)
        for module in list(sys.modules.values()):
            if module.__name__.startswith("tensorlrf.decomposition") and hasattr(module, "BLOCK"):
                monkeypatch.setattr(module, "BLOCK", 2 * tensors[0].numel())
        some = self.fit(tensors, batch_dims=1)
        torch.testing.assert_close(some.factors.to_dense(), whole.factors.to_dense())
        assert some.error == pytest.approx(whole.error, rel=1e-6)

    def test_a_batch_is_left_alone_and_so_is_its_graph(self) -> None:
        with untouched(self.batch(torch.float32).requires_grad_()) as (tensors,):
            found = self.fit(tensors, batch_dims=1).factors
        assert not any(t.requires_grad for t in found.tensors().values())


class BatchErrorLaws(BatchLaws):
    """For those that take error= with it."""

    def test_an_error_is_kept_in_each(self) -> None:
        tensors = self.batch(torch.float32)
        tensors[1] = tensors[1, :1]
        tensors[2] *= 2.0**80
        for error in ERRORS:
            found = self.fit(tensors, error=error, batch_dims=1).factors
            for one, tensor in zip(found, tensors, strict=True):
                assert true_error(one, tensor) <= error * (1 + 1e-6)

    def test_an_error_that_rounding_exceeds_is_kept_or_said_to_be_out_of_reach(self) -> None:
        tensors = self.batch(torch.bfloat16)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", TensorlrfWarning)
            fit = self.fit(tensors, error=1e-4, batch_dims=1)
        kept = [
            true_error(one, tensor) <= 1e-4
            for one, tensor in zip(fit.factors, tensors, strict=True)
        ]
        assert fit.converged == all(kept)
        assert all(kept) or "error=0.0001 is out of reach" in " ".join(str(w.message) for w in told)
