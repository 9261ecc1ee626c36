"""Whether a CP model is the same from other starts, and from other halves of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.analysis._matching import (
    FactorMatch,
    check_alike,
    congruences,
    factor_match_score,
    matched,
)
from tensorlrf.decomposition.methods import registered
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import CPFactors

ALIKE = 0.95
"""Congruence from which on two terms are taken for the same (Lorenzo-Seva & ten Berge 2006)."""


@dataclass(frozen=True)
class RestartCongruence:
    """Models of several starts beside the best of them.

    Parameters
    ----------
    errors : tuple of float
        Relative error of each start.
    best : int
        The start of the smallest.
    matches : tuple of FactorMatch
        Of the best with each start.
    tolerance : float
        How much larger than the smallest an error may be, as a share of it, to count as equal.
    """

    errors: tuple[float, ...]
    best: int
    matches: tuple[FactorMatch, ...]
    tolerance: float

    @property
    def equal(self) -> tuple[int, ...]:
        """The starts whose error is the smallest, within the tolerance."""
        most = self.errors[self.best] * (1 + self.tolerance)
        return tuple(i for i, error in enumerate(self.errors) if error <= most)

    @property
    def unique(self) -> bool:
        """Whether several starts reach the smallest error, all with the same terms."""
        others = [i for i in self.equal if i != self.best]
        return bool(others) and all(min(self.matches[i].scores) >= ALIKE for i in others)

    def __str__(self) -> str:
        verdict = "one model" if self.unique else "no one model"
        lines = [f"{len(self.errors)} starts, {len(self.equal)} at the smallest error: {verdict}"]
        for i, (error, match) in enumerate(zip(self.errors, self.matches, strict=True)):
            lines.append(f"  start {i}: error {error:.6g}, congruence {match.score:.4f}")
        return "\n".join(lines)


def restart_congruence(
    models: Sequence[CPFactors], errors: Sequence[float], *, tolerance: float = 1e-3
) -> RestartCongruence:
    """Whether several starts of CP have led to the same terms (Tucker's congruence).

    Parameters
    ----------
    models : sequence of CPFactors
        Two at least, of one shape.
    errors : sequence of float
        The relative error of each.
    tolerance : float
        Share of the smallest error by which another counts as equal.

    Returns
    -------
    RestartCongruence

    Raises
    ------
    ArgumentError, ShapeError
        For fewer than two models, another number of errors, and models of other shapes.

    References
    ----------
    Tucker 1951; Lorenzo-Seva & ten Berge 2006.

    Examples
    --------
    >>> f = tensorlrf.CPFactors(torch.tensor([2.0, 1.0]), tuple(torch.eye(3)[:, :2] for _ in "abc"))
    >>> tensorlrf.restart_congruence([f, f], [0.1, 0.1]).unique
    True
    """
    models, errors = list(models), [float(error) for error in errors]
    if len(models) < 2 or len(models) != len(errors):
        raise ArgumentError(
            f"models are {len(models)} and errors {len(errors)}; give two models at least, and an "
            "error for each"
        )
    for model in models:
        check_alike(models[0], model)
    best = errors.index(min(errors))
    matches = [matched(congruences(models[best], model)[0]) for model in models]
    return RestartCongruence(tuple(errors), best, tuple(matches), float(tolerance))


@dataclass(frozen=True)
class SplitHalf:
    """A CP model of each half of a tensor along one mode.

    Parameters
    ----------
    rank : int
        Of both.
    mode : int
        That was divided.
    matches : tuple of FactorMatch
        Of the halves over all other modes, for each way of dividing it.
    """

    rank: int
    mode: int
    matches: tuple[FactorMatch, ...]

    @property
    def score(self) -> float:
        """The congruence of the term that is found again least well, divided in the best way."""
        return max(min(match.scores) for match in self.matches)

    @property
    def reliable(self) -> bool:
        """Whether each term is found in both halves."""
        return self.score >= ALIKE

    def __str__(self) -> str:
        verdict = "found again in both halves" if self.reliable else "not found again"
        lines = [f"rank {self.rank}, mode {self.mode} in halves: {verdict} ({self.score:.4f})"]
        for i, match in enumerate(self.matches):
            lines.append(f"  split {i}: " + " ".join(f"{s:.4f}" for s in match.scores))
        return "\n".join(lines)


def split_half(
    tensor: Any,
    rank: int,
    *,
    mode: int = 0,
    n_splits: int = 4,
    random_state: int | torch.Generator | None = None,
    n_restarts: int = 1,
) -> SplitHalf:
    """Whether CP of two halves of the data finds the same terms.

    Structure that both halves show belongs to what was measured; noise, and terms too many, differ
    from half to half.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 3
        Of any float dtype.
    rank : int
        Of the models.
    mode : int
        The one that is divided, that of samples; by default the first.
    n_splits : int
        Ways of dividing it at random.
    random_state : int or Generator, optional
        torch's global generator is left alone.
    n_restarts : int
        Starts of `cp` for each half.

    Returns
    -------
    SplitHalf

    Raises
    ------
    RankError
        For a rank above what half of the mode, or any other, can tell apart.
    ArgumentError, ShapeError
        For matrices, a mode that is none, and bad numbers.

    References
    ----------
    Harshman & De Sarbo 1984, "An application of PARAFAC to a small sample problem, demonstrating
    preprocessing, orthogonality constraints, and split-half diagnostic techniques".

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> parts = tuple(torch.randn(n, 2, generator=rng) for n in (20, 6, 5))
    >>> found = tensorlrf.split_half(
    ...     tensorlrf.CPFactors(torch.ones(2), parts).to_dense(), 2, random_state=0
    ... )
    >>> found.reliable
    True
    """
    checked = as_tensor(tensor, min_order=3).detach()
    mode = _checked_mode(mode, checked.ndim)
    if isinstance(n_splits, bool) or not isinstance(n_splits, int) or n_splits < 1:
        raise ArgumentError(f"n_splits={n_splits!r} must be an int of at least 1")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise RankError(f"rank={rank!r} must be an int of at least 1")
    half = checked.shape[mode] // 2
    sizes = [half if k == mode else n for k, n in enumerate(checked.shape)]
    # Kruskal 1977: generic factors are unique where their k-ranks sum to 2 r + N - 1.
    told = sum(min(n, rank) for n in sizes)
    if told < 2 * rank + len(sizes) - 1 and rank > 1:
        raise RankError(
            f"rank={rank} is beyond what halves of shape {tuple(sizes)} identify: min(n, rank) "
            f"sums to {told}, and {2 * rank + len(sizes) - 1} are needed (Kruskal); ask for fewer "
            "terms"
        )
    if half < 1:
        raise ArgumentError(f"mode={mode} has one slice, which has no halves; choose another mode")
    rng = generator(random_state, checked.device)
    fit = registered("cp").fit
    matches = []
    for _ in range(n_splits):
        order = torch.randperm(checked.shape[mode], generator=rng, device=checked.device)
        models = []
        for chosen in (order[:half], order[half:]):
            part = checked.index_select(mode, chosen.sort().values)
            found = fit(part, rank, random_state=rng, n_restarts=n_restarts).factors
            models.append(_without(found, mode))
        matches.append(factor_match_score(*models, weights=False))
    return SplitHalf(rank, mode, tuple(matches))


def _checked_mode(mode: int, order: int) -> int:
    if isinstance(mode, bool) or not isinstance(mode, int) or not -order <= mode < order:
        raise ArgumentError(f"mode={mode!r} is none of a tensor of {order}; give 0 to {order - 1}")
    return mode % order


def _without(model: CPFactors, mode: int) -> CPFactors:
    """All factors but that one: of halves it has rows of other samples."""
    return replace(model, factors=tuple(u for k, u in enumerate(model.factors) if k != mode))
