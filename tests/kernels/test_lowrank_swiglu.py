"""lowrank_swiglu against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.lowrank_swiglu import fused, launch, lowrank_swiglu, reference
from tests.draws import seeded
from tests.kernels.drawn.swiglu import draw
from tests.laws.kernels import KernelLaws

NAMES = ("x", "gate_right", "gate_left", "up_right", "up_left", "gate_bias", "up_bias")


def leaves(*lead: int) -> list[Tensor]:
    """x (*lead, 7), gate_right (3, 7), gate_left (4, 3), up_right (2, 7), up_left (4, 2), and
    biases (4,)."""
    sizes = ((*lead, 7), (3, 7), (4, 3), (2, 7), (4, 2), (4,), (4,))
    return [seeded(*size, seed=k) for k, size in enumerate(sizes)]


def with_gradients(*lead: int) -> list[Tensor]:
    return [t.requires_grad_() for t in leaves(*lead)]


GOOD = {
    "x": torch.ones(5, 7),
    "gate_right": torch.ones(3, 7),
    "gate_left": torch.ones(4, 3),
    "up_right": torch.ones(2, 7),
    "up_left": torch.ones(4, 2),
    "gate_bias": torch.ones(4),
    "up_bias": torch.ones(4),
}


class TestLowrankSwiglu(KernelLaws):
    remedy = r"lowrank_swiglu has no second.*path='chain'"

    def leaves(self, *lead: int) -> list[Tensor]:
        return leaves(*lead)

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return lowrank_swiglu(*operands)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return reference.lowrank_swiglu(*operands)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias = operands
        gate = torch.einsum("mr,rn,...n->...m", gate_left, gate_right, x) + gate_bias
        up = torch.einsum("mr,rn,...n->...m", up_left, up_right, x) + up_bias
        return gate / (1 + torch.exp(-gate)) * up

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        op = torch.ops.tensorlrf
        for lead, keep in (*product(self.leads, (True,)), ((5,), False)):
            yield op.lowrank_swiglu, (*self.drawn(*lead), keep)
            x, *factors = leaves(*lead)
            dh = seeded(*lead, 4, seed=9)
            _, t = op.lowrank_swiglu(x, *factors, True)
            for needed in ([True] * 7, [False, True, False, True, False, False, True]):
                args = (dh, x, t if keep else None, *factors, needed)
                yield op.lowrank_swiglu_backward, args

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for name, tensor, words in (
            ("x", torch.tensor(1.0), r"x has shape \(\); it must be \(\.\.\., n\)"),
            ("gate_right", torch.ones(3, 6), r"gate_right has shape \(3, 6\).*with n = 7 as x"),
            ("gate_left", torch.ones(4, 2), r"gate_left has shape \(4, 2\).*g = 3 as gate_right"),
            ("up_right", torch.ones(2, 6), r"up_right has shape \(2, 6\).*with n = 7 as x"),
            ("up_left", torch.ones(5, 2), r"up_left has shape \(5, 2\).*with m = 4 as gate_left"),
            ("up_left", torch.ones(4, 3), r"up_left has shape \(4, 3\).*with u = 2 as up_right"),
            ("gate_bias", torch.ones(5), r"gate_bias has shape \(5,\).*m = 4 as gate_left"),
            ("up_bias", torch.ones(4, 1), r"up_bias has shape \(4, 1\); it must be \(m\)"),
            ("up_right", torch.ones(2, 7).double(), r"up_right has dtype torch.float64, x"),
            ("up_left", torch.ones(4, 2, device="meta"), r"up_left is on meta, x on cpu; move"),
        ):
            yield partial(lowrank_swiglu, **{**GOOD, name: tensor}), words
        integers = [t.long() for t in GOOD.values()]
        yield (partial(lowrank_swiglu, *integers), r"x has dtype torch.int64; it must be a flo")


@pytest.mark.parametrize("absent", [(5,), (6,), (5, 6)])
def test_either_bias_may_be_left_out(absent: tuple[int, ...]) -> None:
    ours, theirs = with_gradients(5), with_gradients(5)
    for tensors, call in ((ours, lowrank_swiglu), (theirs, reference.lowrank_swiglu)):
        given = [None if k in absent else t for k, t in enumerate(tensors)]
        call(*given).square().sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        assert (t.grad is None) == (expected.grad is None)
        if t.grad is not None:
            torch.testing.assert_close(t.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_the_result_is_contiguous_and_a_tensor_of_its_own() -> None:
    x, *factors = leaves(3, 5)
    y = lowrank_swiglu(x.transpose(0, 1), *factors)
    assert y.is_contiguous()
    torch.testing.assert_close(y.transpose(0, 1), lowrank_swiglu(x, *factors))


@pytest.mark.parametrize("zero", ["gate", "up", "both"])
def test_rank_zero_leaves_the_bias(zero: str) -> None:
    x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias = leaves(5)
    if zero != "up":
        gate_right, gate_left = gate_right[:0], gate_left[:, :0]
    if zero != "gate":
        up_right, up_left = up_right[:0], up_left[:, :0]
    factors = (gate_right, gate_left, up_right, up_left)
    y = lowrank_swiglu(x, *factors, gate_bias, up_bias)
    gate = x @ (gate_left @ gate_right).T + gate_bias
    up = x @ (up_left @ up_right).T + up_bias
    torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up)
    gate_side, up_side = reference.Projection(*factors[:2]), reference.Projection(*factors[2:])
    problem = fused.problem_of(x.float(), gate_side, up_side)
    assert all(launch.forward(problem, chip) is None for chip in KNOWN.values())


def test_what_backward_does_not_need_is_not_kept() -> None:
    tensors = with_gradients(50)
    shapes: list[torch.Size] = []

    def pack(t: Tensor) -> Tensor:
        shapes.append(t.shape)
        return t

    def kept() -> list[torch.Size]:
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            lowrank_swiglu(*tensors)
        return [shape for shape in shapes if shape[0] == 50]

    assert sorted(kept()) == [(50, 5), (50, 7)]  # t of both projections, and x
    for k in (1, 3):
        tensors[k].requires_grad_(False)
    assert kept() == [(50, 5)]  # t, but not x
    with torch.no_grad():
        assert kept() == []


def test_t_that_was_not_kept_is_made_anew() -> None:
    op = torch.ops.tensorlrf.lowrank_swiglu
    ours, theirs = with_gradients(5), with_gradients(5)
    op(*ours, False)[0].sum().backward()
    lowrank_swiglu(*theirs).sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(t.grad, expected.grad)


def test_float16_keeps_its_intermediate_in_float32() -> None:
    o = draw(4, 5, 6, 3, 2, torch.float16)
    y, t = torch.ops.tensorlrf.lowrank_swiglu(*o.each(), True)
    assert y.dtype == torch.float16
    assert t.dtype == torch.float32
    assert t.shape == (4, 5)


# ---- the launches -------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("dtype", launch.DTYPES, ids=str)
def test_launches_by_rows_and_rank(chip, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    problem = Problem(8192, 4096, 4096, 128, dtype)
    prefill = launch.forward(problem, chip)
    assert prefill is not None
    assert prefill.kernel == "prefill"
    assert launch.forward(problem._replace(rank=129), chip) is None
    assert launch.forward(problem._replace(dtype=torch.float64), chip) is None
    for rank in (1, 129, 1000, 4096):
        decode = launch.forward(problem._replace(rows=128, rank=rank), chip)
        assert decode is not None
        assert decode.kernel == "decode"
        blocks = 2 * -(-rank // decode.blocks["BR"])
        assert blocks <= launch.MOST_RANK_BLOCKS
    assert launch.backward(problem._replace(rank=64), chip) is not None
    assert launch.backward(problem._replace(rank=65), chip) is None
    for size in ("rows", "out", "inp", "rank"):
        assert launch.forward(problem._replace(**{size: 0}), chip) is None
        assert launch.backward(problem._replace(**{size: 0}), chip) is None


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("rows", [16, 8192])
def test_neighbours_differ_in_one_size_and_have_counters(direction: str, rows: int) -> None:
    for chip in KNOWN.values():
        for rank in (64, 1000) if rows == 16 and direction == "forward" else (64,):
            problem = Problem(rows, 4096, 4096, rank, torch.bfloat16)
            first = getattr(launch, direction)(problem, chip)
            found = list(launch.neighbours(first, problem, chip))
            assert found
            for config in found:
                assert config.kernel == first.kernel
                assert config != first
                if config.kernel == "decode":
                    assert 2 * -(-rank // config.blocks["BR"]) <= launch.MOST_RANK_BLOCKS


@pytest.mark.parametrize("tf32", [False, True])
def test_a_trial_has_the_problems_sizes_and_precision(tf32: bool) -> None:
    chip, device = KNOWN["NVIDIA H200"], torch.device("cpu")
    for rows, direction in ((16, "forward"), (200, "forward"), (200, "backward")):
        problem = Problem(rows, 40, 50, 20, torch.float32, tf32)
        config = getattr(launch, direction)(problem, chip)
        (call,) = fused.trial(direction, config, problem, device)
        assert [call.args[name] for name in "MNKGU"] == [rows, 40, 50, 20, 20]
        assert call.constants["PRECISION"] == ("tf32" if tf32 else "ieee")
