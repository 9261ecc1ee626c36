"""What the singular values of a matrix say in a few numbers, before any rank is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._evbmf import singular_values
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.factors.autocast import without_autocast


@dataclass(frozen=True)
class SpectralMeasures:
    """Of singular values s_1 >= s_2 >= ... of a matrix.

    Parameters
    ----------
    size : int
        How many there are, the shorter side.
    spectral_norm : float
        s_1.
    frobenius_norm : float
        The root of the sum of s^2.
    nuclear_norm : float
        The sum of s.
    stable_rank : float
        The sum of s^2 over s_1^2: of a matrix that is not zero from 1 to its rank.
    effective_rank : float
        exp of the entropy of s over their sum (Roy & Vetterli 2007): likewise, larger where many
        values are alike.
    entropy : float
        Of s^2 over their sum, in nats: the von Neumann entropy of W^T W over its trace, from 0 to
        log(size).

    References
    ----------
    Roy & Vetterli 2007; Rudelson & Vershynin 2007 (stable rank).
    """

    size: int
    spectral_norm: float
    frobenius_norm: float
    nuclear_norm: float
    stable_rank: float
    effective_rank: float
    entropy: float

    @classmethod
    def of_values(cls, values: Tensor) -> SpectralMeasures:
        """Of singular values (k,), float64, in any order; of zeros all measures are 0."""
        largest = float(values.max()) if len(values) else 0.0
        if largest == 0.0:
            return cls(len(values), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        over = values / largest
        total, square = float(over.sum()), float(over.square().sum())
        return cls(
            len(values),
            largest,
            math.sqrt(square) * largest,
            total * largest,
            square,
            math.exp(_entropy(over / total)),
            _entropy(over.square() / square),
        )

    @property
    def effective_share(self) -> float:
        """The effective rank over the number of values."""
        return self.effective_rank / max(1, self.size)


@without_autocast()
@threaded
def spectral_measures(tensor: Any) -> SpectralMeasures:
    """Norms, ranks and entropy of the singular values of a matrix.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
        Seen as a matrix as `svd` sees it; of any float dtype.

    Returns
    -------
    SpectralMeasures

    Raises
    ------
    ShapeError, ArgumentError
        For what has no singular values.

    Examples
    --------
    >>> from tensorlrf.decomposition import spectral_measures
    >>> found = spectral_measures(torch.eye(4))
    >>> round(found.effective_rank, 6), round(found.stable_rank, 6)
    (4.0, 4.0)
    """
    return SpectralMeasures.of_values(values_of(tensor))


def values_of(tensor: Any, name: str = "tensor") -> Tensor:
    """All singular values of a matrix, descending, in float64; `name` is for errors.

    Raises ShapeError and ArgumentError for what has none.
    """
    return singular_values(as_tensor(tensor, name))


def _entropy(shares: Tensor) -> float:
    """In nats; not below zero by rounding."""
    return max(0.0, float(torch.special.entr(shares).sum()))
