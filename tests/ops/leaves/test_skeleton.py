"""Layers on columns and rows obey the laws of forms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensorlrf.factors import Skeleton
from tests.draws import seeded
from tests.factors.leaves.test_skeleton import indices, interpolated, symmetric
from tests.laws.forms import FormLaws, Sample
from tests.nn.samples import dense_conv, dense_linear


def kernel(core: bool) -> Skeleton:
    between = seeded(2, 2, seed=4) if core else None
    picked = indices(17, 2), indices(0, 4)
    return Skeleton(
        seeded(5, 2, seed=1), between, seeded(2, 18, seed=2), *picked, dense_shape=(5, 2, 3, 3)
    )


class TestForm(FormLaws):
    """With a core and without, with rows of their own and without, and of kernels."""

    def samples(self) -> Iterator[Sample]:
        three = Skeleton(seeded(5, 3), seeded(3, 2, seed=1), seeded(2, 4, seed=2))
        for f in (three, interpolated(), symmetric()):
            yield f, dense_linear(f), seeded(2, f.shape[1], seed=3)
        for core in (True, False):
            f = kernel(core)
            conv = dense_conv(f, stride=2, padding=1)
            yield f, conv.requires_grad_(), seeded(2, 2, 5, 5, seed=3)

    @pytest.mark.slow
    def test_all_compile_into_one_graph_for_any_batch(self) -> None:
        super().test_all_compile_into_one_graph_for_any_batch()
