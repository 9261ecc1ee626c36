"""Hierarchical block low-rank approximation: a tree of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._options import check_count, check_moments
from tensorlrf.decomposition._search import out_of_reach
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._blr import SWEEPS
from tensorlrf.decomposition.blocks._blr_fit import Tiling, blocks_of, uniform
from tensorlrf.decomposition.blocks._blr_matrix import matrix_target
from tensorlrf.decomposition.blocks._blr_outputs import Content
from tensorlrf.decomposition.blocks._blr_spectra import BlockRange
from tensorlrf.decomposition.blocks._hierarchical_tree import Admissible, Forest, Node, least_params
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, _one_int, _share, check_rank_or_error
from tensorlrf.errors import ArgumentError, RankError, unknown
from tensorlrf.factors import BlockLowRank

Rule = str | Callable[[int, int, int, int], bool]

RULES = ("weak", "strong", "all")


@method(
    "hodlr",
    gives=BlockLowRank,
    on={"tensor", "linear"},
    order=(10, 9),
    sweeps_in_metric=True,
    law="no error above the one asked for; its square is the sum over the leaves",
    measured="formats: hierarchical",
)
def fit_hodlr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    leaf: int = 64,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[BlockLowRank]:
    """Low-rank blocks off the diagonal at every level.

    `hierarchical` with `admissible="weak"`.

    Parameters
    ----------
    tensor, rank, error, leaf, gram, mean, n_iter_max, tol, random_state
        As for `hierarchical`.

    Returns
    -------
    BlockLowRank
        Of `fit_hodlr` a `Fit` of it, as `fit_hierarchical`.

    Raises
    ------
    RankError, UnsupportedError, ArgumentError, ShapeError
        As `hierarchical`.

    References
    ----------
    Ambikasaran & Darve 2013.

    Examples
    --------
    >>> f = tensorlrf.hodlr(torch.eye(256), error=1e-3)
    >>> [block.rank for block, _ in f.panels() if block.rows == 128]
    [0, 0]
    """
    target = matrix_target(tensor, gram, mean, "hodlr")
    return _fit(target, rank, error, leaf, "weak", n_iter_max, tol, random_state)


hodlr = factors_of(fit_hodlr)


@method(
    "hierarchical",
    gives=BlockLowRank,
    on={"tensor", "linear"},
    order=(9, 8),
    sweeps_in_metric=True,
    law="no error above the one asked for; its square is the sum over the leaves",
    measured="formats: hierarchical",
)
def fit_hierarchical(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    leaf: int = 64,
    admissible: Rule = "weak",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[BlockLowRank]:
    """A quadtree of low-rank and dense blocks.

    A `tensor` (m, n) is cut into quarters, these into quarters and so on, while both sides of a
    block are above `leaf`. An admissible block is kept whole and low-rank where that is cheaper
    than its quarters; one that is not admissible is dense at the end.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, float or str, optional
        Of every low-rank block, the largest admissible ones (less where a block is smaller, dense
        where that is cheaper); a share of the parameters in (0, 1] (an upper bound) or "same"; or
        instead
    error : float, optional
        Relative error of the whole to stay within, with few parameters. For a share and an error
        the tree is the one with the least parameters + price x energy left, at a price that keeps
        the budget, and the ranks are shared out over its blocks.
    leaf : int
        Blocks with a side of at most this are not cut.
    admissible : str or callable
        "weak": blocks off the diagonal of their level, which then are never cut (HODLR); "strong":
        blocks that do not touch the diagonal, not even with a corner; "all": every block, for a
        matrix without an order of rows and columns; or a function (row, rows, column, columns) ->
        bool.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs: errors are then relative errors of the outputs, and
        each block of the tree (that of the weight itself) becomes the best for what the others
        leave of the outputs. What the inputs do not span follows the plain fit (`Fit.shrinkage`),
        never worse in that metric.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        With `gram`, most sweeps over the blocks, 200 by default.
    tol : float, optional
        With `gram`, stops when a sweep lowers the squared error by no more than this share of it;
        by default when more sweeps would gain little.
    random_state : int or Generator, optional
        Of the sketches of blocks with sides of 512 and more.

    Returns
    -------
    BlockLowRank
        Of `fit_hierarchical` a `Fit` with the relative errors: of the result, and with `gram` at
        the start and after each sweep before that. `converged` is False where `error` was not
        reached, or where sweeps ran out.

    Raises
    ------
    RankError
        For a rank below one, or a share that the dense blocks alone exceed.
    UnsupportedError
        For more than two modes.
    ArgumentError, ShapeError
        For what cannot be decomposed.

    Warns
    -----
    ConvergenceWarning
        Where with `gram` the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Hackbusch 1999.

    Examples
    --------
    >>> x = torch.linspace(0, 1, 256)
    >>> w = 1 / (1 + 20 * (x[:, None] - x).abs())
    >>> f = tensorlrf.hierarchical(w, error=1e-3, leaf=32)
    >>> f.rel_error(w) <= 1e-3, f.n_params < w.numel()
    (True, True)
    """
    target = matrix_target(tensor, gram, mean, "hierarchical")
    return _fit(target, rank, error, leaf, admissible, n_iter_max, tol, random_state)


hierarchical = factors_of(fit_hierarchical)


@config("hierarchical")
class Hierarchical(Structured):
    """A tree of blocks, as a method of `compress`.

    Examples
    --------
    >>> print(tensorlrf.Hierarchical(leaf=32))
    hierarchical(leaf=32)
    """

    leaf: int
    admissible: str

    def check_options(self) -> None:
        super().check_options()
        check_count("leaf", self.leaf, 1)
        if self.admissible not in RULES:
            raise unknown("admissible", self.admissible, RULES)

    @property
    def takes_any_form(self) -> bool:
        return True

    def least_params(self, shape: tuple[int, ...]) -> int:
        whole = BlockRange(0, 0, shape[0], shape[1])
        fixed = least_params(whole, self.leaf, _rule(self.admissible), 0, 0, 0)
        # And one block of rank one beside them, if there are any.
        return fixed + 2


def _fit(
    target: Target[Any],
    rank: Rank | None,
    error: float | None,
    leaf: int,
    admissible: Rule,
    n_iter_max: int | None,
    tol: float | None,
    random_state: int | torch.Generator | None,
) -> Fit[BlockLowRank]:
    rank, error = check_rank_or_error(rank, error, target.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(None if target.is_plain else target, n_iter_max=n_iter_max, tol=tol)
    if isinstance(leaf, bool) or not isinstance(leaf, int) or leaf < 1:
        raise ArgumentError(f"leaf={leaf!r} must be a whole number of rows and columns, 1 or more")
    rule = _rule(admissible)
    draws = generator(random_state, target.work.device)
    share = None if rank is None else _share(rank)
    count = None if rank is None or share is not None else _one_int(rank)
    params = 0 if share is None else math.floor(share * target.work.numel())
    # What sketches leave unseen may be a twentieth of the energy that may be lost.
    bound = max(error or 0.0, target.floor)
    most: Callable[[BlockRange], int] | None = None
    if count is not None:
        most = lambda place: count  # noqa: E731
    elif share is not None:
        most = lambda place: max(1, params // (place.rows + place.columns))  # noqa: E731
    # An int asks for the largest admissible blocks, none of which need be cut.
    final = admissible == "weak" or count is not None
    forest = Forest(target.work, leaf, rule, final, 0.05 * bound**2, most, draws)
    sweeps = (SWEEPS if n_iter_max is None else n_iter_max, tol)
    if count is not None:
        tiling = _tiling(target, forest.topmost())
        fit = blocks_of(tiling, *sweeps).solve(
            uniform(tiling.pieces, count), f"rank {count} as asked"
        )
        return finished(fit, n_iter_max)

    if error is None:
        if forest.least_params > params:
            raise RankError(
                f"rank={rank!r} allows {params} parameters, fewer than the "
                f"{forest.least_params} of the blocks that are not admissible; use a greater "
                f"share, or a leaf below {leaf}"
            )
        trees = forest.around(lambda pruning: pruning.params > params)
    else:
        trees = forest.around(lambda pruning: pruning.left <= bound**2 * forest.energy)
    # A budget below one rank of the whole may pay for one of the smallest blocks only.
    finest = [tuple(_leaves(forest.root))] if error is None and params < sum(target.shape) else []
    # Ranks are shared out anew over the blocks of each tree, in single steps.
    tried: list[Fit[BlockLowRank]] = []
    for nodes in dict.fromkeys((*(tree.nodes for tree in trees), *finest)):
        tiling = _tiling(target, nodes)
        if error is not None:
            tried.append(blocks_of(tiling, *sweeps).within_error(error))
        elif tiling.fixed <= params:
            tried.append(blocks_of(tiling, *sweeps).within_params(params))
    if error is None:
        over = [max(0, fit.factors.n_params - params) for fit in tried]
        best = min(range(len(tried)), key=lambda i: (over[i], target.loss(tried[i])))
        return finished(tried[best], n_iter_max)
    fit = min(tried, key=lambda fit: (fit.error > error, fit.factors.n_params))
    if fit.error > error:
        return replace(fit, converged=False, reason=out_of_reach(error, fit.error, target.dtype))
    return fit


def _rule(admissible: Rule) -> Admissible:
    if callable(admissible):
        admits = admissible
        return lambda place, level, i, j: bool(
            admits(place.row, place.rows, place.column, place.columns)
        )
    if admissible not in RULES:
        raise unknown("admissible", admissible, RULES)
    if admissible == "all":
        return lambda place, level, i, j: True
    distance = 1 if admissible == "weak" else 2
    return lambda place, level, i, j: abs(i - j) >= distance


def _leaves(node: Node) -> Iterator[Node]:
    """The blocks of a tree that are not cut."""
    if not node.children:
        yield node
    for child in node.children:
        yield from _leaves(child)


def _tiling(target: Target[Any], nodes: tuple[Node, ...]) -> Tiling:
    """The blocks of a pruned tree."""

    def cut(i: int, rank: int | None) -> Content:
        spectrum = nodes[i].spectrum
        if rank is None or spectrum is None:
            block: Tensor = nodes[i].place.of(target.work)
            return block
        return spectrum.split(rank)

    return Tiling(target, [node.place for node in nodes], [node.piece for node in nodes], cut)
