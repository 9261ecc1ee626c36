"""What a decomposition tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors, covariant=True)


@dataclass(frozen=True)
class Fit(Generic[F]):
    """The result of a `fit_*` function.

    factors    the factors, in the dtype and on the device of the input
    errors     relative errors in the order they were computed; the last one is a true residual of
               `factors` as returned (after the cast to the input's dtype). In the metric of the
               inputs where `gram=` was given, else Frobenius; those on the way in the shrunk
               metric in which the sweeps go.
    converged  False where the iteration stopped for another reason than its tolerance
    reason     why it stopped, in words
    shrinkage  where `gram=` was given, how far it was drawn towards its mean eigenvalue, 0 to 1: as
               far as it takes for what the inputs do not span to follow the plain fit
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
