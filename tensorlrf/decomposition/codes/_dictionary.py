"""A dictionary for the rows of a matrix, each of which takes few atoms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_callback, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Method, config, linear_only
from tensorlrf.decomposition.ladder import LayerRank, Rung
from tensorlrf.decomposition.linalg._gram import thin_svd
from tensorlrf.decomposition.linalg._solve import cholesky
from tensorlrf.decomposition.linalg.parts._alternate import Callback, by_turns, served
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, rank_of_size
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.factors import Dictionary, Factors
from tensorlrf.factors.leaves.codes import places_of

SWEEPS = 30
"""At most, by default."""

DENSITY = 2
"""Atoms over those that a row takes, by default."""

BLOCK = 1 << 21
"""Numbers that signals keep at once while they take atoms: 16 MB."""

DEPENDENT = 1e-6
"""Length, of one, that is left of an atom which depends on others."""


class State(NamedTuple):
    """Codes (m, s), the atoms (k, n) in the inputs as they are, and which ones (m, s)."""

    values: Tensor
    atoms: Tensor
    places: Tensor


@method(
    "dictionary",
    gives=Dictionary,
    on={"tensor", "linear"},
    law="no turn raises the loss; less error than low rank on a union of subspaces",
    measured="formats_by_bytes",
)
def fit_dictionary(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    nonzeros: int | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[Dictionary]:
    """A dictionary of k atoms, and for each row the few of them that make it up.

    By turns each row takes atoms by orthogonal matching pursuit, in the metric of the inputs, and
    the atoms are solved for by least squares (the method of optimal directions, MOD). Of old codes
    and new ones each row keeps those that serve it better, and an atom that no row takes becomes
    what the worst row lacks. A sweep that raises the loss is undone. Rows in a union of subspaces
    are where it is worth its bytes: a low rank has to span all of these at once.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, float or str, optional
        The number of atoms k, at most min(m, n); a share of the parameters in (0, 1], with values
        and places counted, an upper bound down to one atom, or "same"; or instead
    error : float, optional
        The smallest number of atoms whose relative error is at most this.
    nonzeros : int, optional
        How many atoms a row takes, by default half of them.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of the layer: errors are then relative errors of the
        outputs. What the inputs do not span follows the plain fit (`Fit.shrinkage`), than which the
        result is never worse in that metric.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        Most sweeps, 30 by default.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it; by default when more
        would gain little.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True ends them, and the best
        so far is the result. Without `gram`.
    random_state : int or Generator, optional
        Of the rows that one of the two starts begins with; the other one is that of the SVD.

    Returns
    -------
    Dictionary
        Of `fit_dictionary` a `Fit` with the relative errors.

    Raises
    ------
    RankError
        For a number of atoms below one or above min(m, n), or below `nonzeros`.
    UnsupportedError
        For more than two modes.
    ArgumentError
        For what cannot be decomposed, and a number of nonzeros that cannot be.

    References
    ----------
    Rubinstein, Zibulevsky & Elad 2008 (batch OMP); Engan, Aase & Husoy 1999 (MOD); Zhussip et al.
    2025, "CoSpaDi", for weights.

    Examples
    --------
    >>> atoms, places = torch.randn(12, 40), torch.rand(60, 12).topk(2).indices
    >>> w = torch.zeros(60, 12).scatter(1, places, torch.randn(60, 2)) @ atoms
    >>> f = tensorlrf.dictionary(w, 12, nonzeros=2, random_state=0)
    >>> f.n_params / w.numel(), f.rel_error(w) < 0.8 * tensorlrf.svd(w, 0.3).rel_error(w)
    (0.3, True)
    """
    checked = as_tensor(tensor)
    if checked.ndim != 2:
        raise UnsupportedError(
            f"dictionary takes a matrix (out, in), got a tensor of shape {tuple(checked.shape)}; "
            "use svd for a conv kernel, or reshape it to (out, in * kh * kw)"
        )
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    check_callback(callback, gram)
    check_nonzeros(nonzeros)
    draws = generator(random_state, checked.device)
    target: Target[Dictionary] = Target.of(checked, gram, mean)
    m, n = target.shape
    r = None
    if rank is not None:
        r = rank_of_size(rank, m, n, m * n, lambda k: k * n + 2 * m * taken(k, nonzeros))
        if nonzeros is not None and nonzeros > r:
            raise RankError(
                f"rank={rank!r} is {r} atoms, of which no row takes nonzeros={nonzeros}"
            )
    problem = _Problem(target, nonzeros, draws, tol, n_iter_max or SWEEPS)
    return search(lambda k: problem.cut(k, callback), r, error, min(m, n), target.dtype)


dictionary = factors_of(fit_dictionary)


@config("dictionary")
class DictionaryLearning(Method):
    """Rows made of a few atoms each, as a method of `compress`.

    The rank is the number of atoms; each code counts as its value and its place. Linear layers
    only.

    Examples
    --------
    >>> print(tensorlrf.DictionaryLearning(nonzeros=4))
    dictionary(nonzeros=4)
    """

    nonzeros: int | None
    n_iter_max: int | None
    tol: float | None

    def check_options(self) -> None:
        check_iteration(self.n_iter_max, self.tol)
        check_nonzeros(self.nonzeros)

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        m, n = shape
        return int(rank * n + 2 * m * taken(rank, self.nonzeros))

    def bytes_at(self, rung: Rung, shape: tuple[int, ...], size: int) -> int:
        assert isinstance(rung.rank, int)
        m, n = shape
        code = size + places_of(rung.rank).itemsize
        return rung.rank * n * size + m * taken(rung.rank, self.nonzeros) * code

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return linear_only(self.word, shape)

    def rank_of(self, factors: Factors) -> LayerRank:
        assert isinstance(factors.rank, tuple)
        return factors.rank[0]


def check_nonzeros(nonzeros: Any) -> None:
    """Raise ArgumentError for what is no number of codes."""
    if nonzeros is not None and (
        isinstance(nonzeros, bool) or not isinstance(nonzeros, int) or nonzeros < 1
    ):
        raise ArgumentError(f"nonzeros={nonzeros!r} must be an int of at least 1, or None")


def taken(k: int, nonzeros: int | None) -> int:
    """Of k atoms by a row."""
    return -(-k // DENSITY) if nonzeros is None else min(nonzeros, k)


class _Problem:
    """Dictionaries for a target."""

    def __init__(
        self,
        target: Target[Dictionary],
        nonzeros: int | None,
        draws: torch.Generator,
        tol: float | None,
        n_iter_max: int,
    ) -> None:
        self.target, self.nonzeros, self.tol, self.n_iter_max = target, nonzeros, tol, n_iter_max
        m = target.shape[0]
        self.order = torch.randperm(m, generator=draws, device=draws.device)

    def cut(self, k: int, callback: Callback | None) -> Fit[Dictionary]:
        s = taken(k, self.nonzeros)
        fit = served(self.target, lambda target, watch: self._fit(target, k, s, watch), callback)
        return replace(fit, reason=f"{k} atoms, {s} a row, {fit.reason}")

    def _fit(
        self, target: Target[Dictionary], k: int, s: int, callback: Callback | None
    ) -> Fit[Dictionary]:
        matrix = target.matrix

        def coded(atoms: Tensor, before: State | None = None) -> tuple[State, float]:
            atoms = _unit(target, atoms)
            products = target.by_columns(matrix) @ atoms.T  # (m, k)
            square = target.by_columns(atoms) @ atoms.T  # (k, k)
            places = pursuit(products, square, s)
            values, gains = _solved(products, square, places)
            if before is not None:
                old_values, old_gains = _solved(products, square, before.places)
                worse = (old_gains > gains)[:, None]
                values = torch.where(worse, old_values, values)
                places = torch.where(worse, before.places, places)
            state = State(values, atoms, places)
            return state, target.rel_error(matrix - _whole(state))

        def sweep(state: State) -> tuple[State, float]:
            codes = _spread(state)
            square = codes.T @ codes
            atoms = torch.cholesky_solve(codes.T @ matrix, cholesky(square))
            idle = square.diagonal() == 0
            if bool(idle.any()):
                rest = matrix - codes @ atoms
                worst = (target.by_columns(rest) * rest).sum(1).argsort(descending=True)
                atoms[idle] = rest[worst[: int(idle.sum())]]
            return coded(atoms, state)

        singular = thin_svd(target.work)[2][:k].to(torch.float64)
        rows = matrix[self.order[:k].to(matrix.device)]
        starts = [coded(atoms) for atoms in (singular, rows)]
        return by_turns(starts, sweep, self._pack, self.tol, self.n_iter_max, callback)

    def _pack(self, state: State) -> Dictionary:
        target = self.target
        places, order = state.places.sort(1)
        values = state.values.gather(1, order)
        # Half of the size of the largest value to either side, as a power of two.
        size = 2.0 ** round(float(values.abs().max().clamp(min=1e-30).log2()) / 2)
        values = (values * (target.root / size)).to(target.dtype)
        atoms = (state.atoms * (target.root * size)).to(target.dtype)
        return Dictionary(values, atoms, places.to(places_of(len(atoms))))


def pursuit(products: Tensor, square: Tensor, s: int) -> Tensor:
    """Orthogonal matching pursuit of many signals at once: which s atoms each takes, (m, s).

    Parameters
    ----------
    products : Tensor of shape (m, k)
        Of each signal with each atom.
    square : Tensor of shape (k, k)
        Of the atoms with each other, ones on the diagonal.
    s : int
    """
    some = max(1, BLOCK // max(1, s * len(square)))
    return torch.cat([_pursued(block, square, s) for block in torch.split(products, some)])


def _pursued(products: Tensor, square: Tensor, s: int) -> Tensor:
    """Atoms are made orthogonal to those taken before them, which each signal knows by its
    products with all atoms: what is left is told without a solution in each step."""
    m, k = products.shape
    places = products.new_zeros(m, s, dtype=torch.int64)
    seen = products.new_zeros(m, s, k)  # of the orthogonal ones with all atoms
    left, diagonal = products.clone(), square.diagonal()
    for step in range(s):
        at = left.abs().scatter(1, places[:, :step], -1.0).argmax(1, keepdim=True)
        places[:, step] = found = at[:, 0]
        within = seen[:, :step].gather(2, at[:, None].expand(-1, step, -1))[:, :, 0]  # (m, step)
        length = (diagonal[found] - within.square().sum(1)).clamp(min=0).sqrt()[:, None]
        rest = square[found] - torch.einsum("ms,msk->mk", within, seen[:, :step])
        # One that depends on those before it adds nothing.
        new = torch.where(length > DEPENDENT, rest / length.clamp(min=DEPENDENT), 0.0)
        seen[:, step] = new
        left -= left.gather(1, at) / length.clamp(min=DEPENDENT) * new
    return places


def _solved(products: Tensor, square: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The best values (m, s) on these atoms, and by how much they lower the loss of each row."""
    own = products.gather(1, places)  # (m, s)
    each = square[places[:, :, None], places[:, None, :]]  # (m, s, s)
    ridge = 1e-12 * torch.eye(places.shape[1], dtype=each.dtype, device=each.device)
    factor, failed = torch.linalg.cholesky_ex(each + ridge)
    values = torch.cholesky_solve(own[:, :, None], factor)[:, :, 0]
    if bool(failed.any()):  # atoms that are nearly the same: of least norm
        least = (torch.linalg.pinv(each[failed > 0], hermitian=True) @ own[failed > 0, :, None])[
            ..., 0
        ]
        values[failed > 0] = least
    gains = 2 * (values * own).sum(1) - torch.einsum("ms,mst,mt->m", values, each, values)
    return values, gains


def _unit(target: Target[Dictionary], atoms: Tensor) -> Tensor:
    """Of length one in the metric; those without any stay."""
    lengths = (target.by_columns(atoms) * atoms).sum(1).clamp(min=0).sqrt()
    return atoms / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None]


def _spread(state: State) -> Tensor:
    """The codes (m, k), zeros among them."""
    m, k = len(state.values), len(state.atoms)
    return state.values.new_zeros(m, k).scatter(1, state.places, state.values)


def _whole(state: State) -> Tensor:
    return _spread(state) @ state.atoms
