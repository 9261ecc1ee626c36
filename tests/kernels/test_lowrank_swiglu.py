"""lowrank_swiglu against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.lowrank_swiglu import fused, launch, lowrank_swiglu, reference
from tests.draws import seeded
from tests.kernels.drawn.swiglu import draw

NAMES = ("x", "gate_right", "gate_left", "up_right", "up_left", "gate_bias", "up_bias")


def leaves(*lead: int) -> list[Tensor]:
    """x (*lead, 7), gate_right (3, 7), gate_left (4, 3), up_right (2, 7), up_left (4, 2), and
    biases (4,)."""
    sizes = ((*lead, 7), (3, 7), (4, 3), (2, 7), (4, 2), (4,), (4,))
    return [seeded(*size, seed=k).requires_grad_() for k, size in enumerate(sizes)]


def detached(*lead: int) -> list[Tensor]:
    return [t.detach() for t in leaves(*lead)]


@pytest.mark.parametrize("call", [lowrank_swiglu, reference.lowrank_swiglu])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_follows_the_definition(call, lead: tuple[int, ...], biases: bool) -> None:  # type: ignore[no-untyped-def]
    x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias = detached(*lead)
    gate = torch.einsum("mr,rn,...n->...m", gate_left, gate_right, x)
    up = torch.einsum("mr,rn,...n->...m", up_left, up_right, x)
    if biases:
        gate, up = gate + gate_bias, up + up_bias
    terms = (gate_bias, up_bias) if biases else ()
    y = call(x, gate_right, gate_left, up_right, up_left, *terms)
    torch.testing.assert_close(y, gate / (1 + torch.exp(-gate)) * up, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("absent", [(5,), (6,), (5, 6)])
def test_either_bias_may_be_left_out(absent: tuple[int, ...]) -> None:
    ours, theirs = leaves(5), leaves(5)
    for tensors, call in ((ours, lowrank_swiglu), (theirs, reference.lowrank_swiglu)):
        given = [None if k in absent else t for k, t in enumerate(tensors)]
        call(*given).square().sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        assert (t.grad is None) == (expected.grad is None)
        if t.grad is not None:
            torch.testing.assert_close(t.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_the_result_is_contiguous_and_a_tensor_of_its_own() -> None:
    x, *factors = detached(3, 5)
    y = lowrank_swiglu(x.transpose(0, 1), *factors)
    assert y.is_contiguous()
    torch.testing.assert_close(y.transpose(0, 1), lowrank_swiglu(x, *factors))


@pytest.mark.parametrize("zero", ["gate", "up", "both"])
def test_rank_zero_leaves_the_bias(zero: str) -> None:
    x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias = detached(5)
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


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_gradients(lead: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(lowrank_swiglu, leaves(*lead))


def test_gradients_of_an_empty_batch_are_zero() -> None:
    tensors = leaves(0)
    lowrank_swiglu(*tensors).sum().backward()
    for t in tensors:
        assert t.grad is not None
        assert t.grad.shape == t.shape
        assert not t.grad.any()


@pytest.mark.parametrize("only", range(7))
@pytest.mark.parametrize("inverse", [False, True])
def test_only_the_gradients_that_are_needed(only: int, inverse: bool) -> None:
    ours, theirs = leaves(2, 3), leaves(2, 3)
    for tensors, call in ((ours, lowrank_swiglu), (theirs, reference.lowrank_swiglu)):
        for k, t in enumerate(tensors):
            t.requires_grad_((k == only) != inverse)
        call(*tensors).square().sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(t.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_what_backward_does_not_need_is_not_kept() -> None:
    tensors = leaves(50)
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
    ours, theirs = leaves(5), leaves(5)
    op(*ours, False)[0].sum().backward()
    lowrank_swiglu(*theirs).sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(t.grad, expected.grad)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(lead: tuple[int, ...], keep: bool) -> None:
    torch.library.opcheck(torch.ops.tensorlrf.lowrank_swiglu, (*leaves(*lead), keep))
    x, *factors = detached(*lead)
    dh = seeded(*lead, 4, seed=9)
    _, t = torch.ops.tensorlrf.lowrank_swiglu(x, *factors, True)
    for needed in ([True] * 7, [False, True, False, True, False, False, True]):
        args = (dh, x, t if keep else None, *factors, needed)
        torch.library.opcheck(torch.ops.tensorlrf.lowrank_swiglu_backward, args)


def test_float16_keeps_its_intermediate_in_float32() -> None:
    o = draw(4, 5, 6, 3, 2, torch.float16)
    y, t = torch.ops.tensorlrf.lowrank_swiglu(*o.each(), True)
    assert y.dtype == torch.float16
    assert t.dtype == torch.float32
    assert t.shape == (4, 5)


def test_compiles_in_one_graph_with_gradients() -> None:
    def run(*tensors: Tensor) -> Tensor:
        return lowrank_swiglu(*tensors).square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for lead in ((5,), (9,), (2, 3)):
        ours, theirs = leaves(*lead), leaves(*lead)
        torch.testing.assert_close(compiled(*ours), run(*theirs))
        compiled(*ours).sum().backward()
        run(*theirs).sum().backward()
        for t, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(t.grad, expected.grad)


def test_autocast_casts_as_for_products() -> None:
    tensors = [t.float().requires_grad_() for t in detached(5)]
    with torch.autocast("cpu", torch.bfloat16):
        y = lowrank_swiglu(*tensors)
        expected = reference.lowrank_swiglu(*(t.bfloat16() for t in tensors))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert lowrank_swiglu(*leaves(5)).dtype == torch.float64


def test_double_backward_is_refused_with_the_remedy() -> None:
    x, *others = leaves(5)
    (g,) = torch.autograd.grad(lowrank_swiglu(x, *others).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"lowrank_swiglu has no second.*path='chain'"):
        g.sum().backward()


GOOD = {
    "x": torch.ones(5, 7),
    "gate_right": torch.ones(3, 7),
    "gate_left": torch.ones(4, 3),
    "up_right": torch.ones(2, 7),
    "up_left": torch.ones(4, 2),
    "gate_bias": torch.ones(4),
    "up_bias": torch.ones(4),
}


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
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
    ],
)
def test_bad_input_is_named(name: str, tensor: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lowrank_swiglu(**{**GOOD, name: tensor})


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has dtype torch.int64; it must be a floating one"):
        lowrank_swiglu(*(t.long() for t in GOOD.values()))


def test_importing_the_op_imports_no_compiler() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import tensorlrf_kernels.lowrank_swiglu; "
        "new = set(sys.modules) - before; "
        "print([m for m in ('triton', 'torch._dynamo') if m in new])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


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
