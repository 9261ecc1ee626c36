"""The laws that every op with a kernel obeys on a GPU.

An op's test file subclasses `DeviceLaws`, and of the further laws those that are its own, and says
how operands are drawn, how the op is called on them and what is right. Needs torch, Triton and
pytest alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels import _counters
from tensorlrf_kernels._activation import ACTIVATIONS
from tests.gpu.sanitizer import assert_sane, needs_sanitizer
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within

HALF = torch.bfloat16
DTYPES = (torch.float16, HALF, torch.float32)
EXACT = {"rtol": 0, "atol": 0}


class DeviceLaws:
    """Subclass it, name the class Test..., and give what raises NotImplementedError.

    drawn         the module of operands: `exact`, `forward_bound`, `gradients`, `backward_bounds`
    cases         sizes, as `draw` takes them
    few           sizes on which the other laws look: of every launch that the op has
    ways          (with optional terms, activation, layout) of the values
    backward_too  whether the backward pass does not synchronise either
    """

    drawn: Any
    cases: Sequence[Any]
    few: Sequence[Any]
    dtypes: Sequence[torch.dtype] = DTYPES
    layouts: Sequence[str] = tuple(LAYOUTS)
    ways: Sequence[tuple[bool, str | None, str]] = ((False, None, "rows"), (True, "gelu", "rows"))
    backward_too = False

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> Any:
        """Operands on the GPU, with a `map`; the same values each time."""
        raise NotImplementedError

    def leaves(self, o: Any) -> list[Tensor]:
        """Those of the operands that have gradients."""
        return [t for t in o.each() if t is not None]

    def run(self, o: Any, activation: str | None = None) -> Tensor:
        """The op."""
        raise NotImplementedError

    # ---- what an op may have otherwise -----------------------------------------------------------

    def agrees(self, y: Tensor, o: Any, activation: str | None) -> None:
        """That y is right."""
        right, bound = (f(o, activation) for f in (self.drawn.exact, self.drawn.forward_bound))
        assert_within(y.detach(), right, bound, "y")

    def same(self, got: Tensor, wanted: Tensor) -> None:
        """That what torch.compile makes of the op is the op."""
        torch.testing.assert_close(got, wanted, **EXACT)

    def scratch(self, o: Any, y: Tensor) -> Sequence[int]:
        """The size of the largest tensor that the op gets."""
        return y.shape

    def renew(self, o: Any) -> None:
        """Other values in the same memory."""
        for t in self.leaves(o):
            t.mul_(-0.5)

    def filled(self, o: Any, tensors: Iterable[Tensor]) -> Any:
        """The operands with other leaves."""
        given = iter(tensors)
        return o.map(lambda _: next(given))

    # ---- helpers ---------------------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for name in ("case", "one", "dtype", "layout", "trained", "activation"):
            if name in metafunc.fixturenames:
                values = getattr(self, {"case": "cases", "one": "few"}.get(name, f"{name}s"))
                metafunc.parametrize(name, values, ids=str)

    @property
    def used(self) -> str | None:
        """The activation where one is enough."""
        return self.ways[-1][1]

    def check(self, o: Any, activation: str | None = None) -> None:
        """The value, in memory that was last full of NaN."""
        size = self.scratch(o, self.run(o, activation))
        dtype = self.leaves(o)[-1].dtype
        poison = [torch.full(size, math.nan, device="cuda", dtype=dtype) for _ in range(3)]
        del poison
        y = self.run(o, activation)
        assert y.dtype == dtype
        self.agrees(y, o, activation)

    # ---- the laws --------------------------------------------------------------------------------

    def test_forward_agrees_with_float64(self, case: Any, dtype: torch.dtype) -> None:
        for terms, activation, layout in self.ways:
            self.check(self.draw(case, dtype, terms=terms, layout=layout), activation)

    def test_any_strides(self, one: Any, layout: str) -> None:
        for dtype in self.dtypes:
            self.check(self.draw(one, dtype, layout=layout), self.used)

    def test_results_repeat_to_the_bit(self, one: Any) -> None:
        o = self.draw(one, self.dtypes[-2])
        leaves = [t.requires_grad_() for t in self.leaves(o)]
        runs = []
        for _ in range(3):
            y = self.run(o, self.used)
            runs.append((y, *torch.autograd.grad(y.float().square().sum(), leaves)))
        for again in runs[1:]:
            for a, b in zip(runs[0], again, strict=True):
                torch.testing.assert_close(a, b, **EXACT)

    def test_cuda_graphs_replay_on_new_data(self, one: Any) -> None:
        """Two of them, after a first call on a stream of its own."""
        o = self.draw(one, self.dtypes[-2])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(o, self.used)
        torch.cuda.synchronize()
        graphs = []
        for _ in range(2):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = self.run(o, self.used)
            graphs.append((graph, y))
        for _ in range(2):
            self.renew(o)
            for graph, y in graphs:
                y.fill_(math.nan)
                graph.replay()
                self.agrees(y, o, self.used)

    def test_compiled_in_one_graph(self, one: Any) -> None:
        o = self.draw(one, self.dtypes[-2])
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *tensors: self.run(self.filled(o, tensors), self.used), fullgraph=True
        )
        with torch.no_grad():
            self.same(compiled(*self.leaves(o)), self.run(o, self.used))

    def test_it_does_not_synchronise(self, one: Any) -> None:
        o = self.draw(one, self.dtypes[-2])

        def step() -> None:
            y = self.run(o, self.used)
            if self.backward_too:
                torch.autograd.grad(y, self.leaves(o), torch.ones_like(y))

        for t in self.leaves(o) if self.backward_too else ():
            t.requires_grad_()
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


class SanitizerLaws:
    """sanitized  code that runs the op forward and backward"""

    sanitized: str

    @needs_sanitizer
    @pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
    def test_under_the_sanitizer(self, tool: str) -> None:
        assert_sane(f"import torch\n{self.sanitized}torch.cuda.synchronize()\n", tool)


class NormLaws(DeviceLaws):
    """Of the ops whose gradients are compared in the norm.

    traineds  sizes
    slack     over what the value may be off
    """

    traineds: Sequence[Any]
    slack = 1.0

    def definition(self, o: Any, leaves: Sequence[Tensor], activation: str | None) -> Tensor:
        """What the op computes, by library calls that torch differentiates."""
        raise NotImplementedError

    def off(self, dtype: torch.dtype) -> float:
        """How far a tensor may be off in the Frobenius norm."""
        raise NotImplementedError

    def near(self, got: Tensor, exact: Tensor, off: float) -> None:
        """That it is no further off."""
        assert float((got.double() - exact).norm() / exact.norm().clamp(min=1e-30)) < off

    def test_backward_agrees_with_float64(self, trained: Any, dtype: torch.dtype) -> None:
        o = self.draw(trained, dtype)
        leaves = [t.requires_grad_() for t in self.leaves(o)]
        y = self.run(o, "silu")
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, leaves, dy)
        again = torch.autograd.grad(self.run(o, "silu"), leaves, dy)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        expected = torch.autograd.grad(self.definition(o, wide, "silu"), wide, dy.double())
        for got, twice, exact in zip(found, again, expected, strict=True):
            assert torch.equal(got, twice)  # sums in a fixed order
            self.near(got, exact, self.slack * self.off(dtype))


class GradientLaws(DeviceLaws):
    """Of the ops whose gradients have bounds.

    traineds     sizes
    activations  for each of them
    slack        over the bounds
    empty        the size of an empty batch
    """

    traineds: Sequence[Any]
    activations: Sequence[str | None] = (None,)
    slack = 1.0
    empty: Any

    def gradients(
        self, o: Any, dy: Tensor, activation: str | None
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """For each of the leaves (the gradient in float64, how far each element may be off)."""
        bounds = self.drawn.backward_bounds(o, dy, activation)
        found = self.drawn.gradients(o, dy, activation)
        return ((g, bounds[name]) for name, g in found.items())

    def check_gradients(self, o: Any, dy: Tensor, activation: str | None) -> None:
        """Those of all leaves."""
        # A tensor of which every row is the first cannot be a leaf of its own strides.
        leaves = [t.detach().requires_grad_() for t in self.leaves(o)]
        found = torch.autograd.grad(self.run(self.filled(o, leaves), activation), leaves, dy)
        expected = self.gradients(o, dy, activation)
        for k, (got, (value, bound)) in enumerate(zip(found, expected, strict=True)):
            assert got.dtype == leaves[k].dtype
            assert_within(got, value, self.slack * bound, f"gradient in operand {k}")

    def upstream(self, o: Any) -> Tensor:
        """A gradient of y."""
        y = self.run(o)
        return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)

    def test_backward_agrees_with_float64(
        self, trained: Any, activation: str | None, dtype: torch.dtype
    ) -> None:
        o = self.draw(trained, dtype)
        self.check_gradients(o, self.upstream(o), activation)

    def test_an_empty_batch(self) -> None:
        o = self.draw(self.empty, HALF)
        leaves = [t.requires_grad_() for t in self.leaves(o)]
        y = self.run(o, self.used)
        assert len(y) == 0
        for g in torch.autograd.grad(y.sum(), leaves):
            assert not g.any()


class LinearLaws(GradientLaws):
    """Of the ops that are a linear layer, behind torch's autocast."""

    def test_autocast_runs_the_kernel_in_half_precision(self) -> None:
        o = self.draw(self.few[0], torch.float32)
        with torch.autocast("cuda", HALF):
            y = self.run(o, self.used)
        assert y.dtype == HALF
        torch.testing.assert_close(y, self.run(o.map(lambda t: t.to(HALF)), self.used), **EXACT)


class ProductLaws(LinearLaws):
    """Of the ops that follow torch's switch for TF32, take every activation, and hold in float16
    what lies beyond its range between two products.

    wide           sizes of long sums
    first, second  names of the factors, as they are multiplied by
    """

    wide: Sequence[Any]
    first, second = "right", "left"

    def between(self, o: Any) -> Tensor:
        """What lies between the products, in float64."""
        raise NotImplementedError

    def test_every_activation(self, one: Any) -> None:
        for dtype, activation in product(self.dtypes, ACTIVATIONS):
            self.check(self.draw(one, dtype), activation)

    def test_tf32_by_torchs_switch(self) -> None:
        for case in self.wide:
            o = self.draw(case, torch.float32, terms=False)
            right, off = self.drawn.exact(o, None), []
            for precision in ("ieee", "tf32"):
                torch.backends.cuda.matmul.fp32_precision = precision
                off.append(float((self.run(o).double().cpu() - right).norm() / right.norm()))
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            # Ten bits of mantissa against twenty-three, summed over some hundred terms.
            assert off[0] < 1e-6
            assert 1e-5 < off[1] < 1e-3

    def test_float16_holds_an_intermediate_beyond_its_range(self, one: Any) -> None:
        o = self.draw(one, torch.float32, terms=False)
        for name, scale in (("x", 300), (self.first, 300), (self.second, 2.0**-14)):
            getattr(o, name).mul_(scale)
        o = o.map(torch.Tensor.half)
        assert self.between(o).abs().max() > torch.finfo(torch.float16).max
        self.check(o, "silu")


class CooperativeLaws(DeviceLaws):
    """Of the ops that have a launch whose programs wait for each other.

    together  the size that has it
    """

    together: Any

    def test_two_launches_give_what_one_gives(self, refuse_cooperation: Callable[[], None]) -> None:
        o = self.draw(self.together, HALF)
        one = self.run(o)
        refuse_cooperation()
        torch.testing.assert_close(one, self.run(o), **EXACT)

    def test_streams_side_by_side_do_not_share_counters(self) -> None:
        o = self.draw(self.together, HALF)
        expected = self.run(o)
        streams = [torch.cuda.Stream() for _ in range(4)]
        results = []
        torch.cuda.synchronize()
        for _ in range(50):
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(self.run(o))
        torch.cuda.synchronize()
        for y in results:
            torch.testing.assert_close(y, expected, **EXACT)
        assert not any(bool(slot.any()) for slot in _counters._of_stream.values())


def beyond_the_result(run: Callable[[], Tensor]) -> int:
    """The most bytes that torch held at one time in `run`, but for what it returns, above those
    that it held before; at the second call."""
    run()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - y.nbytes


def training_bytes(run: Callable[..., Tensor], leaves: Callable[[], Sequence[Tensor]]) -> int:
    """The same for a step of training on new leaves, the result and the gradients included."""
    for _ in range(2):
        given = [t.requires_grad_() for t in leaves()]
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = run(*given)
        y.backward(torch.ones_like(y))
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del given, y
    return peak
