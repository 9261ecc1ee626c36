"""A table in bands of rows, the frequent ones of a larger rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._options import check_count
from tensorlrf.decomposition._search import out_of_reach, smallest_within
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._allocation import Allocation, Piece, Ranks
from tensorlrf.decomposition.blocks._blr_fit import NOISE
from tensorlrf.decomposition.blocks._blr_matrix import matrix_target
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.linalg._gram import descending_eigh
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.linalg.threads import entries, problem
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, matrix_rank, whole
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import BandedLowRank, Factors, LowRank
from tensorlrf.factors.arrays import PLACES, as_dense
from tensorlrf.ops.forms import form_of

BANDS = 4

RATIO = 4
"""How many times as many rows there are up to the end of a band as up to its beginning."""

CLEARLY = 1 - 1e-9
"""Of what fewer bands leave: what rounding says is no reason for more of them."""


@method(
    "group_reduce",
    gives=(LowRank, BandedLowRank),
    on={"tensor", "embedding"},
    order=(13, 13),
    law="of all bands at one budget, the least weighted error",
    measured="rare_words",
)
def fit_group_reduce(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    counts: Any = None,
    bands: int = BANDS,
) -> Fit[Factors]:
    """Bands of rows by how often they are looked up, each of a low rank of its own or dense.

    The rows of a table W (V, d), sorted by `counts`, fall into bands: the last three quarters,
    three quarters of the rest, and so on. Band b at rank r_b costs r_b (n_b + d) parameters and
    leaves, of the sum of p_v ``|W_v - A_v|^2``, the squared singular values of sqrt(p_v) W_v beyond
    r_b. Ranks are shared out by what a parameter brings, over all bands together; a band whose rank
    would cost as much as its rows is dense. Of 1 to `bands` of them, as many as leave least: never
    more than one low rank for all does.

    Parameters
    ----------
    tensor : Tensor or array of shape (V, d)
    rank : int, float or str, optional
        An int r for the parameters r (V + d) of a single low rank, a share of the parameters in
        (0, 1], an upper bound, or "same"; V of them are the places of the rows. Or instead
    error : float, optional
        Relative error to stay within, weighted as told by `counts`, with few parameters.
    counts : Tensor or array of shape (V,), optional
        How often each row is looked up. One is added to each (Laplace), so that rows that were
        never seen count a little. By default all rows count alike, and are in order already, as
        the words of most vocabularies are.
    bands : int
        The most of them.

    Returns
    -------
    BandedLowRank or LowRank
        The latter where one band is best. Of `fit_group_reduce` a `Fit` with the weighted relative
        error.

    Raises
    ------
    RankError, ShapeError, ArgumentError
        For what cannot be.
    UnsupportedError
        For more than two modes.

    Warns
    -----
    TensorlrfWarning
        Where rounding keeps `error` out of reach.

    References
    ----------
    Chen, Si, Li, Chelba & Hsieh 2018, "GroupReduce".

    Examples
    --------
    >>> table = torch.randn(400, 32)
    >>> counts = 10_000 / torch.arange(1, 401)
    >>> f = tensorlrf.decomposition.group_reduce(table, 0.5, counts=counts)
    >>> f.n_params <= 0.5 * table.numel(), len(f.lefts) > 1
    (True, True)
    """
    target = matrix_target(tensor, None, None, "group_reduce")
    rank, error = check_rank_or_error(rank, error, target.dtype)
    check_count("bands", bands, 1)
    weights = None if counts is None else _counted(counts, target)
    return fitted(target, rank, error, bands, weights)


group_reduce = factors_of(fit_group_reduce)


@config("group_reduce")
class GroupReduce(Structured):
    """Bands of rows of an embedding by token frequency, as a method of `compress`.

    Frequencies are those of the tokens of the calibration, rare ones drawn towards an even share;
    with a head on the same table the error of the head counts as well.

    Examples
    --------
    >>> print(tensorlrf.GroupReduce(bands=2))
    group_reduce(bands=2)
    """

    bands: int

    multiplies_moments = True

    def check_options(self) -> None:
        super().check_options()
        check_count("bands", self.bands, 1)

    def least_params(self, shape: tuple[int, ...]) -> int:
        return sum(shape)

    @property
    def fits_inputs(self) -> bool:
        return True

    @property
    def takes_any_form(self) -> bool:
        return True

    def decompose(self, weight: Tensor, gram: Any, random_state: Any) -> Factors:
        """Of (d, V), the weight of an embedding as a layer on indicators of its rows."""
        rows, columns = (None, None) if gram is None else gram.shrunk().sides
        weights = None if columns is None else columns.diagonal()
        with problem(entries((weight,))):
            target = matrix_target(weight.T, None, None, self.word)
            rank, error = check_rank_or_error(self.rank, self.error, target.dtype)
            factors = fitted(target, rank, error, self.bands, weights, rows).factors
        return form_of(factors).transposed(factors)


def fitted(
    target: Target[Any],
    rank: Any,
    error: float | None,
    bands: int,
    weights: Tensor | None = None,
    metric: Tensor | None = None,
) -> Fit[Factors]:
    """In sum_v p_v D_v R D_v^T for what is left D, weights p (V,) and a metric R (d, d)."""
    words = Words(target, weights, metric)
    (rows, d), most = target.shape, len(words.cuts(bands)) - 1
    tried = [words.divided(words.cuts(n)) for n in range(1, most + 1)]
    if error is None:
        share = matrix_rank(rank, rows, d)  # the checks; a share is of the entries themselves
        params = share * (rows + d) if isinstance(rank, int) else _budget(rank, rows * d)
        best, ranks = _first_of_least((one, one.within_params(params)) for one in tried)
        return best.fit(ranks, f"{_told(ranks)} within {max(params, rows + d)} parameters")
    inside = [(one, one.within_error(error)) for one in tried]
    best, ranks = min(inside, key=lambda pair: pair[0].cost(pair[1]))
    fit = best.fit(ranks, f"{_told(ranks)} within {error}")
    return fit if fit.error <= error else best.after_rounding(error)


def _first_of_least(tried: Iterable[tuple[Bands, Ranks]]) -> tuple[Bands, Ranks]:
    """Those that leave least, with as few bands as do."""
    (best, ranks), *others = tried
    for one, own in others:
        if one.left(own) < CLEARLY * best.left(ranks):
            best, ranks = one, own
    return best, ranks


def _budget(rank: Any, size: int) -> int:
    return size if rank == "same" else whole(float(rank) * size)


def _told(ranks: Ranks) -> str:
    return f"{len(ranks)} band{'s' * (len(ranks) > 1)} of ranks {ranks}"


class Words:
    """The rows of a table by their weights, the largest first.

    rows     (V, d) float64, over the scale of the target
    turned   the same times L with R = L L^T, in which the metric is the plain norm
    weights  (V,), one on average
    place    (V,), where the rows of the table are among these
    """

    def __init__(self, target: Target[Any], weights: Tensor | None, metric: Tensor | None) -> None:
        self.target, table = target, target.matrix
        count = len(table)
        if weights is None or not float(weights.sum()) > 0:
            weights = torch.ones(count, dtype=torch.float64, device=table.device)
        weights = weights.to(torch.float64)
        order = weights.argsort(descending=True, stable=True)
        self.weights = weights[order] / weights.mean()
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(count, dtype=order.dtype, device=order.device)
        self.rows = table[order]
        self.root = None if metric is None else torch.linalg.cholesky(metric.to(torch.float64))
        self.turned = self.rows if self.root is None else self.rows @ self.root
        self._spectra: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @cached_property
    def energy(self) -> float:
        """Of the whole."""
        return float((self.weights[:, None] * self.turned.square()).sum())

    def cuts(self, bands: int) -> tuple[int, ...]:
        """0, the first rows of all bands but the first, and V; fewer where rows are few."""
        count = len(self.rows)
        inner = {round(count / RATIO**k) for k in range(1, bands)}
        return (0, *sorted(inner - {0, count}), count)

    def spectrum(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Energies (k,), descending, and the directions (d, k) that have them, of some rows."""
        found = self._spectra.get((first, last))
        if found is None:
            rows = self.turned[first:last]
            weighted = self.weights[first:last].sqrt()[:, None] * rows
            if self.target.dtype == torch.float64:
                values, lines = torch.linalg.svd(weighted, full_matrices=False)[1:]
                found = values.square(), lines.mT
            else:
                energies, vectors = descending_eigh(weighted.T @ weighted)
                most = min(rows.shape)
                found = energies[:most], vectors[:, :most]
            self._spectra[first, last] = found
        return found

    def divided(self, cuts: Sequence[int]) -> Bands:
        """Bands from each cut to the next."""
        return Bands(self, tuple(cuts))

    def error(self, factors: Factors) -> float:
        """Relative, of factors after their cast."""
        dense = factors.to(torch.float64).to_dense() / self.target.scale
        lost = self.target.matrix - dense
        lost = lost if self.root is None else lost @ self.root
        squared = float((self.weights[self.place][:, None] * lost.square()).sum())
        return ratio(squared, self.energy) if math.isfinite(squared) else math.inf


@dataclass(frozen=True)
class Bands:
    """Some bands, to be given ranks. One alone is a low rank as any other."""

    words: Words
    cuts: tuple[int, ...]

    @cached_property
    def _ends(self) -> list[tuple[int, int]]:
        return list(zip(self.cuts[:-1], self.cuts[1:], strict=True))

    @cached_property
    def allocation(self) -> Allocation:
        d, several = self.words.target.shape[1], len(self._ends) > 1
        return Allocation(
            [
                Piece(last - first, d, self.words.spectrum(first, last)[0].cpu().numpy(),
                      dense=several)
                for first, last in self._ends
            ]
        )  # fmt: skip

    @property
    def beside(self) -> int:
        """Numbers that are no factors: the place of each row."""
        return self.cuts[-1] if len(self._ends) > 1 else 0

    def within_params(self, params: int) -> Ranks:
        """Ranks that leave little."""
        floor = (NOISE * self.words.target.floor) ** 2 * self.words.energy
        return self.allocation.within_params(max(0, params - self.beside), floor)

    def within_error(self, error: float) -> Ranks:
        """Ranks of few parameters."""
        return self.allocation.within_energy(self._lost(error))

    def _lost(self, error: float) -> float:
        return max(error, self.words.target.floor) ** 2 * self.words.energy

    def left(self, ranks: Ranks) -> float:
        """What they leave; more than anything where a band would have nothing."""
        if self._starved(ranks):
            return math.inf
        tails = zip(self.allocation.tails, ranks, strict=True)
        return sum(0.0 if r is None else float(t[r]) for t, r in tails)

    def cost(self, ranks: Ranks) -> float:
        """Parameters, the places among them."""
        if self._starved(ranks):
            return math.inf
        pieces = zip(self.allocation.pieces, ranks, strict=True)
        return self.beside + sum(p.whole if r is None else r * p.each for p, r in pieces)

    def _starved(self, ranks: Ranks) -> bool:
        return len(ranks) > 1 and 0 in ranks

    def after_rounding(self, error: float) -> Fit[Factors]:
        """As many steps as keep the error where one less does not."""
        steps, how = self.allocation, f"within {error} after rounding"
        found = smallest_within(
            lambda k: self.fit(steps.state(k), how),
            error,
            (len(steps),),
            below=steps.first_within(self._lost(error)),
        )
        if found.within:
            return found.fit
        reason = out_of_reach(error, found.fit.error, self.words.target.dtype)
        return replace(found.fit, converged=False, reason=reason)

    def fit(self, ranks: Ranks, how: str) -> Fit[Factors]:
        """Each band the nearest of its rank."""
        words, dtype = self.words, self.words.target.dtype
        sides = [
            self._sides(first, last, r) for (first, last), r in zip(self._ends, ranks, strict=True)
        ]
        cast = [tuple(None if s is None else s.to(dtype) for s in pair) for pair in sides]
        factors: Factors
        if len(cast) == 1:
            left, right = cast[0]
            assert left is not None
            assert right is not None
            factors = LowRank(left[words.place], right)
        else:
            lefts, rights = zip(*cast, strict=True)
            factors = BandedLowRank(lefts, rights, words.place.to(PLACES))
        return Fit(factors, (words.error(factors),), True, how)

    def _sides(self, first: int, last: int, rank: int | None) -> tuple[Tensor, Tensor | None]:
        """left (n, r) and right (r, d) of equal norms a term, or the rows (n, d) themselves."""
        words, target = self.words, self.words.target
        if rank is None:
            return words.rows[first:last] * target.scale, None
        turn = words.spectrum(first, last)[1][:, : max(1, rank)]  # (d, r)
        left, right = words.turned[first:last] @ turn, turn.T
        if words.root is not None:  # R^T L^-1
            right = torch.linalg.solve_triangular(words.root, right, upper=False, left=False)
        sizes = (torch.linalg.vector_norm(t, dim=k) for k, t in enumerate((left, right)))
        short, long = sizes
        share = torch.where((short > 0) & (long > 0), (short / long).sqrt(), 1.0)
        return left / share * target.root, right * share[:, None] * target.root


def _counted(counts: Any, target: Target[Any]) -> Tensor:
    """As weights (V,). Raises ShapeError and ArgumentError."""
    given = as_dense(counts, "counts")
    rows = target.shape[0]
    if tuple(given.shape) != (rows,):
        raise ShapeError(
            f"counts has shape {tuple(given.shape)}; the table has {rows} rows, so it is ({rows},)"
        )
    wide = given.detach().to(target.work.device, torch.float64)
    if not bool(torch.isfinite(wide).all()) or bool((wide < 0).any()):
        raise ArgumentError(
            "counts has entries that are negative, NaN or Inf; pass how often each row is looked "
            "up, such as torch.bincount(tokens, minlength=V)"
        )
    return wide + 1
