"""CP whose contractions are left to the kernel's op: what it would do on a GPU, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tensorlrf.decomposition.cp import _als as _cp_als
from tensorlrf.decomposition.cp._cp import cp, fit_cp
from tensorlrf.decomposition.linalg.multilinear import _mttkrp
from tensorlrf.decomposition.linalg.multilinear._mttkrp import by_kernel, cut_modes
from tensorlrf.factors import CPFactors
from tensorlrf_kernels.mttkrp import fused

# The last has a group of modes in the middle, so that both contractions have blocks.
SHAPES = [(9, 8), (12, 10, 11), (8, 7, 3, 3), (4, 5, 3, 4, 3), (6, 90, 6)]


def noisy(shape: Sequence[int], rank: int, dtype: torch.dtype) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    factors = tuple(torch.randn(n, rank, generator=rng, dtype=torch.float64) for n in shape)
    model = CPFactors(torch.ones(rank, dtype=torch.float64), factors).to_dense()
    return (model + 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype)


def forced(monkeypatch: pytest.MonkeyPatch, *, interpreted: bool) -> list[tuple[int, ...]]:
    """Every contraction by the op, or by its kernel in the interpreter; which modes they were."""
    seen: list[tuple[int, ...]] = []
    plain = _mttkrp.contract_modes

    def contract(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
        seen.append(tuple(modes))
        found = fused.forward(tensor, factors, modes) if interpreted else None
        assert found is not None or not interpreted
        return plain(tensor, factors, modes) if found is None else found

    monkeypatch.setattr(_cp_als, "is_small", lambda *_: False)
    monkeypatch.setattr(_mttkrp, "by_kernel", lambda *_: True)
    monkeypatch.setattr(_mttkrp, "contract_modes", contract)
    return seen


def check_fit(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, interpreted: bool
) -> None:
    tensor, sweeps = noisy(shape, 2, dtype), 2 if interpreted else 12
    options = {
        "n_iter_max": sweeps,
        "tol": 0.0,
        "init": "random",
        "n_restarts": 2,
        "random_state": 1,
    }
    expected = fit_cp(tensor, 2, **options)
    seen = forced(monkeypatch, interpreted=interpreted)
    found = fit_cp(tensor, 2, **options)
    assert len(seen) == 2 * sweeps  # both contractions of every sweep
    # Roundings of a sweep pass on to the next, in this problem without growing much: a thousand
    # roundings are room for a few sweeps.
    room = 1000 * torch.finfo(dtype).eps
    assert abs(found.error - expected.error) < room
    off = (found.factors.to_dense() - expected.factors.to_dense()).norm() / tensor.norm()
    assert float(off) < room


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_whole_fit_is_the_same(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    assert (cut_modes(shape).start > 0) == (shape == SHAPES[-1])
    check_fit(monkeypatch, shape, torch.float64, interpreted=False)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_whole_fit_by_the_kernel_is_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    for shape in ((6, 5, 7), SHAPES[-1]):
        with monkeypatch.context() as patch:
            check_fit(patch, shape, dtype, interpreted=True)


def test_the_cpu_keeps_to_its_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked for on the CPU")

    for name in ("kernel_wins", "contract_modes"):
        monkeypatch.setattr(_mttkrp, name, refuse)
    cp(noisy((6, 5, 7), 2, torch.float64), 2, n_iter_max=2)


def test_on_a_gpu_the_model_decides_but_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(_mttkrp, "kernel_wins", lambda *a: asked.append(a[1:]) or True)
    cut = cut_modes((6, 5, 7))
    with FakeTensorMode():
        blocks = torch.empty(cut.blocks, device="cuda")
        factors = [torch.empty(n, 4, device="cuda") for n in (6, 5, 7)]
        assert by_kernel(blocks, factors, cut, cut.outer)
        assert asked == [(cut.outer, 4)]
        factors[cut.inner[0]].requires_grad_()
        assert by_kernel(blocks, factors, cut, cut.outer)  # none that it reads
        assert not by_kernel(blocks, factors, cut, cut.inner)
        with torch.no_grad():
            assert by_kernel(blocks, factors, cut, cut.inner)
