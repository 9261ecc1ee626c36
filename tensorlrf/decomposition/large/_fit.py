"""What a decomposition of a divided tensor tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from tensorlrf.decomposition._fit import Fit
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors, covariant=True)


@dataclass(frozen=True)
class LargeFit(Fit[F]):
    """A `Fit`, and what it took.

    Parameters
    ----------
    factors, errors, converged, reason, shrinkage
        As of `Fit`. Factors are whole, and the same on every rank.
    passes : int
        Over the data, the first look at it and the residuals included.
    bytes_sent : int
        By this rank to others, where there are any.

    Examples
    --------
    >>> import numpy
    >>> fit = tensorlrf.large.fit_svd(numpy.random.rand(60, 20, 10), 3, random_state=0)
    >>> fit.factors.rank, fit.bytes_sent
    (3, 0)
    """

    passes: int = 0
    bytes_sent: int = 0

    def __repr__(self) -> str:
        sent = f", {self.bytes_sent:,} bytes sent" if self.bytes_sent else ""
        return f"{super().__repr__()[:-1]}; {self.passes} passes{sent})"
