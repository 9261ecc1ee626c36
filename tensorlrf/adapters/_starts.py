"""Where the training of an adapter begins: a part of the weight itself in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.adapters._adapter import Adapter
from tensorlrf.adapters._merge import dense_weight
from tensorlrf.adapters._norms import as_weight
from tensorlrf.decomposition import fit_svd
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, RankError, ShapeError, unknown
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.nn.copies import copy_of


@dataclass(frozen=True)
class Start:
    """A weight as residual + term.

    Parameters
    ----------
    term : LowRank, CPFactors or TuckerFactors
        The part that is trained, or whose `trained` tensor is.
    residual : Tensor
        The rest, which is frozen, in the dtype of the weight; the sum is the weight.
    trained : tuple of str
        Names of the tensors of the term that are trained; the others are frozen.
    low_rank : LowRank
        The term as `left @ right`, as LoRA has it.
    """

    term: Factors
    residual: Tensor
    trained: tuple[str, ...]
    low_rank: LowRank


def pissa(weight: Any, rank: int) -> Start:
    """Train the r largest singular directions, freeze the rest.

    Parameters
    ----------
    weight : Tensor or array of shape (m, n)
    rank : int
        r.

    Returns
    -------
    Start
        `term` is the nearest matrix of rank r, with the root of each singular value on either side.

    References
    ----------
    Meng, Wang & Zhang 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation",
    equations 2 to 4.
    """
    matrix, r = _checked(weight, rank)
    term = fit_svd(matrix, r).factors
    return _begun(matrix, term, ("left", "right"), term)


def milora(weight: Any, rank: int) -> Start:
    """Train the r smallest singular directions, freeze the principal ones.

    Parameters
    ----------
    weight : Tensor or array of shape (m, n)
    rank : int
        r.

    Returns
    -------
    Start

    References
    ----------
    Wang et al. 2024, "MiLoRA: Harnessing Minor Singular Components", section 3.
    """
    matrix, r = _checked(weight, rank)
    rows, values, columns = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    roots = values[-r:].sqrt()
    term = LowRank((rows[:, -r:] * roots).to(matrix), (roots[:, None] * columns[-r:]).to(matrix))
    return _begun(matrix, term, ("left", "right"), term)


def svfit(weight: Any, rank: int) -> Start:
    """Train the r largest singular values alone, freeze their vectors and the rest.

    Parameters
    ----------
    weight : Tensor or array of shape (m, n)
    rank : int
        r.

    Returns
    -------
    Start
        `term` is a CPFactors of two modes: `weights` (r,) are the singular values.

    References
    ----------
    Sun et al. 2024, "SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using
    Singular Values".
    """
    matrix, r = _checked(weight, rank)
    found = fit_svd(matrix, r).factors
    left, right = found.left.to(torch.float64), found.right.to(torch.float64)
    roots = torch.linalg.vector_norm(left, dim=0)
    safe = torch.where(roots > 0, roots, 1.0)
    term = CPFactors(
        roots.square().to(matrix), ((left / safe).to(matrix), (right / safe[:, None]).T.to(matrix))
    )
    rows, columns = term.factors
    return _begun(matrix, term, ("weights",), LowRank(rows * term.weights, columns.T))


def nystrom(weight: Any, rank: int) -> Start:
    """W[:, J] W[I, J]^-1 W[I, :] of r pivots, of which the r by r matrix between is trained.

    Pivots are those of a QR factorisation with column pivoting, of W and then of W[:, J]^T, so that
    the inverse is as tame as r columns allow.

    Parameters
    ----------
    weight : Tensor or array of shape (m, n)
    rank : int
        r.

    Returns
    -------
    Start
        `term` is a TuckerFactors of two modes: `core` (r, r) is trained, both factors are frozen.

    References
    ----------
    Guo et al. 2025, "NLoRA: Nystrom-Initiated Low-Rank Adaptation for Large Language Models".
    """
    matrix, r = _checked(weight, rank)
    wide = matrix.to(torch.float64)
    columns = _pivots(wide, r)
    rows = _pivots(wide[:, columns].T, r)
    between = torch.linalg.pinv(wide[rows][:, columns], rtol=1e-12)
    core, left, right = between.to(matrix), wide[:, columns].to(matrix), wide[rows].to(matrix)
    term = TuckerFactors(core, (left, right.T.contiguous()))
    return _begun(matrix, term, ("core",), LowRank(left @ core, right))


@dataclass(frozen=True)
class Nested:
    """An adapter inside of a frozen one.

    Parameters
    ----------
    outer : LowRank
        (m, n), frozen.
    inner : LowRank
        (r, r), which is trained.
    """

    outer: LowRank
    inner: LowRank

    @property
    def low_rank(self) -> LowRank:
        """`outer.left @ inner @ outer.right`, of the rank of the inner one."""
        left, right = self.outer.left @ self.inner.left, self.inner.right @ self.outer.right
        return LowRank(left, right, self.outer.shape)


def nora(weight: Any, rank: int, inner: int, *, random_state: Any = None) -> Nested:
    """A small adapter inside of a frozen one, of the r largest singular directions of the weight.

    Parameters
    ----------
    weight : Tensor or array of shape (m, n)
    rank : int
        r, of the outer one.
    inner : int
        k <= r, of the inner one: 2 r k numbers are trained.
    random_state : int or Generator, optional
        Of `inner.right`; `inner.left` is zero, so that the weight is as it was.

    Returns
    -------
    Nested
        Its change goes beside the whole weight.

    References
    ----------
    Lin et al. 2024, "NoRA: Nested Low-Rank Adaptation for Efficient Fine-Tuning Large Models".
    """
    matrix, r = _checked(weight, rank)
    if isinstance(inner, bool) or not isinstance(inner, int) or not 1 <= inner <= r:
        raise RankError(f"inner={inner!r} must be an int from 1 to {r}, the rank of the outer one")
    draws = generator(random_state, matrix.device)
    down = torch.randn(inner, r, generator=draws, device=matrix.device, dtype=matrix.dtype)
    return Nested(fit_svd(matrix, r).factors, LowRank(matrix.new_zeros(r, inner), down / r**0.5))


STARTS: dict[str, Callable[[Any, int], Start]] = {
    "pissa": pissa, "milora": milora, "svfit": svfit, "nystrom": nystrom,
}  # fmt: skip


def initialize(
    model: nn.Module, method: str, rank: int, *, targets: str | Sequence[str] = "*"
) -> tuple[Adapter, nn.Module]:
    """An adapter that begins with a part of the weights, and the model without that part.

    Parameters
    ----------
    model : Module
        Of dense layers; it stays as it is.
    method : str
        "pissa", "milora", "svfit" or "nystrom", as the functions of these names do it.
    rank : int
        Of each layer; a layer whose shorter side is below it has that rank.
    targets : str or sequence of str
        Globs of names of linear layers, such as ``"*.q_proj"``.

    Returns
    -------
    Adapter
        Save it, and train it with peft on the second one; together they are the model. Of "svfit"
        and "nystrom" peft trains both sides; `Start` has the part that these methods train.
    Module
        A copy with the residuals as weights.

    Raises
    ------
    ArgumentError
        For an unknown method, and a glob that no linear layer matches.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    >>> adapter, rest = tensorlrf.adapters.initialize(model, "pissa", 2)
    >>> adapter
    Adapter(2 layers, rank 2, 48 parameters)
    """
    if method not in STARTS:
        raise unknown("method", method, list(STARTS))
    globs = [targets] if isinstance(targets, str) else list(targets)
    linear = {n: m for n, m in model.named_modules() if n and type(m) is nn.Linear}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in linear):
            raise ArgumentError(
                f"targets: {glob!r} matches no linear layer; they are "
                f"{', '.join(list(linear)[:4]) or 'none'}"
            )
    rest = copy_of(model)
    terms = {}
    for name, layer in linear.items():
        if any(fnmatchcase(name, glob) for glob in globs):
            start = STARTS[method](layer.weight.detach(), min(rank, *layer.weight.shape))
            terms[name] = start.low_rank
            weight = dense_weight(rest.get_submodule(name))
            assert weight is not None
            with torch.no_grad():
                weight.copy_(start.residual)
    return Adapter(terms), rest


def _checked(weight: Any, rank: int) -> tuple[Tensor, int]:
    matrix = as_weight(weight)
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ShapeError(f"weight has shape {tuple(matrix.shape)}; give a matrix (m, n)")
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    most = min(matrix.shape)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise RankError(f"rank={rank!r} must be an int from 1 to {most}, the shorter side")
    return matrix, rank


def _begun(matrix: Tensor, term: Factors, trained: tuple[str, ...], low_rank: LowRank) -> Start:
    return Start(term, matrix - term.to_dense(), trained, low_rank)


def _pivots(matrix: Tensor, rank: int) -> Tensor:
    """The columns that a QR factorisation with column pivoting takes first (Businger & Golub 1965),
    (rank,)."""
    rest = matrix.clone()
    found: list[int] = []
    for _ in range(rank):
        lengths = rest.square().sum(0)
        lengths[found] = -1.0
        k = int(lengths.argmax())
        found.append(k)
        if float(lengths[k]) > 0:
            direction = rest[:, k] / lengths[k].sqrt()
            rest -= direction[:, None] * (direction @ rest)
    return torch.tensor(found, device=matrix.device)
