"""Every format's form obeys the laws of forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tensorlrf.factors import Factors, Grouped
from tests.draws import seeded
from tests.laws.forms import FormLaws, Sample
from tests.nn.samples import KINDS, dense_linear, input_of, of_kind
from tests.ops.samples import MATRIX_FORMATS, STRUCTURED_FORMATS, random_factors, structured
from tests.ops.test_fused_structured import FACTORS

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "conv": {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "conv1d": {"stride": 2, "padding_mode": "circular"},
    "conv3d": {"padding_mode": "replicate"},
    "grouped": {"padding": 0},
    "grouped1d": {},
}
"""Kinds of convolutions, and how they slide."""


class OfEveryLayer(FormLaws):
    """A linear layer, and the convolutions."""

    format: str
    looks_up = True

    def samples(self) -> Iterator[Sample]:
        for kind in KINDS:
            f, dense = of_kind(self.format, kind, **CONVOLUTIONS.get(kind, {}))
            yield f, dense.requires_grad_(), input_of(kind)
            if kind == "conv":
                yield Grouped.stack([f]), dense, input_of(kind)  # one group is no groups
        if self.looks_up:
            yield looked_up(self.format)


class CompiledSlowly(FormLaws):
    """Compiled by the slow suite alone: many graphs, of steps that other formats share."""

    @pytest.mark.slow
    def test_all_compile_into_one_graph_for_any_batch(self) -> None:
        super().test_all_compile_into_one_graph_for_any_batch()


class TestLowRank(OfEveryLayer):
    format = "lowrank"


class TestCP(CompiledSlowly, OfEveryLayer):
    format = "cp"


class TestTucker(CompiledSlowly, OfEveryLayer):
    format = "tucker"


class TestPartialTucker(CompiledSlowly, OfEveryLayer):
    format = "tucker_partial"


class TestTuckerOfTheInputs(CompiledSlowly, OfEveryLayer):
    format = "tucker_in"


class TestKronecker(CompiledSlowly, OfEveryLayer):
    format = "kron"
    looks_up = False


class TestTrain(OfEveryLayer):
    format = "tt"


class TestBlockTerms(CompiledSlowly):
    """The convolutions."""

    def samples(self) -> Iterator[Sample]:
        for kind, options in CONVOLUTIONS.items():
            f, dense = of_kind("block_term", kind, **options)
            yield f, dense.requires_grad_(), input_of(kind)


class OfMatrices(FormLaws):
    """A linear layer alone."""

    def matrices(self) -> Iterator[Factors]:
        raise NotImplementedError

    def samples(self) -> Iterator[Sample]:
        for f in self.matrices():
            yield f, dense_linear(f), seeded(2, f.shape[1], seed=3)


class TestMatrices(OfMatrices):
    """Ring, blocks, tree of blocks, Monarch, BLAST: small ones, padded."""

    def matrices(self) -> Iterator[Factors]:
        yield from (random_factors(format, (5, 4)) for format in MATRIX_FORMATS)


class TestLargerMatrices(CompiledSlowly, OfMatrices):
    """Likewise of more cores, ragged and even blocks, no padding."""

    def matrices(self) -> Iterator[Factors]:
        yield from (structured(format, (2, 3, 2, 4), 2) for format in STRUCTURED_FORMATS)


class TestMatricesThatAKernelServes(OfMatrices):
    """Of the sizes that it takes."""

    def matrices(self) -> Iterator[Factors]:
        yield from (make() for make in FACTORS.values())


def looked_up(format: str) -> Sample:
    """A table of 12 rows of 6, of which one gets no gradient."""
    f = random_factors(format, (12, 6))
    dense = nn.Embedding(12, 6, padding_idx=3, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(f.to_dense())
    return f, dense, torch.tensor([[0, 3, 11], [7, 7, 1]])
