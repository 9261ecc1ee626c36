"""Every format's form obeys the laws of forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.laws.forms import FormLaws, Sample
from tests.nn.samples import KINDS, MATRIX_FORMATS, input_of, of_kind, random_factors
from tests.ops.samples import structured

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "conv": {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "conv1d": {"stride": 2},
    "conv3d": {},
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
        if self.looks_up:
            yield looked_up(self.format)


class TestLowRank(OfEveryLayer):
    format = "lowrank"


class TestCP(OfEveryLayer):
    format = "cp"


class TestTucker(OfEveryLayer):
    format = "tucker"


class TestPartialTucker(OfEveryLayer):
    format = "tucker_partial"


class TestKronecker(OfEveryLayer):
    format = "kron"
    looks_up = False


class TestTrain(OfEveryLayer):
    format = "tt"


class OfMatrices(FormLaws):
    """A linear layer alone."""

    def samples(self) -> Iterator[Sample]:
        for format in MATRIX_FORMATS:
            f, dense = of_kind(format, "linear")
            yield f, dense, input_of("linear")


class TestMatrices(OfMatrices):
    """Ring, blocks, tree of blocks, Monarch, BLAST: small ones, padded."""


class TestLargerMatrices(FormLaws):
    """Likewise of more cores, ragged and even blocks, no padding."""

    def samples(self) -> Iterator[Sample]:
        for format in ("tt", "tt_padded", "tr", "grid", "ragged", "tree", "monarch", "blast"):
            f = structured(format, (2, 3, 2, 4), 2)
            m, n = f.shape
            dense = nn.Linear(n, m, dtype=torch.float64)
            with torch.no_grad():
                dense.weight.copy_(f.to_dense())
            draws = torch.Generator().manual_seed(3)
            yield f, dense, torch.randn(2, n, generator=draws, dtype=torch.float64)


def looked_up(format: str) -> Sample:
    """A table of 12 rows of 6."""
    f = random_factors(format, (12, 6))
    dense = nn.Embedding(12, 6, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(f.to_dense())
    return f, dense, torch.tensor([[0, 3, 11], [7, 7, 1]])
