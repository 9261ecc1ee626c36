"""The kernels of lowrank_embedding and tt_embedding compiled for chips that are not here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Call, Problem
from tensorlrf_kernels.lowrank_embedding import fused
from tensorlrf_kernels.lowrank_embedding.launch import backward, forward
from tensorlrf_kernels.lowrank_linear.launch import DTYPES
from tensorlrf_kernels.tt_embedding import fused as train
from tensorlrf_kernels.tt_embedding.launch import forward as train_forward
from tests.kernels.compiled.fitting import assert_fits

pytestmark = pytest.mark.aot

CPU = torch.device("cpu")
# Rows, columns, rows of the table (few, since a trial allocates it) and rank.
LOOKUPS = (
    (1, 4096, 2048, 256), (16, 4096, 2048, 64), (64, 4096, 2048, 256), (65, 768, 2048, 96),
    (512, 4096, 2048, 128), (8192, 4096, 2048, 256), (8192, 4096, 2048, 64),
    (8192, 4096, 2048, 512), (8192, 768, 2048, 32), (2048, 14336, 2048, 128),
)  # fmt: skip
TRAINS = ((1, 4096, 2**17, 64), (8192, 4096, 2**17, 16), (8192, 4096, 2**17, 64), (64, 768, 999, 7))


def lookup_calls(problem: Problem, chip: str) -> list[Call]:
    config = forward(problem, KNOWN[chip])
    assert config is not None
    return fused.trial("forward", config, problem, CPU)


def train_calls(problem: Problem, chip: str) -> list[Call]:
    config = train_forward(problem, KNOWN[chip])
    assert config is not None
    return train.trial("forward", config, problem, CPU)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype) -> None:
    calls = lookup_calls(Problem(*LOOKUPS[5], dtype), chip)
    assert_fits(calls, KNOWN[chip])
    assert calls[0].constants["TRAP"]
    calls = train_calls(Problem(*TRAINS[2], dtype), chip)
    assert_fits(calls, KNOWN[chip])
    if dtype is torch.float32:  # no products: the other dtypes are the same code behind their loads
        check_sums(chip, dtype, 256)


def check_sums(chip: str, dtype: torch.dtype, C: int) -> None:
    problem = Problem(8192, C, 2048, C, dtype)
    config = backward(problem, KNOWN[chip])
    assert config is not None
    assert_fits(fused.trial("backward", config, problem, CPU), KNOWN[chip], ())


def test_an_index_out_of_range_meets_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very code that is launched, and nowhere where the switch is off."""
    import triton

    codes: list[str] = []
    compiler = triton.compile

    def spy(*args: Any, **options: Any) -> Any:
        compiled = compiler(*args, **options)
        codes.append(compiled.asm["ptx"])
        return compiled

    monkeypatch.setattr(triton, "compile", spy)
    chip = KNOWN["NVIDIA H200"]
    for call in (
        *lookup_calls(Problem(*LOOKUPS[1], torch.bfloat16), chip.name),
        *train_calls(Problem(*TRAINS[3], torch.bfloat16), chip.name),
    ):
        compile_call(call, chip)
        compile_call(replace(call, constants={**call.constants, "TRAP": False}), chip)
    assert ["trap;" in code for code in codes] == [True, False, True, False]


def test_float32_rows_beside_half_precision_and_odd_sizes_compile() -> None:
    chip = KNOWN["NVIDIA H200"]
    left, right = torch.empty(2048, 256), torch.empty(256, 4096, dtype=torch.bfloat16)
    indices = torch.zeros(8192, dtype=torch.int32)
    config = forward(fused.problem_of(indices, left, right), chip)
    assert config is not None
    calls, _ = fused.forward_calls(config, indices, left, right)
    assert_fits(calls, chip)
    for sizes in ((1, 1, 1, 1), (1000, 257, 129, 300)):
        problem = Problem(*sizes, torch.float16)
        for call in lookup_calls(problem, chip.name):
            assert compile_call(call, chip).shared_memory <= chip.shared_memory


@pytest.mark.slow
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(chip: str, kind: tuple[torch.dtype, bool]) -> None:
    for sizes in LOOKUPS:
        calls = lookup_calls(Problem(*sizes, *kind), chip)
        assert_fits(calls, KNOWN[chip])
    for sizes in TRAINS:
        calls = train_calls(Problem(*sizes, *kind), chip)
        assert_fits(calls, KNOWN[chip])
    for C in (16, 256, 4096):
        check_sums(chip, kind[0], C)
