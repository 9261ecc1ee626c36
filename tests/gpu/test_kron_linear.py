"""kron_linear's kernels on a GPU: the laws, and what is its own.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.kron_linear import kron_linear, reference
from tests.kernels.drawn import kron
from tests.kernels.drawn.kron import NAMES, KronOperands, draw_kron, exact, gradients
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within
from tests.laws.device import ProductLaws, SanitizerLaws, beyond_the_result, training_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

FLAGSHIP = ((64, 64), (64, 64))


class TestKronLinear(ProductLaws, SanitizerLaws):
    """Sizes are M, (m1, n1), (m2, n2) and s."""

    drawn = kron
    first, second = "a", "b"
    cases = traineds = (
        (1, (16, 16), (16, 16), 1),
        (1, (64, 64), (64, 64), 4),
        (16, (112, 64), (128, 64), 1),
        (5, (17, 33), (100, 29), 3),
        (300, (64, 64), (64, 64), 1),
        (300, (64, 64), (64, 64), 4),
        (200, (32, 64), (128, 64), 2),
        (150, (128, 16), (16, 128), 5),
        (140, (128, 128), (128, 128), 1),
        (70, (128, 128), (128, 128), 3),
        (600, (32, 32), (32, 32), 16),
        (333, (80, 48), (24, 112), 7),
    )
    few = ((3, *FLAGSHIP, 3), (300, *FLAGSHIP, 2), (200, (33, 40), (64, 20), 2))
    activations = (None, "relu", "gelu")
    backward_too = True
    empty = (0, *FLAGSHIP, 2)
    wide = ((200, *FLAGSHIP, 4),)
    sanitized = (
        "from tensorlrf_kernels.kron_linear import kron_linear as f\n"
        "for M, s, n in ((3, 1, 64), (140, 2, 64), (140, 5, 40)):\n"
        "    sizes = ((M, n * n), (s, n, n), (s, n, n), (n * n,), (M, n * n))\n"
        "    t = [torch.randn(s, device='cuda', dtype=torch.float16) for s in sizes]\n"
        "    t = [x.requires_grad_() for x in t]\n"
        "    f(*t, 'gelu').sum().backward()\n"
    )

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> KronOperands:
        return draw_kron(*case, dtype, terms=terms, layout=LAYOUTS[layout], device="cuda")

    def run(self, o: KronOperands, activation: str | None = None) -> Tensor:
        return kron_linear(*o.each(), activation)

    def between(self, o: KronOperands) -> Tensor:
        x = o.x.double().unflatten(1, (o.a.shape[2], o.b.shape[2]))
        return torch.einsum("sik,rkl->rsil", o.a.double(), x)

    def agrees(self, y: Tensor, o: KronOperands, activation: str | None) -> None:
        assert y.is_contiguous()
        super().agrees(y, o, activation)

    def test_gradients_of_any_strides(self, layout: str) -> None:
        o = self.draw(self.few[-1], torch.float16, layout=layout)
        self.check_gradients(o, LAYOUTS[layout](self.upstream(o)), "silu")

    @pytest.mark.parametrize("only", range(5))
    def test_only_the_gradient_that_is_needed(self, only: int) -> None:
        """With the bias alone and no activation nothing is launched at all."""
        for activation in (None, "silu"):
            o = self.draw((70, *FLAGSHIP, 2), torch.bfloat16)
            dy = self.upstream(o)
            leaves = [t.requires_grad_(k == only) for k, t in enumerate(self.leaves(o))]
            kron_linear(*leaves, activation).backward(dy)
            expected = list(self.gradients(o, dy, activation))
            for k, t in enumerate(leaves):
                assert (t.grad is not None) == (k == only)
                if t.grad is not None:
                    assert_within(t.grad, *expected[k], NAMES[k])

    def test_gradients_compiled_in_one_graph(self) -> None:
        o = self.draw(self.few[1], torch.bfloat16)
        leaves = [t.requires_grad_() for t in self.leaves(o)]
        compiled = torch.compile(kron_linear, fullgraph=True)
        found, expected = (
            torch.autograd.grad(f(*leaves, "gelu").sum(), leaves) for f in (compiled, kron_linear)
        )
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)

    def test_close_in_norm(self, dtype: torch.dtype) -> None:
        """As the benchmarks demand it: the bounds above hold in the worst case."""
        goal = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype]
        o = self.draw((2048, *FLAGSHIP, 4), dtype)
        leaves = [t.requires_grad_() for t in self.leaves(o)]
        y, dy = kron_linear(*leaves, "gelu"), self.upstream(o)
        found = (y, *torch.autograd.grad(y, leaves, dy))
        right = (exact(o, "gelu"), *gradients(o, dy, "gelu").values())
        for name, got, value in zip(("y", *NAMES), found, right, strict=True):
            assert float((got.double().cpu() - value).norm() / value.norm()) < goal, name

    def test_offsets_beyond_31_bits(self) -> None:
        o = self.draw((3, (16, 24), (17, 16), 2), torch.float16)
        far = torch.empty(2**32 + 2000, dtype=torch.float16, device="cuda")
        x = far.as_strided((3, 384), (2**31, 1))
        a = far[1000:].as_strided((2, 16, 24), (2**31, 24, 1))
        x.copy_(o.x)
        a.copy_(o.a)
        self.check(replace(o, x=x, a=a), "gelu")
        del far, x, a
        rows = 2**31 // 4096 + 3  # y has more than 2^31 elements
        x = torch.zeros(rows, 256, dtype=torch.float16, device="cuda")
        x[-2:] = 1.0
        ones = torch.ones(1, 64, 16, dtype=torch.float16, device="cuda")
        y = kron_linear(x, ones, ones)
        assert not y[:-2].any()
        assert bool((y[-2:] == 256).all())

    def test_what_no_kernel_serves_runs_all_the_same(self) -> None:
        o = self.draw((20, (8, 64), (64, 64), 2), torch.float32)
        o = o.map(lambda t: t.requires_grad_())
        y = self.run(o, "silu")
        torch.testing.assert_close(y, reference.kron_linear(*o.each(), "silu"), rtol=0, atol=0)
        y.sum().backward()
        assert o.a.grad is not None
        assert o.a.grad.any()

    def test_neither_intermediate_nor_weight_is_in_memory(self) -> None:
        o = self.draw((8192, *FLAGSHIP, 2), torch.bfloat16, terms=False)
        # What lies between takes 128 MiB, the weight 32.
        assert beyond_the_result(lambda: self.run(o)) < 2**20

    def test_training_takes_less_memory_than_the_chain(self) -> None:
        def leaves() -> list[Tensor]:
            return self.leaves(self.draw((4096, *FLAGSHIP, 4), torch.bfloat16, terms=False))

        ours, theirs = (
            training_bytes(lambda x, a, b, f=f: f(x, a, b, None, None, "gelu"), leaves)
            for f in (kron_linear, reference.kron_linear)
        )
        assert ours < theirs / 2

    def test_operands_on_two_devices_are_named(self) -> None:
        o = self.draw((16, *FLAGSHIP, 2), torch.bfloat16)
        with pytest.raises(ValueError, match="b is on cpu, x on cuda"):
            kron_linear(o.x, o.a, o.b.cpu())
