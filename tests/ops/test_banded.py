"""Layers on bands of rows obey the laws of forms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tensorlrf import ops
from tensorlrf.errors import UnsupportedError
from tests.draws import seeded
from tests.factors.test_banded import banded
from tests.laws.forms import FormLaws, Sample
from tests.nn.samples import dense_linear


class TestForm(FormLaws):
    """As a head, as a layer on indicators, and as a table, with a dense band and without."""

    def samples(self) -> Iterator[Sample]:
        for dense in (False, True):
            for axis in (0, 1):
                f = banded(axis=axis, dense=dense)
                yield f, dense_linear(f), seeded(2, f.shape[1], seed=3)
            f = banded(dense=dense)
            table = nn.Embedding(*f.shape, padding_idx=3, dtype=torch.float64)
            with torch.no_grad():
                table.weight.copy_(f.to_dense())
            yield f, table, torch.tensor([[0, 3, 12], [7, 7, 1]])


def test_no_rows_are_looked_up_in_bands_of_columns() -> None:
    with pytest.raises(UnsupportedError, match=r"axis=1.*use factors\.T"):
        ops.embedding(torch.tensor([1]), banded(axis=1))
