"""Projections of attentions as one tensor of heads: W_n (h_n e, d) as T (sum_n h_n, e, d).

Queries, keys and values of a layer, or of several layers, lie above each other, cut into heads of e
rows (Gu et al. 2025, who stack them so, with the output projection transposed). The mode of heads
is left whole by Tucker: the factors of e and d serve all heads. In sum_n tr((W_n - A_n) G_n
(W_n - A_n)^T) with one G = C C^T for all, the decomposition is the plain one of T x_3 C^T, whose
last factor is then solved for. With moments G_n of each, the factors are found in their mean, and
what belongs to single heads is fitted anew, by least squares in the moments of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition.cp._cp import cp
from tensorlrf.decomposition.linalg._solve import cholesky
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.svd._shared import checked_matrices, metrics_of
from tensorlrf.decomposition.tucker._tucker import tucker
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import CPFactors, TuckerFactors
from tensorlrf.factors.autocast import without_autocast


@without_autocast()
@threaded
def tucker_of_heads(
    weights: Sequence[Any],
    rank: tuple[int, int],
    *,
    head_dim: int,
    grams: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
) -> TuckerFactors:
    """Attention heads in partial Tucker form: one factor of their rows, and one of the inputs.

    Head h of all stands for V C_h U^T, with V (head_dim, s) and U (d, r) of all heads and C_h (s,
    r) its own. With s = head_dim it is `shared_svd` in another guise.

    Parameters
    ----------
    weights : sequence of Tensor or array of shape (h_n head_dim, d)
        Projections to heads, of one layer or of several, with as many heads each as it has.
    rank : pair of int
        (s, r), at most (head_dim, d).
    head_dim : int
        Rows of a head, e.
    grams : Tensor (d, d) or sequence of these, optional
        Second moments of the inputs of all, or of each: squared errors are those of the outputs
        then, added up.
    n_iter_max, tol
        As of `tucker`.

    Returns
    -------
    TuckerFactors
        Of shape (sum h_n, head_dim, d), modes (1, 2): rows of the dense tensor, heads one below
        the other, are those of the weights.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        Where heads do not divide a weight, and for what cannot be decomposed together.

    References
    ----------
    Gu et al. 2025, "TensorLLM: tensorising multi-head attention for enhanced reasoning and
    compression in LLMs".

    Examples
    --------
    >>> q, k = torch.rand(2, 12, 20)  # of three heads each
    >>> f = tensorlrf.decomposition.tucker_of_heads([q, k], (4, 20), head_dim=4)
    >>> f.shape, f.core.shape, f.rel_error(torch.cat([q, k]).reshape(6, 4, 20)) < 1e-5
    ((6, 4, 20), torch.Size([6, 4, 20]), True)
    """
    check_iteration(n_iter_max, tol)
    stack = _Stack.of(weights, head_dim, grams)
    if not isinstance(rank, tuple) or len(rank) != 2:
        raise RankError(f"rank={rank!r} must be a pair (s, r), of rows of a head and of inputs")
    found = cast(
        "TuckerFactors", tucker(stack.turned, rank, modes=(1, 2), n_iter_max=n_iter_max, tol=tol)
    )
    rows, inputs = found.factors[0], stack.back(found.factors[1])
    core = found.core
    if len(stack.metrics) > 1:
        core = torch.cat([_cores(w, g, rows, inputs) for w, g in stack.apart])
    dtype = stack.weights[0].dtype
    # U carries the scale of C^-1; the core takes it over.
    lengths = inputs.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    return TuckerFactors(
        (core * lengths).to(dtype), (rows.to(dtype), (inputs / lengths).to(dtype)), (1, 2)
    )


@without_autocast()
@threaded
def cp_of_heads(
    weights: Sequence[Any],
    rank: int,
    *,
    head_dim: int,
    grams: Any = None,
    n_iter_max: int = 100,
    tol: float | None = None,
    random_state: int | torch.Generator | None = None,
) -> CPFactors:
    """Attention heads as a sum of rank-one terms: of the heads, of their rows, and of the inputs.

    Head h of all stands for sum_r a_hr b_r c_r^T.

    Parameters
    ----------
    weights : sequence of Tensor or array of shape (h_n head_dim, d)
        Projections to heads, of one layer or of several, with as many heads each as it has.
    rank : int
        How many terms.
    head_dim : int
        Rows of a head, e.
    grams : Tensor (d, d) or sequence of these, optional
        Second moments of the inputs of all, or of each: squared errors are those of the outputs
        then, added up.
    n_iter_max, tol, random_state
        As of `cp`.

    Returns
    -------
    CPFactors
        Of shape (sum h_n, head_dim, d): rows of the dense tensor, heads one below the other, are
        those of the weights.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        Where heads do not divide a weight, and for what cannot be decomposed together.

    References
    ----------
    Carroll & Chang 1970; the stack is that of Gu et al. 2025.

    Examples
    --------
    >>> base, more = torch.rand(2, 20), torch.rand(2, 4)
    >>> q, k = (torch.einsum("hr,re,rd->hed", a, more, base) for a in torch.rand(2, 3, 2))
    >>> f = tensorlrf.decomposition.cp_of_heads([q.flatten(0, 1), k.flatten(0, 1)], 2, head_dim=4)
    >>> f.shape, f.rel_error(torch.cat([q, k])) < 1e-3
    ((6, 4, 20), True)
    """
    stack = _Stack.of(weights, head_dim, grams)
    found = cp(stack.turned, rank, n_iter_max=n_iter_max, tol=tol, random_state=random_state)
    heads, rows, inputs = found.factors
    heads, inputs = heads * found.weights, stack.back(inputs)
    if len(stack.metrics) > 1:
        heads = torch.cat([_shares(w, g, rows, inputs) for w, g in stack.apart])
    lengths = torch.ones_like(found.weights)
    factors = []
    for factor in (heads, rows, inputs):
        norms = factor.norm(dim=0)
        norms = torch.where(norms > 0, norms, 1.0)
        lengths = lengths * norms
        factors.append((factor / norms).to(stack.weights[0].dtype))
    return CPFactors(lengths.to(stack.weights[0].dtype), tuple(factors))


@dataclass(frozen=True)
class _Stack:
    """Weights W_n (h_n e, d), with the metric of all or of each; none is the plain norm."""

    weights: Sequence[Tensor]
    head_dim: int
    metrics: Sequence[Tensor]

    @classmethod
    def of(cls, weights: Any, head_dim: Any, grams: Any) -> _Stack:
        if isinstance(head_dim, bool) or not isinstance(head_dim, int) or head_dim < 1:
            raise ArgumentError(f"head_dim={head_dim!r} must be an int, the rows of a head")
        checked = checked_matrices(weights, "weights")
        for k, w in enumerate(checked):
            if w.ndim != 2 or len(w) % head_dim:
                raise ShapeError(
                    f"weights[{k}] has shape {tuple(w.shape)}; it must be (heads * {head_dim}, d), "
                    "outputs first, of whole heads"
                )
        return cls(checked, head_dim, metrics_of(grams, checked) or [])

    @cached_property
    def tensor(self) -> Tensor:
        """(heads of all, e, d), float64."""
        stacked = torch.cat([w.detach() for w in self.weights]).to(torch.float64)
        return stacked.reshape(-1, self.head_dim, stacked.shape[1])

    @cached_property
    def root(self) -> Tensor | None:
        """C, lower triangular, of the mean of the metrics."""
        return cholesky(torch.stack(list(self.metrics)).mean(0)) if self.metrics else None

    @property
    def turned(self) -> Tensor:
        """T x_3 C^T."""
        return self.tensor if self.root is None else self.tensor @ self.root

    def back(self, inputs: Tensor) -> Tensor:
        """C^-T of the factor of the inputs."""
        if self.root is None:
            return inputs
        solved: Tensor = torch.linalg.solve_triangular(self.root.T, inputs, upper=True)
        return solved

    @property
    def apart(self) -> list[tuple[Tensor, Tensor]]:
        """The heads (h_n, e, d) of each weight with its metric."""
        parts = torch.split(self.tensor, [len(w) // self.head_dim for w in self.weights])
        return list(zip(parts, self.metrics, strict=True))


def _cores(heads: Tensor, metric: Tensor, rows: Tensor, inputs: Tensor) -> Tensor:
    """The best C_h for V, orthonormal, and U: V^T W_h G U (U^T G U)^-1."""
    seen = metric @ inputs
    wanted = torch.einsum("es,hed->hsd", rows, heads) @ seen  # (h, s, r)
    solved = torch.cholesky_solve(wanted.flatten(0, 1).T, cholesky(inputs.T @ seen))
    return solved.T.reshape(wanted.shape)


def _shares(heads: Tensor, metric: Tensor, rows: Tensor, inputs: Tensor) -> Tensor:
    """The best a_h for the b_r and c_r: the Gram of the terms is that of the rows times, entry by
    entry, that of the inputs."""
    seen = metric @ inputs
    wanted = torch.einsum("her,er->hr", heads @ seen, rows)
    return torch.cholesky_solve(wanted.T, cholesky((rows.T @ rows) * (inputs.T @ seen))).T
