"""Laws of every decomposition on what users hand in: taken as it is meant, or refused by name."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tensorlrf import decomposition
from tensorlrf.errors import ArgumentError, TensorlrfError
from tests.decomposition.every import EVERY, PLAIN, decomposed, matrix, rank_of
from tests.torch_defaults import defaults

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch: sparse CSR and nested tensors are in beta
    NOT_DENSE: dict[str, tuple[Any, str]] = {
        "meta": (matrix().to("meta"), "meta device.*load them first"),
        "coo": (matrix().to_sparse(), r"torch\.sparse_coo; pass \.to_dense\(\)"),
        "csr": (matrix().to_sparse_csr(), r"torch\.sparse_csr; pass \.to_dense\(\)"),
        "csc": (matrix().to_sparse_csc(), r"torch\.sparse_csc; pass \.to_dense\(\)"),
        "bsr": (matrix().to_sparse_bsr((4, 4)), r"torch\.sparse_bsr; pass \.to_dense\(\)"),
        "mkldnn": (matrix().to_mkldnn(), r"torch\._mkldnn; pass \.to_dense\(\)"),
        "nested": (
            torch.nested.nested_tensor([matrix()[0], matrix()[1, :3]]),
            "nested.*one tensor",
        ),
        "masked": (
            np.ma.masked_greater(matrix().numpy(), 1.0),
            r"masked entries.*\.filled\(0\)",
        ),
        "object": (matrix().numpy().astype(object), r"dtype object.*\.astype\('float64'\)"),
        "text": (np.array([["a", "b"], ["c", "d"]]), r"dtype <U1.*\.astype"),
        "dates": (np.zeros((3, 3), dtype="M8[s]"), r"dtype datetime64.*\.astype"),
        "long double": (matrix().numpy().astype(np.longdouble), r"\.astype\('float64'\)"),
        "list": (matrix().tolist(), "is a list; pass a torch.Tensor or a numpy array"),
    }


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(matrix(), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_not_dense_is_refused_with_a_remedy(name: str) -> None:
    for value, message in NOT_DENSE.values():
        with pytest.raises(ArgumentError, match=f"^tensor .*{message}"):
            decomposed(name, value)
    with pytest.raises(ArgumentError, match=r"tensor is quantized .*pass \.dequantize\(\)"):
        decomposed(name, quantized())


@pytest.mark.parametrize("name", PLAIN)
def test_arrays_and_parameters_are_their_values(name: str) -> None:
    weight = matrix()
    expected = decomposed(name, weight).tensors()
    array = weight.numpy()
    for same in (array, np.ma.masked_array(array), torch.nn.Parameter(weight)):
        for key, tensor in decomposed(name, same).tensors().items():
            assert torch.equal(tensor, expected[key])
            assert not tensor.requires_grad


@pytest.mark.parametrize("name", PLAIN)
def test_a_rank_is_a_number_whatever_holds_it(name: str) -> None:
    weight, rank = matrix(), rank_of(name)
    expected = EVERY[name](weight, rank).tensors()
    kinds: tuple[Any, ...]
    if isinstance(rank, int):
        kinds = (np.int64(rank), np.array(rank), torch.tensor(rank))
    else:
        # Of double precision, so that the share is the same.
        double = torch.tensor(rank, dtype=torch.float64)
        kinds = (np.float64(rank), np.array(rank), double, double.clone().requires_grad_())
        assert EVERY[name](weight, np.float32(0.5)).shape == (16, 12)
    for kind in kinds:
        for key, tensor in EVERY[name](weight, kind).tensors().items():
            assert torch.equal(tensor, expected[key])


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "rank",
    [
        torch.tensor(True),
        np.bool_(True),
        torch.tensor(1.5),
        np.float32("nan"),
        torch.tensor([[2]]),
        torch.tensor(0.5, device="meta"),
        torch.tensor(1j),
        np.array("3"),
    ],
)
def test_what_is_no_rank_is_refused(name: str, rank: Any) -> None:
    with pytest.raises(TensorlrfError, match="rank"):
        EVERY[name](matrix(), rank)


def test_ranks_of_several_modes_may_be_arrays() -> None:
    expected = decomposition.tucker(matrix(), (3, 2)).tensors()
    for ranks in (np.array([3, 2]), torch.tensor([3, 2]), (np.int64(3), torch.tensor(2))):
        for key, tensor in decomposition.tucker(matrix(), ranks).tensors().items():
            assert torch.equal(tensor, expected[key])


@pytest.mark.parametrize(
    "name", ["svd", "cp", "tucker", "tt", "tt_matrix", "tr", "kron", "blr", "monarch", "blast"]
)
def test_an_error_is_a_number_whatever_holds_it(name: str) -> None:
    by_error = getattr(decomposition, name)
    options = {"random_state": 0} if name in ("cp", "tr", "blast") else {}
    expected = by_error(matrix(), error=0.75, **options).tensors()
    for kind in (np.float32(0.75), torch.tensor(0.75)):
        for key, tensor in by_error(matrix(), error=kind, **options).tensors().items():
            assert torch.equal(tensor, expected[key])
    with pytest.raises(ArgumentError, match="error="):
        by_error(matrix(), error=torch.tensor(True))


@pytest.mark.parametrize("kind", ["meta", "float64", "float16"])
@pytest.mark.parametrize("name", EVERY)
def test_torchs_defaults_do_not_reach_the_result(name: str, kind: str) -> None:
    for dtype in (torch.float16, torch.float64):
        expected = decomposed(name, matrix(dtype)).tensors()
        with defaults(kind):
            found = decomposed(name, matrix(dtype)).tensors()
        for key, tensor in found.items():
            assert tensor.device.type == "cpu"
            assert tensor.dtype == dtype
            assert torch.equal(tensor, expected[key])


@pytest.mark.parametrize("kind", ["meta", "float64", "float16"])
def test_nor_what_is_not_made_of_a_weight(kind: str) -> None:
    with defaults(kind):
        spectrum = decomposition.evbmf(matrix())
        widths = decomposition.scree(matrix()).shape
        train = decomposition.tt_cross(lambda at: 1 / (1 + at.sum(1).double()), (6, 6, 6), 3)
    assert math.isfinite(spectrum.noise_variance)
    assert widths == (16, 12)
    assert {t.device.type for t in train.tensors().values()} == {"cpu"}
    assert train.dtype == torch.float64


def of_size(largest: float, dtype: torch.dtype) -> Tensor:
    values = matrix(torch.float64)
    return (values / values.abs().max() * largest).to(dtype)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_the_ends_of_a_dtype(name: str, dtype: torch.dtype) -> None:
    """Finite and as good as for numbers near one, or refused for what they are."""
    info = torch.finfo(dtype)
    for weight in (of_size(info.max, dtype), torch.full((16, 12), info.max, dtype=dtype)):
        with pytest.raises(ArgumentError, match=r"too near .* the largest number of"):
            decomposed(name, weight)
    usual = decomposed(name, of_size(1.0, dtype)).rel_error(of_size(1.0, dtype))
    # A norm just below half the end; and numbers of all digits just above the subnormal ones.
    for largest in (info.max / 32, info.tiny * 4):
        weight = of_size(largest, dtype)
        found = decomposed(name, weight)
        assert all(torch.isfinite(t).all() for t in found.tensors().values())
        assert torch.isfinite(found.to_dense()).all()
        digits = 64 * info.eps if largest > 1 else 0.5  # entries below the smallest are lost
        assert found.rel_error(weight) <= usual * 1.01 + digits


@pytest.mark.parametrize("name", EVERY)
def test_subnormal_and_mixed_numbers_stay_finite(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        info = torch.finfo(dtype)
        mixed = of_size(info.max / 64, dtype)
        mixed[8:] = of_size(info.tiny * 4, dtype)[8:]
        lone = torch.zeros(16, 12, dtype=dtype)
        lone[3, 4] = info.smallest_normal * info.eps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # degenerate terms, of which there are some
            for weight in (of_size(info.tiny / 8, dtype), lone, mixed):
                found = decomposed(name, weight)
                assert all(torch.isfinite(t).all() for t in found.tensors().values())
