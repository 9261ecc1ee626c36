"""The laws that every op of the kernel core obeys as an op of torch's dispatcher, on a CPU.

An op's test file subclasses `KernelLaws` and says how to draw operands, how the op and the chain of
library calls are called on them, and what the definition gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.traced import Traced

EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""Sums of a few hundred terms near one, in float64."""
EVERY_SUBSET = 5
"""Of so many operands each choice is tried; of more each one alone, and all others."""


class KernelLaws:
    """Subclass it, name the class Test..., and give what raises NotImplementedError.

    leads        leading sizes of the input: batches, none, an empty one
    compiled     of the compiled function, one after the other
    activations  those that the op takes
    lowered      whether autocast casts the operands as those of a product, or leaves them
    remedy       what is said of second derivatives
    """

    leads: Sequence[tuple[int, ...]] = ((), (5,), (2, 3), (0,))
    compiled: Sequence[tuple[int, ...]] = ((5,), (9,), (2, 3))
    activations: Sequence[str | None] = (None,)
    lowered = True
    remedy = r"no second derivative.*path='chain'"

    def leaves(self, *lead: int) -> list[Tensor]:
        """Operands in float64, near one; the same values each time."""
        raise NotImplementedError

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        """The op."""
        raise NotImplementedError

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        """The same by library calls, which torch differentiates."""
        raise NotImplementedError

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        """By the definition, written another way than either."""
        raise NotImplementedError

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """(op, arguments) of the dispatcher, forward and backward, for `opcheck`."""
        raise NotImplementedError

    def wrong(self) -> Iterable[tuple[Callable[[], object], str]]:
        """(a call on what does not fit, a pattern of what is said of it)."""
        raise NotImplementedError

    # ---- helpers ---------------------------------------------------------------------------------

    def drawn(self, *lead: int) -> list[Tensor]:
        """Leaves that require gradients."""
        return [t.requires_grad_() for t in self.leaves(*lead)]

    @property
    def lead(self) -> tuple[int, ...]:
        """Of a usual batch."""
        return self.compiled[0]

    # ---- values ----------------------------------------------------------------------------------

    def test_follows_the_definition(self) -> None:
        for lead, activation in product(self.leads, self.activations):
            operands = self.leaves(*lead)
            expected = self.exact(*operands, activation=activation)
            for call in (self.run, self.chain):
                y = call(*operands, activation=activation)
                torch.testing.assert_close(y, expected, **EXACT)

    def test_operands_stay_as_they_are_in_any_layout(self) -> None:
        expected = self.run(*self.leaves(*self.lead))
        apart = [torch.stack([t, t], -1)[..., 0] for t in self.leaves(*self.lead)]
        versions = [t._version for t in apart]
        torch.testing.assert_close(self.run(*apart), expected, **EXACT)
        assert [t._version for t in apart] == versions
        for t, given in zip(apart, self.leaves(*self.lead), strict=True):
            assert torch.equal(t, given)

    # ---- gradients -------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        leads = [lead for lead in self.leads if torch.Size(lead).numel()]
        for lead, activation in product(leads, self.activations):
            assert torch.autograd.gradcheck(
                lambda *t, how=activation: self.run(*t, activation=how), self.drawn(*lead)
            )

    def test_only_the_gradients_that_are_needed(self) -> None:
        n = len(self.leaves(*self.lead))
        wanted: list[Sequence[bool]] = [n for n in product([True, False], repeat=n) if any(n)]
        if n > EVERY_SUBSET:
            wanted = [
                [(k == one) != others for k in range(n)] for one in range(n) for others in (0, 1)
            ]
        for needed, activation in product(wanted, self.activations[:2]):
            found = []
            for call in (self.run, self.chain):
                operands = self.leaves(*self.lead)
                for t, need in zip(operands, needed, strict=True):
                    t.requires_grad_(need)
                call(*operands, activation=activation).square().sum().backward()
                found.append([t.grad for t in operands])
            for got, expected in zip(*found, strict=True):
                # The sums of a backward are sums of products of the forward's.
                torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)

    def test_an_empty_batch_leaves_zero_gradients(self) -> None:
        empty = [lead for lead in self.leads if not torch.Size(lead).numel()]
        assert empty, "no lead is an empty batch"
        for lead in empty:
            operands = self.drawn(*lead)
            self.run(*operands, activation=self.activations[-1]).sum().backward()
            for t in operands:
                assert t.grad is not None
                assert t.grad.shape == t.shape
                assert not t.grad.any()

    def test_double_backward_is_refused_with_the_remedy(self) -> None:
        """Which the chain then serves."""
        first, *others = self.drawn(*self.lead)
        y = self.run(first, *others, activation=self.activations[-1])
        (g,) = torch.autograd.grad(y.square().sum(), first, create_graph=True)
        with pytest.raises(NotImplementedError, match=self.remedy):
            g.sum().backward()
        y = self.chain(first, *others, activation=self.activations[-1])
        (g,) = torch.autograd.grad(y.square().sum(), first, create_graph=True)
        g.sum().backward()
        assert first.grad is not None

    # ---- torch's dispatcher ----------------------------------------------------------------------

    def test_opcheck(self) -> None:
        for op, args in self.calls():
            torch.library.opcheck(op, args)

    def test_compiles_in_one_graph_with_gradients(self) -> None:
        """Which serves other batches too."""

        def step(*operands: Tensor) -> Tensor:
            return self.run(*operands, activation=self.activations[-1]).square()

        compiled, (rows, *others) = Traced(step, "aot_eager"), self.compiled[0]
        graphs = 0
        for lead in (*self.compiled, (rows + 6, *others)):
            graphs = compiled.graphs
            ours, theirs = self.drawn(*lead), self.drawn(*lead)
            y, expected = compiled(*ours), step(*theirs)
            torch.testing.assert_close(y, expected)
            y.sum().backward()
            expected.sum().backward()
            for t, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(t.grad, other.grad)
        assert compiled.graphs == graphs

    def test_autocast(self) -> None:
        operands = [t.float().requires_grad_() for t in self.leaves(*self.lead)]
        with torch.autocast("cpu", torch.bfloat16):
            y = self.run(*operands)
            assert self.run(*self.leaves(*self.lead)).dtype == torch.float64
        lower = [t.detach().bfloat16() if self.lowered else t.detach() for t in operands]
        expected = self.chain(*lower)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        y.sum().backward()
        assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in operands)

    # ---- bad input -------------------------------------------------------------------------------

    def test_what_does_not_fit_is_named(self) -> None:
        for call, words in self.wrong():
            with pytest.raises(ValueError, match=words):
                call()
