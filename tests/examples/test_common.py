"""What the examples share: packaged files, variants of compression, intervals."""

from __future__ import annotations

from collections.abc import Iterator

import common
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn


def test_a_package_is_found_and_a_missing_one_says_how_to_get_it() -> None:
    assert (common.packaged("skimage", "scikit-image") / "data").is_dir()
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps no-such==1\.0"):
        common.packaged("no_such_package", "no-such==1.0")


def test_variants_differ_and_a_misspelt_one_is_refused() -> None:
    given = [common.options(variant) for variant in common.VARIANTS]
    assert all(a != b for k, a in enumerate(given) for b in given[:k])
    with pytest.raises(ValueError, match=r"prefix\+affine.*'prefixed'"):
        common.options("prefixed")


def _untouchable() -> Iterator[Tensor]:
    raise AssertionError("plain SVD looked at the calibration")
    yield


def test_plain_leaves_the_calibration_alone_and_skips_what_it_should() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    small, report = common.compress(model, 0.5, "plain", _untouchable(), ["2"], progress=False)
    assert report.layer("0").factored
    assert type(small[2]) is nn.Linear
    assert common.parameters(small) < common.parameters(model) == 2 * (32 * 32 + 32)


def test_call_takes_tensors_and_named_tensors() -> None:
    class Named(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, None]:
            return a - b, None

    a, b = torch.ones(3), torch.arange(3.0)
    assert torch.equal(common.tensor_of(common.call(Named(), {"b": b, "a": a})), a - b)
    assert torch.equal(common.tensor_of(common.call(nn.ReLU(), -b)), torch.zeros(3))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_an_interval_of_the_mean_lies_within_the_values(values: list[float]) -> None:
    table = np.array(values)
    low, high = common.interval(lambda drawn: float(table[drawn].mean()), len(values))
    assert table.min() - 1e-9 <= low <= high <= table.max() + 1e-9
    assert (low, high) == common.interval(lambda drawn: float(table[drawn].mean()), len(values))


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0"):
        common.interval(lambda drawn: 0.0, 0)
