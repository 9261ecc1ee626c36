"""What a decomposition tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors, covariant=True)


@dataclass(frozen=True)
class Fit(Generic[F]):
    """The result of a `fit_*` function.

    Parameters
    ----------
    factors : Factors
        In the dtype and on the device of the input.
    errors : tuple of float
        Relative errors in the order they were computed; the last one is a true residual of
        `factors` as returned (after the cast to the input's dtype). In the metric of the inputs
        where `gram=` was given, else Frobenius; those on the way in the shrunk metric in which the
        sweeps go.
    converged : bool
        False where the iteration stopped for another reason than its tolerance.
    reason : str
        Why it stopped, in words.
    shrinkage : float or None
        Where `gram=` was given, how far it was drawn towards its mean eigenvalue, 0 to 1: as far as
        it takes for what the inputs do not span to follow the plain fit.

    Examples
    --------
    >>> w = torch.rand(8, 6)
    >>> fit = tensorlrf.decomposition.fit_svd(w, 2)
    >>> fit.error == fit.errors[-1], abs(fit.error - fit.factors.rel_error(w)) < 1e-6
    (True, True)
    """

    factors: F
    errors: tuple[float, ...]
    converged: bool
    reason: str
    shrinkage: float | None = None

    @property
    def error(self) -> float:
        """The relative error of `factors`."""
        return self.errors[-1]

    def __repr__(self) -> str:
        return (
            f"Fit({self.factors!r}, error {self.error:.4g} after {len(self.errors)} evaluations, "
            f"{'converged' if self.converged else 'not converged'}: {self.reason})"
        )
