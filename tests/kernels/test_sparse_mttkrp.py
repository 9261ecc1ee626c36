"""sparse_mttkrp against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.mttkrp import mttkrp
from tensorlrf_kernels.sparse_mttkrp import fused, launch, reference, sparse_mttkrp
from tests.draws import seeded
from tests.kernels.drawn.lowrank import assert_within
from tests.kernels.drawn.sparse import bound, draw, exact
from tests.laws.kernels import KernelLaws


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    columns=st.integers(0, 5),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    index=st.sampled_from([torch.int32, torch.int64]),
    most=st.sampled_from([1, 12, 1 << 18]),
)
@example(  # rows that begin, end and lie within blocks, and empty ones at either end
    lengths=[0, 7, 1, 0, 0, 30, 2, 0], sizes=[3, 4], columns=3, dtype=torch.float64,
    index=torch.int64, most=12,
)  # fmt: skip
def test_any_rows_in_any_blocks(lengths, sizes, columns, dtype, index, most) -> None:  # type: ignore[no-untyped-def]  # of strategies
    o = draw(lengths, sizes, columns, dtype, index=index)
    before, reference.MOST_ENTRIES = reference.MOST_ENTRIES, most
    try:
        found = sparse_mttkrp(*o.operands)
    finally:
        reference.MOST_ENTRIES = before
    assert found.is_contiguous()
    assert_within(found, exact(o), bound(o))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6), (3, 4, 2, 5)], ids=str)
def test_of_all_entries_it_is_the_dense_one(shape: tuple[int, ...]) -> None:
    tensor = seeded(*shape)
    factors = [seeded(n, 3, seed=n) for n in shape]
    for mode in range(len(shape)):
        turned = tensor.movedim(mode, 0)
        places = turned.new_ones(turned.shape).nonzero().T
        others = [f for k, f in enumerate(factors) if k != mode]
        starts = torch.arange(shape[mode] + 1) * (tensor.numel() // shape[mode])
        found = sparse_mttkrp(turned.reshape(-1), places[1:], starts, others)
        torch.testing.assert_close(found, mttkrp(tensor, factors, mode), rtol=1e-12, atol=1e-12)


def test_blocks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = torch.index_select
    monkeypatch.setattr(reference, "MOST_ENTRIES", 400)
    monkeypatch.setattr(
        torch, "index_select", lambda *a, out: made.append(out.numel()) or plain(*a, out=out)
    )
    sparse_mttkrp(*draw([50, 0, 500], (20, 30), 4).operands)
    assert max(made) <= 400
    assert len(made) == 2 * -(-550 // 100)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradients(k: int) -> None:
    o = draw([2, 0, 3, 1], (3, 4, 2)[:k], 2, torch.float64)
    leaves = [t.requires_grad_() for t in (o.values, *o.factors)]

    def of(values: Tensor, *factors: Tensor) -> Tensor:
        return sparse_mttkrp(values, o.indices, o.starts, factors)

    assert torch.autograd.gradcheck(of, leaves)


SIZES, ROWS = (4, 5), 3


class TestSparse(KernelLaws):
    """Of any number of nonzeros, in three rows; values and two factors are the operands."""

    leads = ((7,), (2,), (0,))
    compiled = ((7,), (12,), (3,))
    lowered = False
    remedy = r"second derivative.*sparse_mttkrp.reference"

    def leaves(self, *lead: int) -> list[Tensor]:
        o = draw((*lead, 0, 0), SIZES, 3, torch.float64)
        return [o.values, *o.factors]

    def places(self, values: Tensor) -> tuple[Tensor, Tensor]:
        counted = torch.arange(values.shape[0], device=values.device)
        indices = torch.stack([counted * 3 % SIZES[0], (counted * 2 + 1) % SIZES[1]])
        starts = torch.arange(ROWS + 1, device=values.device) * values.shape[0] // ROWS
        return indices, starts

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        values, *factors = operands
        return sparse_mttkrp(values, *self.places(values), factors)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        values, *factors = operands
        return reference.sparse_mttkrp(values, *self.places(values), factors)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        values, a, b = operands
        indices, starts = self.places(values)
        rows = [
            sum(
                (values[j] * a[indices[0, j]] * b[indices[1, j]] for j in range(begin, end)),
                torch.zeros_like(a[0]),
            )
            for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        return torch.stack(rows)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        values, *factors = self.drawn(7)
        places = self.places(values)
        yield torch.ops.tensorlrf.sparse_mttkrp, (values, *places, factors)
        values, *factors = self.leaves(7)
        dy = seeded(ROWS, 3)
        for needed in ([True] * 3, [False, False, True]):
            args = (dy, values, *places, factors, needed)
            yield torch.ops.tensorlrf.sparse_mttkrp_backward, args

    def test_autocast(self) -> None:
        operands = [t.float().requires_grad_() for t in self.leaves(7)]
        with torch.autocast("cpu", torch.bfloat16):
            y = self.run(*operands)
        assert torch.equal(y, self.run(*operands))
        y.sum().backward()
        assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in operands)

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        o = draw([2, 3], (4, 5), 2)
        v, i, s, f = o.operands
        for args, words in (
            ((v[None], i, s, f), r"values has shape \(1, 5\); it must be \(m\)"),
            ((v.long(), i, s, [u.long() for u in f]), "values has dtype torch.int64"),
            ((v, i, s, []), "no factors were given"),
            ((v, i, s, [f[0], f[1][:, :1]]), r"factors\[1\] has 1 columns, factors\[0\] 2"),
            ((v, i, s, [f[0], f[1][0]]), r"factors\[1\] has shape \(2\,\); it must be \(n, c\)"),
            ((v, i, s, [f[0], f[1].double()]), r"factors\[1\] has dtype torch.float64.*cast one"),
            ((v, i, s, [f[0], f[1].to("meta")]), r"factors\[1\] is on meta.*move one"),
            ((v, i[:1], s, f), r"indices has shape \(1, 5\); it must be \(2, 5\)"),
            ((v, i[:, 1:], s, f), r"indices has shape \(2, 4\)"),
            ((v, i.float(), s, f), "indices has dtype torch.float32; it must be torch.int32 or"),
            ((v, i, s[None], f), r"starts has shape \(1, 3\); it must be \(rows \+ 1,\)"),
            ((v, i, s.to("meta"), f), "starts is on meta, values on cpu"),
        ):
            yield partial(sparse_mttkrp, *args), words


def test_an_index_out_of_range_is_an_error_on_a_cpu() -> None:
    o = draw([2, 3], (4, 5), 2)
    o.indices[1, 3] = 5
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|invalid"):
        sparse_mttkrp(*o.operands)


def test_the_trial_of_a_problem_is_its_launch() -> None:
    o = draw([10] * 8, (8, 8), 20)
    problem = fused.problem_of(o.values, o.starts, o.factors)
    config = launch.forward(problem, KNOWN["NVIDIA H200"])
    assert config is not None
    trials = fused.trial("forward", config, problem, torch.device("cpu"))
    real, _ = fused.forward_calls(config, *o.operands)
    for one, other in zip(trials, real, strict=True):
        assert (one.config, one.grid, one.constants) == (other.config, other.grid, other.constants)
        for name, value in other.args.items():
            assert isinstance(value, Tensor) or one.args[name] == value, name


def test_what_no_kernel_serves() -> None:
    o = draw([2, 3], (4, 5), 2)
    problem = fused.problem_of(o.values, o.starts, o.factors)
    chip = KNOWN["NVIDIA H200"]
    assert launch.forward(problem, chip) is not None
    assert launch.forward(problem._replace(dtype=torch.bfloat16), chip) is None
    assert launch.forward(problem._replace(inp=0), chip) is None
