"""Factors in few bits: laws, round trips of codes, and the error of a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import BandedLowRank, Factors, LowRank, Quantized, TuckerFactors
from tensorlrf.factors.leaves.codes import CODES, LEVELS, decoded, encoded, unpacked
from tests.draws import seeded
from tests.laws.coded import CodedLaws


def low_rank(seed: int = 0) -> LowRank:
    return LowRank(seeded(6, 3, seed=seed), seeded(3, 10, seed=seed + 50), (6, 2, 5))


class TestLowRankInInt8(CodedLaws):
    codes = "int8"

    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Quantized:
        return Quantized.encode(low_rank(seed), self.codes).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Quantized)
        sides = []
        for name, (shape, blocks) in factors.sizes.items():
            held, scales = factors.parts[f"{name}.codes"], factors.parts[f"{name}.scales"]
            rows, columns = (n // k for n, k in zip(shape, blocks, strict=True))
            spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            sides.append(spread * unpacked(held, scales, shape[-1], factors.codes))
        whole = sides[0] if len(sides) == 1 else torch.einsum("ij,jk->ik", *sides)
        return whole.reshape(factors.shape)


class TestLowRankInInt4(TestLowRankInInt8):
    codes = "int4"


class TestMatrixInFP8(TestLowRankInInt8):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Quantized:
        return Quantized.encode(low_rank(seed).to_dense(), "fp8", group=5).to(dtype)


@given(
    st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.sampled_from(CODES),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_number_is_off_by_more_than_half_a_step(
    rows: int, columns: int, tiles: int, codes: str, dtype: torch.dtype, seed: int
) -> None:
    """Of fp8 half a unit in the last of its four digits, or of the smallest number."""
    blocks = rows, tiles
    matrix = seeded(rows, columns * tiles, seed=seed).to(dtype)
    scales, held = encoded(matrix.double(), codes, blocks, dtype)
    found = decoded(held, scales.double(), columns * tiles, codes)
    steps = scales.double().repeat_interleave(columns, 1)
    off = (found - matrix.double()).abs()
    # A scale that was rounded down leaves the largest number of a tile above the last code.
    above = LEVELS[codes] * steps * torch.finfo(dtype).eps
    if codes == "fp8":
        bound = torch.maximum(matrix.double().abs() / 16, steps * 2.0**-10)
    else:
        bound = steps / 2
    assert bool((off <= bound * (1 + 1e-12) + above).all())
    again_in = scales.double()
    whole = unpacked(held, again_in, columns * tiles, codes)
    assert float(whole.abs().max()) <= LEVELS[codes]
    if codes != "fp8":
        again, packed = encoded(found, codes, blocks, torch.float64)
        torch.testing.assert_close(again * 1.0, scales.double(), rtol=1e-2, atol=0)
        assert torch.equal(unpacked(packed, again_in, columns * tiles, codes), whole)


def test_the_largest_number_of_a_tile_is_its_last_code() -> None:
    q = Quantized.encode(torch.tensor([[0.5, -2.0, 0.0, 1.1]]), "int4")
    assert q.parts["weight.scales"].item() == pytest.approx(2 / 7)
    assert unpacked(q.parts["weight.codes"], q.parts["weight.scales"], 4, "int4").tolist() == [
        [2, -7, 0, 4]
    ]
    assert q.parts["weight.codes"].shape == (1, 2)
    assert Quantized.encode(torch.zeros(3, 5), "int4").to_dense().count_nonzero() == 0


def test_counts_codes_as_numbers_and_bytes_as_stored() -> None:
    q = Quantized.encode(seeded(4, 10, dtype=torch.float32), "int4", group=5)
    assert (q.n_params, q.n_bytes) == (40 + 8, 20 + 4 * 8)
    low = Quantized.encode(low_rank().to(torch.float32), "int8")
    assert (low.n_params, low.n_bytes) == (48 + 6, 48 + 4 * 6)  # a scale a column, and a row
    assert "lowrank in int8" in repr(low)


def test_any_format_and_its_indices() -> None:
    core = TuckerFactors(seeded(2, 2, 2), (seeded(4, 2), seeded(5, 2), seeded(3, 2)))
    place = torch.arange(7, dtype=torch.int32)
    bands = BandedLowRank((seeded(3, 4), seeded(4, 1)), (None, seeded(1, 4)), place)
    for f in (core, bands):
        q = Quantized.encode(f)
        assert q.shape == f.shape
        assert q.rank == f.rank
        assert q.rel_error(f.to_dense()) < 0.02
        assert q.n_bytes < 0.6 * f.n_bytes
    assert q.parts["place"] is place


def test_refuses_what_cannot_be() -> None:
    f, w = low_rank(), seeded(6, 12)
    with pytest.raises(ArgumentError, match=r"codes='int3'.*int8.*int4.*fp8"):
        Quantized.encode(f, "int3")
    with pytest.raises(ArgumentError, match="codes=8"):
        Quantized.encode(f, 8)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"group=5 does not divide the 12 inputs .* 3, 4, 6"):
        Quantized.encode(w, group=5)
    with pytest.raises(ArgumentError, match=r"group=4 does not divide the 6 numbers along .* left"):
        Quantized.encode(f, group=4)
    for odd in (0, True, 2.0):
        with pytest.raises(ArgumentError, match="group="):
            Quantized.encode(w, group=odd)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="in floating point"):
        Quantized.encode(Quantized.encode(f))
    for bad in (w.long(), w[0], w[:0]):
        with pytest.raises(ArgumentError, match="two modes or more in floating point"):
            Quantized.encode(bad)
    q = Quantized.encode(w)
    with pytest.raises(ShapeError, match="no 4 x 1 tiles"):
        Quantized(q.parts, "dense", "int8", q.of_meta, {"weight": ((6, 12), (4, 1))})
    with pytest.raises(ArgumentError, match="of='lowrnk'"):
        Quantized.from_tensors(q.tensors(), {**q.meta(), "of": "lowrnk"})
