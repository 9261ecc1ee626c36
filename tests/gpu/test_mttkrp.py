"""mttkrp's kernel on a GPU: the laws, and what is its own, also behind cp.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._cp import fit_cp
from tensorlrf.decomposition.linalg.multilinear import _mttkrp
from tensorlrf.factors import CPFactors
from tensorlrf_kernels.mttkrp import contract_modes, fused, kernel_wins, reference
from tests.kernels.drawn.lowrank import assert_within, roundoff
from tests.kernels.drawn.mttkrp import Contraction, bound, draw, exact, norm_bound, others
from tests.laws.device import DeviceLaws, SanitizerLaws, beyond_the_result

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

SHAPES = (  # sizes, columns
    ((100, 120, 140), 64),
    ((37, 129, 53), 100),
    ((256, 128, 3, 3), 128),
    ((40, 40, 40, 40), 32),
    ((14, 13, 12, 11, 10), 33),
    ((2000, 3), 200),
    ((1, 1, 1), 1),
)
DTYPES = (torch.float32, torch.float64)


def contract(o: Contraction) -> Tensor:
    return contract_modes(o.tensor, o.factors, o.modes)


def off(y: Tensor, right: Tensor) -> float:
    return float((y.double().cpu() - right).norm() / right.norm())


class TestMttkrp(DeviceLaws, SanitizerLaws):
    """A case is sizes, the modes that are contracted, and columns: every mode of the shapes is
    left once, and then several are."""

    cases = (
        *((n, others(len(n), mode), c) for n, c in SHAPES for mode in range(len(n))),
        ((70, 300, 9), (1,), 40),
        ((15, 16, 17, 18), (1, 2), 40),
        ((15, 16, 17, 18), (3, 0), 40),
    )
    few = (((100, 120, 140), (1, 2), 64),)
    dtypes = DTYPES
    ways = ((True, None, "rows"),)
    sanitized = (
        "from tensorlrf_kernels.mttkrp import mttkrp\n"
        "for sizes in ((20, 30, 70), (33, 17, 3, 3)):\n"
        "    t = torch.randn(sizes, device='cuda')\n"
        "    f = [torch.randn(n, 20, device='cuda') for n in sizes]\n"
        "    for mode in range(len(sizes)): mttkrp(t, f, mode)\n"
    )

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> Contraction:
        return draw(*case, dtype, layout=layout, device="cuda")

    def leaves(self, o: Contraction) -> list[Tensor]:
        return [o.tensor, *o.factors]

    def filled(self, o: Contraction, tensors: Any) -> Contraction:
        tensor, *factors = tensors
        return Contraction(tensor, factors, o.modes)

    def run(self, o: Contraction, activation: str | None = None) -> Tensor:
        return contract(o)

    def scratch(self, o: Contraction, y: Tensor) -> tuple[int, ...]:
        return 64, *y.shape

    def agrees(self, y: Tensor, o: Contraction, activation: str | None) -> None:
        right = exact(o)
        assert_within(y.detach(), right, bound(o), "y")
        if right.numel() >= 1000:  # in the norm, where there are many
            assert off(y.detach(), right) < norm_bound(o)

    @pytest.mark.parametrize("gap", [1, 2])
    def test_any_order_in_memory(self, layout: str, gap: int) -> None:
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            for mode in range(3):
                given = {"order": order, "gap": gap, "layout": layout, "device": "cuda"}
                self.check(draw((40, 50, 60), others(3, mode), 24, **given))

    @pytest.mark.parametrize("far", [0, 1, 2])
    @pytest.mark.parametrize("mode", [0, 1, 2])
    def test_offsets_beyond_31_bits(self, mode: int, far: int) -> None:
        """Entries that lie more than 2^31 elements apart in one mode."""
        o = draw((3, 4, 5), others(3, mode), 6, device="cuda")
        step = 2**30 + 60
        strides = [step if k == far else stride for k, stride in enumerate(o.tensor.stride())]
        view = torch.empty(4 * step + 60, device="cuda").as_strided((3, 4, 5), strides)
        self.check(replace(o, tensor=view.copy_(o.tensor)))


def test_tf32_by_torchs_switch() -> None:
    o = draw((100, 120, 140), (1, 2), 64, device="cuda")
    right = exact(o)
    single = off(contract(o), right)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    tf32 = off(contract(o), right)
    assert single < norm_bound(o)
    assert 1e-5 < tf32 < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_less_accurate_than_the_library(dtype: torch.dtype) -> None:
    """1.5 times the error of the library product in full precision, at the most."""
    o = draw((200, 200, 200), (1, 2), 64, dtype, device="cuda")
    right = exact(o)
    library = off(reference.contract_modes(o.tensor, o.factors, o.modes), right)
    assert off(contract(o), right) < max(1.5 * library, 12 * roundoff(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_agree_with_float64(dtype: torch.dtype) -> None:
    o = draw((60, 50, 40), (0, 2), 24, dtype, device="cuda")
    given = [t.requires_grad_() for t in (o.tensor, *o.factors)]
    y = contract_modes(o.tensor, o.factors, o.modes)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, given, dy)
    wide = [t.detach().double().requires_grad_() for t in given]
    z = reference.contract_modes(wide[0], wide[1:], o.modes)
    expected = torch.autograd.grad(z, wide, dy.double())
    for got, right in zip(found, expected, strict=True):
        # Sums of at most 3000 terms of random sign, and what is lost of a product.
        assert off(got, right.cpu()) < (math.sqrt(3000) + 12) * 2 * roundoff(dtype)


def test_autocast_and_zero_sizes() -> None:
    o = draw((30, 40, 50), (1, 2), 8, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(contract(o), contract(o), rtol=0, atol=0)
        assert contract(o).dtype == torch.float32
    for sizes in ((0, 4, 5), (3, 0, 5)):
        y = contract(draw(sizes, (1, 2), 8, device="cuda"))
        assert y.shape == (sizes[0], 8)
        assert not y.any()


def test_the_khatri_rao_product_is_not_in_memory() -> None:
    o = draw((200, 200, 200), (1, 2), 64, device="cuda")
    # Its parts of the sum are; the product itself would take 10 MB.
    assert beyond_the_result(lambda: contract(o)) < 200 * 200 * 64 * 4 // 2


# ---- behind cp ----------------------------------------------------------------------------------


def planted(shape: tuple[int, ...], rank: int) -> Tensor:
    g = torch.Generator(device="cuda").manual_seed(0)
    factors = tuple(torch.randn(n, rank, generator=g, device="cuda") for n in shape)
    model = CPFactors(torch.ones(rank, device="cuda"), factors).to_dense()
    white = torch.randn(shape, generator=g, device="cuda")
    return model.add_(white, alpha=0.5 * float(model.norm() / white.norm()))


@pytest.mark.parametrize("shape", [(150, 160, 170), (6, 400, 6), (96, 64, 3, 3)], ids=str)
def test_cp_by_the_kernel_ends_where_it_does_by_the_library(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    tensor = planted(shape, 8)
    options: dict[str, Any] = {"n_iter_max": 30, "tol": 0.0, "random_state": 0}
    runs = {}
    for way in (False, True):
        monkeypatch.setattr(_mttkrp, "by_kernel", lambda *_, way=way: way)
        runs[way] = fit_cp(tensor, 8, **options)
    # A thousand roundings are room for what a sweep passes on to the next.
    assert abs(runs[True].error - runs[False].error) < 1000 * torch.finfo(torch.float32).eps
    again = fit_cp(tensor, 8, **options)
    for a, b in zip(again.factors.factors, runs[True].factors.factors, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_cp_takes_the_kernel_for_a_large_tensor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    large = torch.empty(400, 400, 400, device="cuda")
    assert kernel_wins(large, (1, 2), 64)
    assert not kernel_wins(large[:20, :20, :20], (1, 2), 64)
    seen: list[tuple[int, ...]] = []
    plain = fused.forward

    def watched(tensor: Tensor, factors: Any, modes: Any) -> Tensor | None:
        seen.append(tuple(modes))
        return plain(tensor, factors, modes)

    monkeypatch.setattr(fused, "forward", watched)
    fit_cp(planted((20, 20, 20), 4), 4, n_iter_max=2)
    assert not seen
    fit_cp(planted((400, 400, 400), 4), 64, n_iter_max=2)
    assert seen
