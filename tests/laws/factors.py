"""The laws that every format of factors obeys.

A format's test file subclasses `FactorLaws` and supplies only how to make a sample. Tolerances
follow from the dtype: a few hundred products and sums of numbers near one.
"""

from __future__ import annotations

import io as bytes_io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from tensorlrf import io
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import FORMATS, Factors


class FactorLaws:
    """Subclass it, name the class Test..., and give `sample`."""

    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Factors:
        """Factors with random entries; the same shapes for every seed."""
        raise NotImplementedError

    def dense_by_definition(self, factors: Factors) -> Tensor:
        """The whole tensor from the format's definition, written another way than to_dense."""
        raise NotImplementedError

    # ---- what it stands for -----------------------------------------------------------------

    def test_dense_follows_the_definition(self) -> None:
        f = self.sample()
        assert tuple(f.to_dense().shape) == f.shape
        torch.testing.assert_close(
            f.to_dense(), self.dense_by_definition(f), rtol=1e-12, atol=1e-12
        )

    def test_relative_error_of_itself_is_rounding(self) -> None:
        f = self.sample()
        assert f.rel_error(f.to_dense()) == 0.0
        single = f.to(torch.float32)
        assert single.rel_error(f.to_dense()) < 64 * torch.finfo(torch.float32).eps

    def test_autocast_has_no_say(self) -> None:
        """Not in the whole, and not in an error."""
        f = self.sample(dtype=torch.float32)
        whole, error = f.to_dense(), f.rel_error(f.to_dense() + 1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(f.to_dense(), whole)
            assert f.rel_error(whole + 1) == error

    def test_relative_error_is_the_frobenius_ratio(self) -> None:
        f = self.sample()
        other = f.to_dense() + 0.1 * self.sample(1).to_dense()
        expected = float((other - f.to_dense()).norm() / other.norm())
        assert math.isclose(f.rel_error(other), expected, rel_tol=1e-10)

    def test_relative_error_against_zero_is_absolute(self) -> None:
        f = self.sample()
        zero = torch.zeros(f.shape, dtype=f.dtype)
        assert math.isclose(f.rel_error(zero), float(f.to_dense().norm()), rel_tol=1e-10)

    def test_relative_error_of_an_array(self) -> None:
        f = self.sample()
        other = f.to_dense() + 0.1
        expected = f.rel_error(other)
        assert f.rel_error(other.numpy()) == expected
        assert f.rel_error(np.ma.masked_array(other.numpy())) == expected
        assert f.rel_error(other.numpy()[::-1][::-1]) == expected
        with pytest.raises(ArgumentError, match="masked entries"):
            f.rel_error(np.ma.masked_greater(other.numpy(), float(other.min())))

    def test_relative_error_needs_values(self) -> None:
        f = self.sample()
        dense = f.to_dense()
        for value, told in (
            (dense.to("meta"), "meta device"),
            (dense.to_sparse(), r"pass \.to_dense\(\)"),
            (dense.tolist(), "is a list"),
            (dense.numpy().astype(object), "dtype object"),
        ):
            with pytest.raises(ArgumentError, match=f"tensor .*{told}"):
                f.rel_error(value)
        with pytest.raises(ArgumentError, match="meta device"):
            f.to("meta").rel_error(dense)

    def test_refuses_sparse_tensors(self) -> None:
        f = self.sample()
        for name, tensor in f.tensors().items():
            with pytest.raises(ArgumentError, match=r"pass \.to_dense\(\)"):
                type(f).from_tensors({**f.tensors(), name: tensor.to_sparse()}, f.meta())

    def test_relative_error_refuses_another_shape(self) -> None:
        f = self.sample()
        with pytest.raises(ShapeError, match="shape"):
            f.rel_error(torch.zeros(*f.shape, 2))

    def test_multilinear_in_each_tensor(self) -> None:
        """Scaling any one tensor scales the whole; adding in it adds in the whole."""
        f, g = self.sample(0), self.sample(1)
        for name in f.tensors():
            tensors = f.tensors()
            mixed = type(f).from_tensors(
                {**tensors, name: 2 * tensors[name] + g.tensors()[name]}, f.meta()
            )
            swapped = type(f).from_tensors({**tensors, name: g.tensors()[name]}, f.meta())
            expected = 2 * f.to_dense() + swapped.to_dense()
            torch.testing.assert_close(mixed.to_dense(), expected, rtol=1e-11, atol=1e-11)

    # ---- bookkeeping ------------------------------------------------------------------------

    def test_counts_what_is_stored(self) -> None:
        f = self.sample()
        assert f.n_params == sum(t.numel() for t in f.tensors().values())
        assert f.n_bytes == 8 * f.n_params
        assert f.to(torch.float16).n_bytes == 2 * f.n_params

    def test_one_line_that_names_shape_rank_and_compression(self) -> None:
        line = repr(self.sample())
        assert "\n" not in line
        assert "x".join(map(str, self.sample().shape)) in line
        assert str(self.sample().rank) in line
        assert "%" in line

    def test_is_a_value(self) -> None:
        f = self.sample()
        name = next(iter(f.tensors()))
        with pytest.raises(AttributeError):
            setattr(f, name.split(".")[0], None)

    def test_format_is_registered_once(self) -> None:
        f = self.sample()
        assert FORMATS[f.format] is type(f)
        with pytest.raises(TypeError, match="registered already"):
            type("Again", (type(f),), {"format": f.format})

    # ---- moves ------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_cast_keeps_shape_and_names(self, dtype: torch.dtype) -> None:
        f = self.sample().to(dtype)
        assert f.dtype == dtype
        assert f.shape == self.sample().shape
        assert list(f.tensors()) == list(self.sample().tensors())
        assert f.to_dense().dtype == dtype

    def test_moves_to_another_device(self) -> None:
        f = self.sample().to("meta")
        assert f.device.type == "meta"
        assert tuple(f.to_dense().shape) == f.shape

    def test_map_does_not_change_the_original(self) -> None:
        f = self.sample()
        before = {n: t.clone() for n, t in f.tensors().items()}
        f.map(lambda t: t * 3)
        for n, t in f.tensors().items():
            torch.testing.assert_close(t, before[n], rtol=0, atol=0)

    def test_round_trip_through_tensors_and_meta(self) -> None:
        f = self.sample()
        again = type(f).from_tensors(f.tensors(), f.meta())
        assert again.shape == f.shape
        assert again.rank == f.rank
        for n, t in again.tensors().items():
            assert t is f.tensors()[n]

    def test_round_trip_as_pytree(self) -> None:
        f = self.sample()
        doubled = pytree.tree_map(lambda t: 2 * t, f)
        assert type(doubled) is type(f)
        leaves, spec = pytree.tree_flatten(f)
        assert len(leaves) == len(f.tensors())
        again = pytree.tree_unflatten(leaves, spec)
        torch.testing.assert_close(again.to_dense(), f.to_dense(), rtol=0, atol=0)
        assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec

    def test_pickles(self) -> None:
        f = self.sample()
        again = pickle.load(bytes_io.BytesIO(pickle.dumps(f)))
        torch.testing.assert_close(again.to_dense(), f.to_dense(), rtol=0, atol=0)

    # ---- files ------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_save_and_load(self, tmp_path: Path, dtype: torch.dtype) -> None:
        f = self.sample(dtype=dtype)
        io.save_factors(f, tmp_path / "f.safetensors")
        again = io.load_factors(tmp_path / "f.safetensors")
        assert type(again) is type(f)
        assert (again.shape, again.rank, again.dtype) == (f.shape, f.rank, f.dtype)
        for n, t in again.tensors().items():
            torch.testing.assert_close(t, f.tensors()[n], rtol=0, atol=0)

    # ---- gradients --------------------------------------------------------------------------

    def test_gradients_reach_every_tensor(self) -> None:
        f = self.sample()
        leaves = [t.detach().requires_grad_() for t in f.tensors().values()]

        def dense(*tensors: Tensor) -> Tensor:
            named = dict(zip(f.tensors(), tensors, strict=True))
            return type(f).from_tensors(named, f.meta()).to_dense()

        assert torch.autograd.gradcheck(dense, leaves)

    def test_detach_cuts_the_graph(self) -> None:
        f = self.sample().map(lambda t: t.detach().requires_grad_())
        assert all(t.requires_grad for t in f.tensors().values())
        assert not any(t.requires_grad for t in f.detach().tensors().values())

    # ---- bad input --------------------------------------------------------------------------

    def test_refuses_what_is_no_float_tensor(self) -> None:
        f = self.sample()
        for name in f.tensors():
            for bad in (torch.ones(f.tensors()[name].shape, dtype=torch.int64), [1.0]):
                with pytest.raises(ArgumentError, match=name.split(".")[0]):
                    type(f).from_tensors({**f.tensors(), name: bad}, f.meta())  # type: ignore[dict-item]

    def test_refuses_mixed_dtypes_and_devices(self) -> None:
        f = self.sample()
        last = list(f.tensors())[-1]
        for moved in (f.tensors()[last].float(), f.tensors()[last].to("meta")):
            with pytest.raises(ArgumentError, match=r"\.to\(\)"):
                type(f).from_tensors({**f.tensors(), last: moved}, f.meta())

    def test_refuses_a_missing_tensor(self) -> None:
        f = self.sample()
        for name in f.tensors():
            rest = {n: t for n, t in f.tensors().items() if n != name}
            with pytest.raises(ArgumentError, match=name):
                type(f).from_tensors(rest, f.meta())

    def test_refuses_sizes_that_do_not_fit(self) -> None:
        f = self.sample()
        for name, t in f.tensors().items():
            with pytest.raises(ShapeError):
                type(f).from_tensors(
                    {**f.tensors(), name: torch.cat([t, t], dim=t.ndim - 1)}, f.meta()
                )
