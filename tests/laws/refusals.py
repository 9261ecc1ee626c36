"""What every registered method refuses: by the kind of the error, and with the name of the
argument, its value and the remedy in the text. See `tests/laws/methods.py`."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, TensorlrfError, UnsupportedError
from tests.laws.checks import quiet, same
from tests.laws.fits import (
    BatchLaws,
    DrawLaws,
    ErrorLaws,
    GramLaws,
    MeanLaws,
    MethodLaws,
)
from tests.metrics import moments

NO_COUNTS = (0, -1, 1.0, True, "many")
NO_SHARES = (1.0, 2.0, -1e-3, math.nan, True, "little")


def not_dense(weight: Tensor) -> dict[str, tuple[Any, str]]:
    """What holds no entries that could be read, and what is said of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: sparse CSR, nested and quantized are in beta
        return {
            "meta": (weight.to("meta"), "meta device.*load them first"),
            "coo": (weight.to_sparse(), r"sparse.* pass .*\.to_dense\(\)"),
            "csr": (weight.flatten(1).to_sparse_csr(), r"sparse.* pass .*\.to_dense\(\)"),
            "mkldnn": (weight.to_mkldnn(), r"torch\._mkldnn; pass \.to_dense\(\)"),
            "nested": (torch.nested.nested_tensor([weight[0], weight[1]]), "nested.*one tensor"),
            "quantized": (
                torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
                r"is quantized .*pass \.dequantize\(\)",
            ),
            "masked": (
                np.ma.masked_greater(weight.numpy(), 0.5),
                r"masked entries.*\.filled\(0\)",
            ),
            "object": (weight.numpy().astype(object), r"dtype object.*\.astype\('float64'\)"),
            "text": (np.array([["a", "b"], ["c", "d"]]), r"dtype <U1.*\.astype"),
            "dates": (np.zeros((3, 3), dtype="M8[s]"), r"dtype datetime64.*\.astype"),
            "wide": (weight.numpy().astype(np.longdouble), r"\.astype\('float64'\)"),
            "list": (weight.tolist(), "is a list; pass a torch.Tensor or a numpy array"),
            "integers": (weight.long(), r"dtype torch\.int64; .* floating point, cast it first"),
            "complex": (weight + 0j, "real and imaginary parts apart"),
            "eight bits": (weight.to(torch.float8_e4m3fn), r"float8_e4m3fn.*cast it to float16"),
            "NaN": ((-weight.abs()).log(), "contains NaN; clean it first"),
            "Inf": (weight / 0, "contains Inf; clean it first"),
            "no entry": (weight[:0], r"has shape \(0, .* holds no element"),
            "one mode": (weight.flatten(), "at least 2 modes are needed"),
        }


class MethodRefusals(MethodLaws):
    """For all methods."""

    def refused(
        self, words: str, rank: Any = None, *, weight: Any = None, **options: Any
    ) -> TensorlrfError:
        """The error, one of ours that is also a ValueError or a NotImplementedError."""
        with pytest.raises(TensorlrfError, match=words) as refusal, quiet():
            self.fit(self.weight() if weight is None else weight, rank, **options)
        assert isinstance(refusal.value, (ArgumentError, UnsupportedError))
        assert "tensor(" not in str(refusal.value)
        return refusal.value

    def test_what_cannot_be_decomposed(self) -> None:
        for kind, (value, words) in not_dense(self.weight(torch.float32)).items():
            if kind in ("coo", "csr"):  # some of its options may not serve what others do
                if not self.sparse and (kind == "coo" or len(self.shape) == 2):
                    self.refused(words, weight=value)
                continue
            error = self.refused(f"^tensor .*{words}", weight=value)
            assert isinstance(error, ArgumentError)

    def test_a_rank_and_an_error_are_two_budgets(self) -> None:
        fit, weight = self.method.fit, self.weight()
        with pytest.raises(
            ArgumentError, match=r"^give rank or error, one of the two; got neither"
        ):
            fit(weight, **self.options)
        if self.method.takes("error"):
            with pytest.raises(ArgumentError, match=r"one of the two; got rank=.* and error=0\.5"):
                fit(weight, self.rank, error=0.5, **self.options)

    @pytest.mark.parametrize(
        "rank",
        [
            *(0, -1, 1 << 70, 1.5, -0.5, math.nan, True, 1j, "7", "many", object()),
            *(np.bool_(True), np.float32("nan"), np.array("3"), np.array([[2]])),
            *(torch.tensor(True), torch.tensor(1.5), torch.tensor(0.5, device="meta")),
        ],
        ids=repr,
    )
    def test_what_is_no_rank(self, rank: Any) -> None:
        assert isinstance(self.refused("rank", rank), ArgumentError)

    def test_counts_beyond_every_size(self) -> None:
        """The last has too many digits to be shown."""
        for power in (63, 70, 17000):
            for rank, shown in (
                (2**power, rf"2\^{power} or more"),
                (-(2**power), rf"-2\^{power} or less"),
                ((2, 2**power), rf"a sequence with 2\^{power} or more"),
            ):
                self.refused(rf"rank={shown} is beyond 2\^63.*; use a count", rank)

    def test_the_old_word_for_a_solver_is_told_with_the_new_one(self) -> None:
        if self.method.takes("solver"):
            words = "^method='eigh' of .* is solver= now; write solver='eigh'$"
            self.refused(words, method="eigh")
            plain = partial(self.method.function, self.weight(), 2)
            for called in filter(None, (plain, self.method.config)):
                with pytest.raises(ArgumentError, match=words):
                    called(method="eigh")

    def test_words_that_are_none(self) -> None:
        """A word for an algorithm or a start that is not there is told with those that are."""
        for option in ("solver", "init"):
            if self.method.takes(option):
                self.refused(f"^{option}='odd' is unknown; choose one of ", **{option: "odd"})

    @pytest.mark.parametrize(
        ("option", "solver"),
        [("n_power_iter", "randomized"), ("n_oversample", "randomized"), ("n_samples", "cprand")],
    )
    def test_options_of_one_solver(self, option: str, solver: str) -> None:
        """With another one they would do nothing: the refusal tells whose they are."""
        if not self.method.takes(option) or self.method.config is None:
            return
        words = f"^{option}=3 .*solver='{solver}'"
        self.refused(words, **{option: 3, "solver": self.method.config().solver})
        config = self.method.config
        assert config(**{option: 3, "solver": solver})._read_options()[option] == 3
        if option != "n_samples":
            assert option not in config(**{option: 3})._read_options()
        self.refused(f"^{option}=-1 ", **{option: -1, "solver": solver})

    def test_sweeps_and_tolerances(self) -> None:
        """At least one sweep, and a share of the error below one; with moments as without."""
        for given in self.with_and_without_moments():
            for argument, values in (("n_iter_max", NO_COUNTS), ("tol", NO_SHARES)):
                for value in values if self.method.takes(argument) else ():
                    self.refused(f"^{argument}={value!r} must", **{**given, argument: value})

    def test_sweeps_that_are_not_made(self) -> None:
        """What iterates in the metric of the inputs alone takes no sweeps without them."""
        if self.method.sweeps_in_metric:
            for argument, value in (("n_iter_max", 2), ("tol", 0.1)):
                self.refused(f"^{argument}={value} goes with gram=", **{argument: value})

    def test_modes_are_those_of_the_tensor_counted_from_either_end(self) -> None:
        if not self.method.takes("modes"):
            return
        weight, order = self.weight(), len(self.shape)
        modes = tuple(range(order))
        usual = self.fit(weight, modes=modes).factors
        assert same(self.fit(weight, modes=[k - order for k in modes]).factors, usual)
        for odd in ((0, 0), (0, -order), (0, order), (-order - 1, 0), (0.0, 1), (True, 0)):
            self.refused(
                r"^modes=\(.* (the modes of this tensor are|names a mode twice)", modes=odd
            )
        for odd in (1, "01", ()):
            self.refused("^modes=", modes=odd)

    def test_a_callback_is_a_function_and_where_none_is_called_it_is_refused(self) -> None:
        if self.method.takes("callback"):
            self.refused("^callback=3 must be callable", callback=3)
            if self.method.takes("gram"):
                gram = torch.eye(math.prod(self.shape[1:]))
                self.refused("^callback= does not go with gram=", callback=print, gram=gram)

    def with_and_without_moments(self) -> list[dict[str, Any]]:
        with_gram = {"gram": moments(math.prod(self.shape[1:]))}
        return [{}, with_gram] if self.method.takes("gram") else [{}]


class DrawRefusals(MethodRefusals, DrawLaws):
    """For those that draw random numbers."""

    @pytest.mark.parametrize("state", ["7", 1.5, True, object()], ids=repr)
    def test_what_is_no_seed(self, state: Any) -> None:
        self.refused(
            "^random_state=.* must be an int, a torch.Generator or None", random_state=state
        )


class ErrorRefusals(MethodRefusals, ErrorLaws):
    """For those that take error=."""

    @pytest.mark.parametrize(
        "error",
        [-0.1, 1.0, 7, math.nan, True, "little", torch.tensor(True), np.array([0.1, 0.2])],
        ids=repr,
    )
    def test_what_is_no_relative_error(self, error: Any) -> None:
        self.refused("error", weight=self.weight(torch.float32), error=error)

    def test_an_error_below_rounding(self) -> None:
        words = r"error=1e-08 is below 1.2e-07, .* float32.*float64"
        for dtype in (torch.float32, torch.bfloat16):
            self.refused(words, weight=self.weight(dtype), error=1e-8)


class GramRefusals(MethodRefusals, GramLaws):
    """For those that take gram=."""

    def test_moments_that_are_none(self) -> None:
        weight = self.weight()
        n = weight[0].numel()
        white = torch.eye(n, dtype=torch.float64)
        for gram, words in (
            (torch.eye(n + 1), rf"gram has shape .*columns, so .* are \({n}, {n}\)"),
            (torch.triu(torch.ones(n, n)), "gram is not symmetric.*pass X @ X.T / N"),
            (-white, "negative entry on its diagonal"),
            (2 - white, "indefinite: its most negative eigenvalue is -1,.* pass the moments"),
            (white.log(), "gram contains Inf"),
            (white.long(), "gram has dtype torch.int64"),
            (white.tolist(), "gram is a list; pass a torch.Tensor"),
            (1e308 * white, "gram has entries up to 1e"),
        ):
            self.refused(words, weight=weight, gram=gram)


class MeanRefusals(MethodRefusals, MeanLaws):
    """For those that take mean= as well."""

    def test_means_that_are_none(self) -> None:
        weight = self.weight()
        n = weight[0].numel()
        mean, gram = torch.zeros(n), torch.eye(n)
        self.refused("^mean= goes with gram=, the second moments", weight=weight, mean=mean)
        for odd, words in (
            (torch.zeros(n + 1), rf"mean has shape .*the mean input is \({n},\)"),
            (mean + math.nan, "mean contains NaN"),
            (mean + 2, "mean contradicts gram: a variance"),
            (mean + 0.9, "mean contradicts gram: G - mean mean"),
        ):
            self.refused(words, weight=weight, gram=gram, mean=odd)


class BatchRefusals(MethodRefusals, BatchLaws):
    """For those that take batch_dims=."""

    def test_what_is_no_number_of_dimensions(self) -> None:
        for odd in (-1, 1.0, True, "one"):
            self.refused(
                "^batch_dims=.* must be a whole number", weight=self.batch(), batch_dims=odd
            )
        self.refused("^batch_dims=.* leaves", weight=self.batch(), batch_dims=len(self.shape))

    def test_what_does_not_go_with_a_batch_says_so_and_how_it_is_done(self) -> None:
        n = math.prod(self.shape[1:])
        gram, mean = torch.eye(n), torch.zeros(n)
        for given in ({"gram": gram}, {"gram": gram, "mean": mean}):
            if all(map(self.method.takes, given)):
                words = "^gram= is not served with batch_dims=; decompose .* one by one, .* stack"
                self.refused(words, weight=self.batch(), batch_dims=1, **given)
        if self.method.takes("mean"):
            words = "^mean= goes with gram="
            self.refused(words, weight=self.batch(), batch_dims=1, mean=mean)
        if self.method.sweeps_in_metric:
            words = "^n_iter_max=2 goes with gram="
            self.refused(words, weight=self.batch(), batch_dims=1, n_iter_max=2)
        words = "^rank='auto' is not"
        self.refused(words, "auto", weight=self.batch(), batch_dims=1)
