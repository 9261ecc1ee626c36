"""What tt_embedding has that a table of two matrices has not; the rest stands in
test_lowrank_embedding, for both."""

from __future__ import annotations

import pytest
import torch

from tensorlrf_kernels.tt_embedding import reference, tt_embedding
from tests.draws import seeded
from tests.kernels.drawn.embedding import draw_indices, trains

SHAPE = (23, 11)  # of 4 x 6 rows and 3 x 4 columns: both are padded


@pytest.mark.parametrize("shape", [(24, 12), SHAPE])
def test_any_number_of_cores(shape: tuple[int, int]) -> None:
    cores = [seeded(1, 3, 2, 2), seeded(2, 4, 3, 3, seed=1), seeded(3, 2, 2, 1, seed=2)]
    dense = torch.einsum("aibB,Bjcd,dklm->ijkbcl", cores[0], cores[1], cores[2])
    indices = draw_indices(9, shape[0]).view(3, 3)
    got = reference.tt_embedding(indices, cores, shape)
    torch.testing.assert_close(got, dense.reshape(24, 12)[: shape[0], : shape[1]][indices])


def test_padding_beyond_the_table_is_no_row() -> None:
    """The train has 24 rows, the table 23."""
    o = trains((4, 6, 3, 4), 5, torch.tensor([22]), torch.float64, SHAPE, None)
    assert tt_embedding(o.indices, o.one, o.other, SHAPE).shape == (1, 11)
    with pytest.raises(IndexError):
        tt_embedding(torch.tensor([23]), o.one, o.other, SHAPE)
