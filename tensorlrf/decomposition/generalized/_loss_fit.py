"""What a fit by a loss tells about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from tensorlrf.decomposition._fit import Fit
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors, covariant=True)


@dataclass(frozen=True)
class LossFit(Fit[F]):
    """The result of a fit that minimises a loss which need not be a square.

    It is a `Fit`, and tells of the loss as well.

    Parameters
    ----------
    factors : Factors
        In the dtype and on the device of the data.
    errors : tuple of float
        One number: the relative error of what the model expects of the data, in the Frobenius norm
        over the entries that count; after the cast to the data's dtype.
    converged : bool
        False where the iteration stopped for another reason than its tolerance.
    reason : str
        Why it stopped, in words.
    shrinkage : float or None
        None: no metric is shrunk here.
    losses : tuple of float
        At the start and after each step (of CP-APR, each outer iteration; of steps on samples, each
        epoch, where they are estimates on one fixed sample). None is above the one before it.
    loss : float
        Of `factors` as returned, over all entries.
    residuals : tuple of float
        How far the conditions of an optimum (Karush, Kuhn & Tucker) were from being met, beside the
        losses: the largest entry of the projected gradient, relative to that of the start; of
        CP-APR `max |min(B, 1 - Phi)|`. Empty for steps on samples.
    estimated : bool
        Whether `loss` and `errors` are estimates from a sample, all entries being too many.

    References
    ----------
    Hong, Kolda & Duersch 2020; Chi & Kolda 2012; Kolda & Hong 2020.

    Examples
    --------
    >>> counts = torch.poisson(torch.full((5, 6, 7), 2.0))
    >>> fit = tensorlrf.decomposition.fit_generalized_cp(counts, 2, "poisson", random_state=0)
    >>> fit.losses[-1] < fit.losses[0], fit.estimated
    (True, False)
    """

    losses: tuple[float, ...] = ()
    loss: float = math.nan
    residuals: tuple[float, ...] = ()
    estimated: bool = False

    def __repr__(self) -> str:
        told = "an estimate" if self.estimated else "over all entries"
        return (
            f"LossFit({self.factors!r}, loss {self.loss:.6g} ({told}) after {len(self.losses)} "
            f"evaluations, {'converged' if self.converged else 'not converged'}: {self.reason})"
        )
