"""The map from a core to the matrix, and its adjoint; and what decompositions import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.trains._tt_gradients import adjoint
from tensorlrf.factors.algebra import chain_product

ALL = """
import sys, warnings
from unittest import mock
import torch
from tests.decomposition.every import EVERY, decomposed, gram_of_inputs, matrix
from tensorlrf import decomposition as d
from tensorlrf.decomposition.trains import _tt_outputs
warnings.simplefilter("ignore")
before = "torch._dynamo" in sys.modules
for name in EVERY:
    decomposed(name, matrix())
d.tt(matrix().reshape(16, 3, 2, 2), 3, gram=gram_of_inputs())
with mock.patch.object(_tt_outputs, "MOST_UNKNOWNS", 1):
    d.tt_matrix(matrix(), 3, gram=gram_of_inputs())
print(before, "torch._dynamo" in sys.modules)
"""


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 4), st.booleans())
def test_the_adjoint_of_a_core(data: st.DataObject, order: int, matrix: bool) -> None:
    sizes = st.lists(st.integers(1, 4), min_size=order, max_size=order)
    n, ranks = data.draw(sizes), [1, *data.draw(sizes)[1:], 1]
    m = [2] * order if matrix else []
    k, seed = data.draw(st.integers(0, order - 1)), data.draw(st.integers(0, 99))
    draws = torch.Generator().manual_seed(seed)
    cores = [
        torch.randn(ranks[j], *m[j : j + 1], n[j], ranks[j + 1], generator=draws).double()
        for j in range(order)
    ]
    flat = chain_product([core.flatten(1, -2) for core in cores])
    image = torch.randn(flat.shape, generator=draws).double()
    pulled = adjoint(cores, k)(image)
    assert pulled.shape == cores[k].shape
    torch.testing.assert_close((pulled * cores[k]).sum(), (image * flat).sum())


def test_no_decomposition_imports_dynamo(pytestconfig: pytest.Config) -> None:
    root = str(pytestconfig.rootpath)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{ALL}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]
