"""mttkrp against its definition, as an op of torch's dispatcher, and when its kernel is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.mttkrp import (
    contract_modes,
    fused,
    kernel_wins,
    launch,
    model_says,
    mttkrp,
    reference,
)
from tensorlrf_kernels.mttkrp.groups import groups_of
from tests.kernels.drawn.mttkrp import Contraction, draw, exact, others
from tests.laws.kernels import KernelLaws

SHAPES = [(4, 5), (4, 5, 6), (3, 4, 2, 5), (3, 2, 4, 2, 3)]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # sums of a few hundred terms near one, in float64


def leaves(*sizes: int, columns: int = 3) -> tuple[Tensor, list[Tensor]]:
    o = draw(sizes, range(len(sizes)), columns, torch.float64)
    return o.tensor.clone().requires_grad_(), [f.requires_grad_() for f in o.factors]


@pytest.mark.parametrize("call", [mttkrp, reference.mttkrp])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_follows_the_definition(call: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    o = draw(shape, range(len(shape)), 3, torch.float64)
    for mode in range(len(shape)):
        rest = others(len(shape), mode)
        expected = exact(Contraction(o.tensor, [o.factors[k] for k in rest], rest))
        torch.testing.assert_close(call(o.tensor, o.factors, mode), expected, **CLOSE)
    last = mttkrp(o.tensor, o.factors, -1)
    torch.testing.assert_close(last, mttkrp(o.tensor, o.factors, len(shape) - 1))


@st.composite
def contractions(draw_from: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[int], int]:
    """Sizes, contracted modes, order in memory, gap."""
    order = draw_from(st.integers(2, 5))
    sizes = draw_from(st.lists(st.integers(0, 5), min_size=order, max_size=order))
    modes = draw_from(st.lists(st.integers(0, order - 1), min_size=1, unique=True))
    stored = draw_from(st.permutations(range(order)))
    return tuple(sizes), tuple(modes), list(stored), draw_from(st.integers(1, 2))


@settings(max_examples=150, deadline=None)
@given(case=contractions(), most=st.sampled_from([1, 20, 1 << 24]))
def test_any_modes_in_any_layout_and_in_pieces(case, most: int) -> None:  # type: ignore[no-untyped-def]  # of a strategy
    sizes, modes, stored, gap = case
    o = draw(sizes, modes, 2, torch.float64, order=stored, gap=gap)
    before, reference.MOST_ENTRIES = reference.MOST_ENTRIES, most
    try:
        found = contract_modes(o.tensor, o.factors, o.modes)
    finally:
        reference.MOST_ENTRIES = before
    torch.testing.assert_close(found, exact(o), **CLOSE)


def test_pieces_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = reference.khatri_rao
    monkeypatch.setattr(reference, "MOST_ENTRIES", 2000)
    monkeypatch.setattr(
        reference, "khatri_rao", lambda f: made.append(math.prod(map(len, f))) or plain(f)
    )
    o = draw((20, 30, 10), range(3), 4, torch.float64)
    for mode in range(3):
        reference.mttkrp(o.tensor, o.factors, mode)
    assert max(made) * 4 <= 2000


# ---- gradients, and the dispatcher --------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (2, 3, 2, 2)], ids=str)
def test_gradients(shape: tuple[int, ...]) -> None:
    tensor, factors = leaves(*shape, columns=2)
    for mode in (0, 1):
        assert torch.autograd.gradcheck(lambda t, *f, m=mode: mttkrp(t, f, m), (tensor, *factors))


@pytest.mark.parametrize("modes", [(1,), (2, 0), (0, 1, 2, 3)])
def test_gradients_with_several_modes_left_or_none(modes: tuple[int, ...]) -> None:
    tensor, factors = leaves(2, 3, 2, 2, columns=2)
    given = [factors[k] for k in modes]
    assert torch.autograd.gradcheck(lambda t, *f: contract_modes(t, f, modes), (tensor, *given))


T, F = torch.ones(4, 5, 6), [torch.ones(n, 2) for n in (4, 5, 6)]


class TestContraction(KernelLaws):
    """Of modes 2 and 0 of a tensor (a, 4, 5)."""

    leads = ((3,), (0,))
    compiled = ((3,), (6,), (1,))
    lowered = False
    remedy = r"second derivative.*mttkrp.reference"

    def leaves(self, *lead: int) -> list[Tensor]:
        o = draw((*lead, 4, 5), (2, 0), 3, torch.float64)
        return [o.tensor, *o.factors]

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return contract_modes(operands[0], operands[1:], (2, 0))

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return reference.contract_modes(operands[0], operands[1:], (2, 0))

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return torch.einsum("abc,cr,ar->br", *operands)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        tensor, *factors = self.drawn(3)
        yield torch.ops.tensorlrf.mttkrp, (tensor, factors, [2, 0])
        tensor, *factors = self.leaves(3)
        dy = torch.ones(4, 3, dtype=torch.float64)
        for needed in ([True] * 3, [False, False, True]):
            yield torch.ops.tensorlrf.mttkrp_backward, (dy, tensor, factors, [2, 0], needed)

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, words in (
            ((T, F[:2], 0), r"2 factors were given for 3 modes; give one a mode"),
            ((T, F, 3), r"mode=3 is out of range; it must be from -3 to 2"),
            ((T[0, 0], F[2:], 0), r"tensor has shape \(6,\); it must have two modes or more"),
            ((T, [F[0], F[1], F[1]], 0), r"factor of mode 2 has shape \(5, 2\); it must be \(6, "),
            ((T, [F[0], F[1], torch.ones(6, 3)], 0), r"mode 2 has shape \(6, 3\); it must be \(6"),
            ((T, [F[0], F[1][:, 0], F[2]], 0), r"mode 1 has shape \(5,\); it must be \(5, c\)"),
            ((T, [F[0], F[1].double(), F[2]], 0), r"mode 1 has dtype torch.float64, .* cast one"),
            ((T, [F[0], F[1].to("meta"), F[2]], 0), r"mode 1 is on meta, tensor on cpu; move one"),
            ((T.long(), [f.long() for f in F], 0), r"tensor has dtype torch.int64; it must be a f"),
        ):
            yield partial(mttkrp, *args), words


def test_the_factor_of_the_mode_that_is_left_is_never_read() -> None:
    tensor, factors = leaves(3, 4, 5)
    mttkrp(tensor, factors, 1).sum().backward()
    assert factors[1].grad is None


@pytest.mark.parametrize("modes", [[], [0, 0], [3], [-1]])
def test_bad_modes_are_named(modes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"modes=\[.*different numbers below 3"):
        contract_modes(T, F[: len(modes)], modes)


# ---- how the kernel sees a tensor, and when it runs ---------------------------------------------


@settings(max_examples=150, deadline=None)
@given(case=contractions())
def test_groups_are_views_of_the_tensor(case) -> None:  # type: ignore[no-untyped-def]  # of a strategy
    sizes, modes, stored, gap = case
    sizes = tuple(n + 1 for n in sizes)
    tensor = draw(sizes, modes, 1, order=stored, gap=gap).tensor
    groups = groups_of(tensor.shape, tensor.stride(), modes)
    if groups is None:
        # No more than two runs of free modes, and three of contracted ones, are seen.
        assert len(sizes) > 4 or gap > 1 or stored != sorted(stored)
        return
    seen = tensor.as_strided([g.size for g in groups], [g.stride for g in groups])
    order = [k for group in groups for k in group.modes]
    alone = [k for k in range(len(sizes)) if sizes[k] == 1]
    assert sorted(order + alone) == list(range(len(sizes)))
    assert [k for k in order if k not in modes] == sorted(k for k in order if k not in modes)
    torch.testing.assert_close(seen.flatten(), tensor.permute(*alone, *order).flatten())


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_mttkrp_never_copies_a_permuted_tensor(order: int) -> None:
    strides = [7**k for k in range(order)]
    for mode in range(order):
        assert groups_of((7,) * order, strides, others(order, mode)) is not None


def test_the_k_dimension_is_long_and_its_factors_are_not() -> None:
    for sizes, mode, inner, made in (
        ((400, 400, 400), 0, 400, 0),
        ((512, 512, 3, 3), 0, 4608, 9),
        ((64, 64, 64, 64), 0, 4096, 4096),
    ):
        strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
        groups = groups_of(sizes, strides, others(len(sizes), mode))
        assert groups is not None
        assert groups.inner == inner
        several = [g.size for g in groups[2:] if len(g.modes) > 1]
        assert max(several, default=0) == made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_parts_cover_all_units(chip: str, dtype: torch.dtype) -> None:
    for rows, outer, inner in ((400, 400, 400), (16, 3, 10000), (512, 1, 4608), (1, 1, 1)):
        problem = Problem(rows, inner, outer * inner, 64, dtype)
        config = launch.forward(problem, KNOWN[chip])
        assert config is not None
        chunks, steps = launch.unit_of(inner, outer, config)
        assert (chunks - 1) * steps * config.blocks["BK"] < inner
        assert chunks * steps * config.blocks["BK"] >= inner
        assert steps * config.blocks["BK"] < launch.LONGEST_UNIT + config.blocks["BK"]


def test_the_trial_of_a_problem_is_its_launch() -> None:
    o = draw((8, 30, 512), (1, 2), 20)
    groups = groups_of(o.tensor.shape, o.tensor.stride(), o.modes)
    assert groups is not None
    problem = fused.problem_of(o.tensor, o.modes, 20, groups)
    config = launch.forward(problem, KNOWN["NVIDIA H200"])
    assert config is not None
    (trial,) = fused.trial("forward", config, problem, torch.device("cpu"))
    (real,), _ = fused.forward_calls(config, o.tensor, o.factors, o.modes, groups)
    assert (trial.config, trial.grid, trial.constants) == (real.config, real.grid, real.constants)
    for name, value in real.args.items():
        assert isinstance(value, Tensor) or trial.args[name] == value, name


def test_the_kernel_is_chosen_where_the_model_says_so() -> None:
    device, whole = torch.device("cpu"), (160000, 400, 1)  # planned for an H200

    def says(
        n: int, modes: tuple[int, ...], dtype: torch.dtype = torch.float32, *, tf32: bool = False
    ) -> bool:
        return model_says((n, n, n), (n * n, n, 1), modes, 64, dtype, tf32, device)

    assert whole == torch.empty(400, 400, 400, device="meta").stride()
    assert says(400, (1, 2))
    assert says(400, (0,))
    assert not says(400, (0,), tf32=True)  # then the library's one product is as good
    assert not says(400, (1, 2), torch.float64)
    assert not says(20, (1, 2))  # a launch of ours costs the host more
    assert not kernel_wins(torch.empty(400, 400, 400), (1, 2), 64)  # not on a GPU
