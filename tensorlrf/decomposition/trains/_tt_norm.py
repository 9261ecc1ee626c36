"""Norms and distances of trains, and orthogonal forms, core by core and never of the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.trains._tt_algebra import Train, check_alike, rebuilt, tt_add
from tensorlrf.decomposition.trains._tt_round import norm_of, right_orthogonal
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import TTFactors, TTMatrix
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.factors.kinds import check_format, inner_cores


@without_autocast()
@threaded
def tt_norm(factors: Train) -> float:
    """The Frobenius norm of what a train stands for, by QR factorisations of its cores.

    The root of `tt_inner(f, f)` may overflow where the norm does not, and is inaccurate where cores
    nearly cancel; this is neither. Padding of a TT-matrix does not count.

    Parameters
    ----------
    factors : TTFactors or TTMatrix

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        For what is no train, or not finite.

    References
    ----------
    Oseledets 2011, section 4.2.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(4, 5, 6), 2)
    >>> abs(tensorlrf.decomposition.tt_norm(f) / f.to_dense().norm().item() - 1) < 1e-6
    True
    """
    cores = inner_cores(_wide(_checked(factors, "factors")))
    return math.ldexp(*norm_of(cores))


@without_autocast()
@threaded
def tt_distance(first: Train, second: Train) -> float:
    """The Frobenius norm of the difference of two trains, without the whole.

    By QR factorisations of the train of the difference: good to the rounding of the norms, where
    `‖a‖^2 - 2 <a, b> + ‖b‖^2` is good to its root alone.

    Parameters
    ----------
    first, second : TTFactors or TTMatrix
        As for `tt_add`.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError, ShapeError
        Where they do not go together, or are not finite.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(4, 5, 6), 2)
    >>> g = f.map(lambda core: core * (1 + 1e-3))
    >>> off = (f.to_dense() - g.to_dense()).norm().item()
    >>> abs(tensorlrf.decomposition.tt_distance(f, g) / off - 1) < 1e-3
    True
    """
    check_alike(_checked(first, "first"), _checked(second, "second"))
    first, second = _wide(first), _wide(second)
    signed = rebuilt(second, [*second.cores[:-1], -second.cores[-1]])
    return math.ldexp(*norm_of(inner_cores(tt_add(first, signed))))


@without_autocast()
@threaded
def tt_orthogonalize(factors: Train, center: int = 0) -> Train:
    """The same train, with orthonormal cores on both sides of one, which has the norm.

    Cores before the center are orthonormal as (r n, r'), those behind it as (r, n r'), and their
    ranks are at most what sizes allow. Computed in float64.

    Parameters
    ----------
    factors : TTFactors or TTMatrix
    center : int
        The core that is not orthogonal, counted from either end.

    Returns
    -------
    TTFactors or TTMatrix
        Detached.

    Raises
    ------
    ArgumentError
        For what is no train or not finite, and a center that is no core.

    References
    ----------
    Oseledets 2011, section 3; Holtz, Rohwedder & Schneider 2012.

    Examples
    --------
    >>> f = tensorlrf.decomposition.tt_orthogonalize(tensorlrf.tt(torch.rand(4, 5, 6), 2), center=1)
    >>> left = f.cores[0].flatten(0, 1)
    >>> torch.allclose(left.T @ left, torch.eye(2), atol=1e-5)
    True
    """
    factors = _checked(factors, "factors").detach()
    d = len(factors.cores)
    if isinstance(center, bool) or not isinstance(center, int) or not -d <= center < d:
        raise ArgumentError(
            f"center={center!r} is no core of {d}; use 0 to {d - 1}, or -1 from the end"
        )
    at = center % d
    given = [c.flatten(1, -2).to(torch.float64) for c in factors.cores]
    cores, exponent = right_orthogonal(given)
    for k in range(at):
        r, n, s = cores[k].shape
        basis, upper = torch.linalg.qr(cores[k].reshape(r * n, s))
        cores[k] = basis.reshape(r, n, -1)
        cores[k + 1] = torch.tensordot(upper, cores[k + 1], 1)
    cores[at] = torch.ldexp(cores[at], torch.tensor(exponent, device=cores[at].device))
    return rebuilt(factors, [c.to(factors.dtype).contiguous() for c in cores])


def _checked(factors: Train, name: str) -> Train:
    check_format(factors, (TTFactors, TTMatrix), name, "pass TTFactors or a TTMatrix")
    for own, core in factors.tensors().items():
        if not _is_finite(core):
            raise ArgumentError(f"{name}: {own} contains NaN or Inf; find where it came from")
    return factors


def _wide(factors: Train) -> Train:
    return factors.detach().to(torch.float64)


def _is_finite(core: Tensor) -> bool:
    return bool(core.detach().isfinite().all())
