"""Steps that the squared loss allows, before those of a quasi-Newton method finish.

Where the loss is a square of the model each factor has its best values in closed form with the
others held (Carroll & Chang 1970; Harshman 1970), and the Hessian of Gauss and Newton in all
factors has a structure that makes a step as cheap as a sweep (Phan, Tichavsky & Cichocki 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._dense import cut_of, products
from tensorlrf.decomposition.generalized._stack import apart, balanced
from tensorlrf.decomposition.linalg.multilinear._projected import Projected
from tensorlrf.factors.algebra import khatri_rao

SWEEPS = 2
"""From a start, before steps in all factors: these go astray far from a minimum."""

UNKNOWNS, ENTRIES = 512, 1 << 22
"""Of a step in all factors, the entries of all but the longest, and those of the tensor, which a
step has in float64: so many at most."""

TRIES = 4
"""Steps that may be too long, one after the other, each shorter than the one before."""

FAST = 0.5
"""Share of the gain before that a sweep may still gain: where it is more, sweeps converge slowly,
and steps that see all factors at once get further."""


class Squares:
    """From a stack of factors (sum n_k, r) in float64 to the next, for entries that count alike:
    a few sweeps, and then Gauss-Newton steps where there are few unknowns, or sweeps on while they
    come nearer fast."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.cut = tuple(tensor.shape), cut_of(tensor.shape)
        self.data = tensor.reshape(math.prod(self.shape[: self.cut]), -1)
        self.made = 0
        self.joint: Projected | None = None

    def __call__(self, stack: Tensor, losses: Sequence[float]) -> Tensor | None:
        """The next stack; None where another method should go on. `losses` so far."""
        self.made += 1
        few = self._few_unknowns(stack.shape[1])
        if self.made <= SWEEPS or (not few and _fast(losses)):
            return self._swept(stack)
        return self._stepped(stack) if few else None

    def _few_unknowns(self, rank: int) -> bool:
        shape = self.shape
        return (
            len(shape) > 2
            and rank * (sum(shape) - max(shape)) <= UNKNOWNS
            and math.prod(shape) <= ENTRIES
            and self.data.device.type == "cpu"
        )

    def _swept(self, stack: Tensor) -> Tensor:
        """Two products with the tensor serve all modes: one for those of its rows, one for those of
        its columns."""
        cut, dtype = self.cut, self.data.dtype
        factors = list(apart(stack, self.shape))
        right = khatri_rao(tuple(factors[cut:])).to(dtype)
        _update(factors, 0, cut, self.data @ right)
        left = khatri_rao(tuple(factors[:cut])).to(dtype)
        _update(factors, cut, len(factors), self.data.T @ left)
        return torch.cat(factors)

    def _stepped(self, stack: Tensor) -> Tensor | None:
        shape = self.shape
        longest = max(range(len(shape)), key=shape.__getitem__)
        if self.joint is None:
            tensor = self.data.double().view(shape).movedim(longest, 0).contiguous().numpy()
            others = [f.numpy() for k, f in enumerate(apart(stack, shape)) if k != longest]
            self.joint = Projected(tensor, others)
        if not any(self.joint.step() for _ in range(TRIES)):
            return None
        first, *rest = [torch.from_numpy(u) for u in self.joint.point.factors]
        return balanced(torch.cat([*rest[:longest], first, *rest[longest:]]), shape)


def _fast(losses: Sequence[float]) -> bool:
    """Whether the last gain was little beside the one before: what is left shrinks so."""
    if len(losses) < 3:
        return True
    before, now, new = losses[-3:]
    return now - new <= FAST * (before - now)


def _update(factors: list[Tensor], first: int, last: int, partial: Tensor) -> None:
    """In place of the factors first .. last - 1 their best values, one after the other; partial
    (n_first ... n_(last - 1), r) is the tensor contracted with all other factors."""
    rank = partial.shape[1]
    partial = partial.double()
    for k in range(first, last):
        grid = partial.view(len(factors[k]), -1, rank)
        behind = tuple(factors[k + 1 : last])
        mttkrp = (grid * khatri_rao(behind)).sum(1) if behind else grid[:, 0]  # (n_k, r)
        gram = products(torch.stack([f.T @ f for f in factors]))[1][k]
        # Dependent columns share what they explain: the solution of least norm.
        factors[k] = mttkrp @ torch.linalg.pinv(gram, hermitian=True)
        partial = (grid * factors[k][:, None]).sum(0)
