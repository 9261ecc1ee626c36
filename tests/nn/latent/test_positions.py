"""Positions among numbers of a floating-point dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorlrf.nn.latent.positions import BITS, digits_in, joined, parted
from tensorlrf.nn.latent.turns import HALVES, NEIGHBOURS, turned

DTYPES = {torch.float16: 3, torch.bfloat16: 3, torch.float32: 1, torch.float64: 1}


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.integers(0, 2**BITS - 1), min_size=1, max_size=5))
def test_every_position_comes_back(dtype: torch.dtype, positions: list[int]) -> None:
    given_ones = torch.tensor(positions)[None]
    digits = joined(given_ones, dtype)
    assert digits.dtype == dtype
    assert digits.shape == (1, len(positions), digits_in(dtype))
    assert digits_in(dtype) == DTYPES[dtype]
    assert torch.equal(parted(digits), given_ones)


@pytest.mark.parametrize("turn", [HALVES, NEIGHBOURS])
@given(st.integers(0, 3))
def test_scores_of_turned_keys_depend_on_distances_alone(turn: str, rest: int) -> None:
    """Also where some numbers of a head do not turn."""
    angles = torch.arange(9.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    both = torch.cat((angles, angles), -1) if turn == HALVES else angles.repeat_interleave(2, -1)
    tables = both.cos()[None], both.sin()[None]
    draws = torch.Generator().manual_seed(rest)
    one, other = torch.randn(2, 6 + rest, generator=draws, dtype=torch.float64)
    first, second = (turned(x.expand(1, 1, 9, -1), tables, turn)[0, 0] for x in (one, other))
    scores = first @ second.T
    for k in range(-8, 9):
        line = scores.diagonal(k)
        torch.testing.assert_close(line, line[:1].expand_as(line))
    assert torch.equal(first[0], one)
