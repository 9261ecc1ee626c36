"""Arrays whose memory torch cannot have, and dtypes that it does not compute with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensorlrf.decomposition import blr, kron, svd
from tensorlrf.errors import ArgumentError, ShapeError


def test_arrays_that_run_backwards_or_in_another_byte_order() -> None:
    array = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    expected = svd(array, 3).to_dense()
    torch.testing.assert_close(svd(array.astype(">f4"), 3).to_dense(), expected)
    backwards = svd(array[::-1], 3).to_dense()
    torch.testing.assert_close(backwards, expected.flip(0))
    blr(array[:, ::-1], 0.5)


def test_a_read_only_array_is_not_written_to() -> None:
    array = np.eye(4, dtype=np.float32)
    array.flags.writeable = False
    assert svd(array, 2).rank == 2
    assert (array == np.eye(4)).all()


def test_eight_bit_floats_are_refused_with_a_remedy() -> None:
    weight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    with pytest.raises(ArgumentError, match=r"tensor has dtype torch\.float8_e4m3fn.*cast it"):
        svd(weight, 1)


def test_shapes_that_are_no_numbers() -> None:
    with pytest.raises(ShapeError, match=r"shapes=\(\(inf, 2\), \(2, 2\)\) must be"):
        kron(torch.ones(4, 4), 1, shapes=((float("inf"), 2), (2, 2)))  # type: ignore[arg-type]
