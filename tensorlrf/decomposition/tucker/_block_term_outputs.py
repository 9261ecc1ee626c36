"""Block terms of a conv kernel in the metric of its inputs, a term at a time.

What the other terms leave of the kernel is fitted by one Tucker-2 term, each of whose two steps
lowers the loss; then the output factors of all terms are solved for at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._solve import proximal_step
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.tucker._tucker2_als import Regression, Tucker2ALS, alternate
from tensorlrf.factors import BlockTerm

ROUNDS = 50
"""At most, unless told otherwise."""

FIRST = 3
"""Of a term that has been left the rest of the kernel alone."""

TRIAL = 3
"""Of each of the two starts."""

CANCELLED = 1e-8
"""Share of the squared norm below which a loss is taken from the residual itself."""

Terms = list[Regression]


class BlockTermALS:
    """A kernel (O, I, T), given the second moments of its unfolded inputs; float64."""

    def __init__(self, target: Target[BlockTerm], n_in: int) -> None:
        self.whole = Tucker2ALS(target, n_in)

    def greedy(self, count: int, ranks: Sequence[int]) -> Terms:
        """One term after the other, each of what those before it leave."""
        terms: Terms = []
        for _ in range(count):
            left = self._without(map(self._rows, terms), terms)
            start = left.recipe_inputs(ranks[1])
            terms.append(alternate(left, [start], ranks[0], FIRST, None).state)
        return terms

    def of_factors(self, factors: BlockTerm, scale: float) -> Terms:
        """The terms of the kernel over `scale`, their output factors orthonormal."""
        wide = factors.detach().to(torch.float64)
        cores = wide.cores.flatten(3).transpose(2, 3) / scale  # (S, r_out, T, r_in)
        basis, upper = torch.linalg.qr(wide.factors[0])
        cores = torch.einsum("sab,sbtr->satr", upper, cores)
        return [self._term(*own) for own in zip(wide.factors[1], basis, cores, strict=True)]

    def sweep(self, terms: Terms) -> tuple[Terms, float]:
        """Each term anew, all of their output factors, and the relative error."""
        terms = list(terms)
        rows = [self._rows(term) for term in terms]
        for s, term in enumerate(terms):
            others = [k for k in range(len(terms)) if k != s]
            left = self._without([rows[k] for k in others], [terms[k] for k in others])
            inputs = left.improve_inputs(term)
            terms[s] = left.regress(inputs, term.outputs.shape[1])
            rows[s] = self._rows(terms[s])
        return self._with_outputs(terms, rows)

    def at(self, terms: Terms) -> Descent[Terms]:
        """Before the first sweep."""
        return Descent.at(*self._with_outputs(terms, [self._rows(term) for term in terms]))

    def factors(self, terms: Terms, target: Target[BlockTerm], taps: Sequence[int]) -> BlockTerm:
        """As a kernel over those taps, scaled for inner values in half precision."""
        sides = [self.whole.inner_values(term, target.scale) for term in terms]
        outputs, cores, inputs = (torch.stack(parts) for parts in zip(*sides, strict=True))
        excess = 2 * float(cores.abs().max()) / torch.finfo(target.dtype).max
        # What the cores cannot hold the factors take over.
        share = 2.0 ** math.ceil(math.log2(excess) / 2) if excess > 1 else 1.0
        cores = (cores / share**2).to(target.dtype).reshape(*cores.shape[:-1], *taps)
        each = tuple((side * share).to(target.dtype).contiguous() for side in (outputs, inputs))
        return BlockTerm(cores.contiguous(), each, (0, 1))

    def _with_outputs(self, terms: Terms, rows: Sequence[Tensor]) -> tuple[Terms, float]:
        """The output factors that are best with all else held."""
        stack = torch.cat(list(rows))  # (S r_out, T I)
        seen = stack @ self.whole.gram
        right = self.whole.moments @ stack.T  # (O, S r_out)
        normal, old = seen @ stack.T, torch.cat([term.outputs for term in terms], 1).T
        found = proximal_step(normal, right.T, old)
        squared = self.whole.norm + float((found * (normal @ found - 2 * right.T)).sum())
        if not squared > CANCELLED * self.whole.norm:
            off = self.whole.kernel - found.T @ stack
            squared = float(((off @ self.whole.gram) * off).sum())
        made = []
        for term, outputs in zip(terms, torch.split(found, terms[0].outputs.shape[1]), strict=True):
            basis, upper = torch.linalg.qr(outputs.T)
            core = (upper @ term.core.flatten(1)).reshape(term.core.shape)
            made.append(self._term(term.inputs, basis, core))
        return made, ratio(squared, self.whole.norm)

    def _term(self, inputs: Tensor, outputs: Tensor, core: Tensor) -> Regression:
        """With its energies, those of what it adds to each direction of its outputs."""
        rows = (core.flatten(0, 1) @ inputs.T).reshape(len(core), -1)
        energies = ((rows @ self.whole.gram) * rows).sum(1)
        return Regression(inputs, outputs, core, energies, float(energies.sum()))

    def _rows(self, term: Regression) -> Tensor:
        """The term but for its output factor, (r_out, T I)."""
        return (term.core.flatten(0, 1) @ term.inputs.T).reshape(len(term.core), -1)

    def _without(self, rows: Iterator[Tensor] | Sequence[Tensor], terms: Terms) -> Tucker2ALS:
        """The kernel less these terms."""
        parts = list(rows)
        if not parts:
            return self.whole
        model = torch.cat([term.outputs for term in terms], 1), torch.cat(parts)
        return self.whole.less(*model)


def fit_to_outputs(
    target: Target[BlockTerm],
    plain: BlockTerm,
    shape: tuple[int, ...],
    n_iter_max: int | None,
    tol: float | None,
) -> Fit[BlockTerm]:
    """Terms of a kernel of that shape (O, I, *k) that serve the outputs; never worse in them than
    the plain ones, whose ranks they have."""

    def fit() -> Fit[BlockTerm]:
        als = BlockTermALS(target, shape[1])
        rounds = ROUNDS if n_iter_max is None else n_iter_max
        starts = als.greedy(len(plain.cores), plain.rank), als.of_factors(plain, target.scale)
        run = descend(
            map(als.at, starts), als.sweep, tol, rounds, trial=min(TRIAL, rounds), enough=0.0
        )
        factors = als.factors(run.state, target, shape[2:])
        words = f"{len(plain.cores)} terms of ranks {factors.rank}, outputs, from gram"
        return Fit(factors, run.errors, run.converged, f"{words}, {run.reason}")

    return fit_or_plain(target, lambda: plain, fit)
