"""The kernels of kron_linear compiled for chips that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.kron_linear import fused
from tensorlrf_kernels.kron_linear.launch import KronProblem, backward, forward
from tensorlrf_kernels.launches import Call
from tensorlrf_kernels.lowrank_linear.launch import DTYPES
from tests.kernels.compiled.fitting import assert_fits

pytestmark = pytest.mark.aot

FLAGSHIP = (64, 64, 64, 64)  # m1, n1, m2, n2: 4096 -> 4096
SIZES = (
    FLAGSHIP,
    (128, 128, 128, 128),
    (112, 64, 128, 64),  # 4096 -> 14336
    (32, 64, 32, 64),
    (16, 128, 128, 16),
    (32, 32, 32, 32),
    (80, 48, 24, 112),
)
WHAT = ("forward", "dx", "dz", "da", "db")


def call_of(what: str, problem: KronProblem, chip: str, full: bool) -> Call:
    """A launch for the problem, with every term or with none."""
    rows, m1, n1, m2, n2, s, dtype, tf32 = problem
    given = {"forward": problem, "dx": problem.turned, "dz": problem, "da": problem}
    one = given.get(what, problem.swapped)
    choose = backward if what in ("da", "db") else forward
    config = choose(one, KNOWN[chip])
    assert config is not None

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype)

    x, a, b, dy = empty(rows, n1 * n2), empty(s, m1, n1), empty(s, m2, n2), empty(rows, m1 * m2)
    terms = (empty(m1 * m2), dy, "gelu") if full else (None, None, None)
    Z, X = fused.rows_of(dy, m2), fused.rows_of(x, n2)
    if what == "da":
        call, _ = fused.gradient_call(config, Z, X, b, a)
    elif what == "db":
        call, _ = fused.gradient_call(config, fused.exchanged(Z), fused.exchanged(X), a, b)
    elif what == "dx":
        call, _ = fused.forward_call(config, dy, a.transpose(1, 2), b.transpose(1, 2))
    elif what == "dz":
        call, _ = fused.forward_call(config, x, a, b, empty(m1 * m2), None, "gelu", dy=dy)
    else:
        call, _ = fused.forward_call(config, x, a, b, *terms)
    precision = {"PRECISION": "tf32" if tf32 else "ieee"}
    return replace(call, constants={**call.constants, **precision})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype) -> None:
    problem = KronProblem(8192, *FLAGSHIP, 2, dtype)
    for what in ("forward", "db") if chip == "NVIDIA H200" else ("forward",):
        assert_fits([call_of(what, problem, chip, full=False)], KNOWN[chip])


def test_the_intermediate_stays_in_registers() -> None:
    """Beside the factors and three stages of x there is room for what is stored, and no more."""
    chip = KNOWN["NVIDIA H200"]
    call = call_of("forward", KronProblem(8192, *FLAGSHIP, 2, torch.bfloat16), chip.name, False)
    matrix = 64 * 64 * 2
    assert call.config.blocks["HOLD"] == 1
    code = compile_call(call, chip)
    assert code.shared_memory < (2 * 2 + 3 + 1) * matrix + 2048
    # Each of four products of 64 x 64 x 64 is four instructions, each made once.
    assert code.tensor_ops == {"HGMMA": 16}


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, 4, 9])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(
    chip: str, kind: tuple[torch.dtype, bool], sizes: tuple[int, int, int, int], s: int
) -> None:
    problem = KronProblem(8192, *sizes, s, *kind)
    asked = [("forward", problem._replace(rows=16)), *((what, problem) for what in WHAT)]
    for what, one in asked:
        assert_fits([call_of(what, one, chip, full=what == "forward")], KNOWN[chip])
