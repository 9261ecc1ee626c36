"""What a decomposition tells about itself, and the function beside it that gives factors alone."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, get_args

from tensorlrf.decomposition.signatures import without_measure
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors, covariant=True)
G = TypeVar("G", bound=Factors)
P = ParamSpec("P")


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


def factors_of(fit: Callable[P, Fit[G]]) -> Callable[P, G]:
    """The function that gives the factors alone: `blast = factors_of(fit_blast)`.

    It has the signature and the docstring of `fit`, its module, and its name without `"fit_"`,
    under which it must stand in that module to be pickled. Where `fit` has an argument `measure:
    bool`, it is False here: errors that nothing is decided by need not be computed. What takes
    `batch_dims=` has its overloads in a stub, which `make generate` writes.

    Parameters
    ----------
    fit : callable
        The function that gives a `Fit`.

    Returns
    -------
    callable
        The same, but for what it gives.

    Raises
    ------
    ArgumentError
        For what is not called `fit_...`.

    Examples
    --------
    >>> from tensorlrf.decomposition import fit_blast
    >>> from tensorlrf.decomposition.methods import factors_of
    >>> factors_of(fit_blast).__name__
    'blast'
    """
    name = short_name(fit)
    unmeasured: dict[str, Any] = {"measure": False} if "measure" in fit.__annotations__ else {}

    @functools.wraps(fit)
    def short(*args: P.args, **kwargs: P.kwargs) -> G:
        return fit(*args, **kwargs, **unmeasured).factors

    short.__name__ = short.__qualname__ = name
    own = without_measure(inspect.signature(fit))
    gives = _of_a_fit(own.return_annotation)
    short.__annotations__ = {**short.__annotations__, "return": gives}
    vars(short)["__signature__"] = own.replace(return_annotation=gives)
    return short


def short_name(fit: Callable[..., Any]) -> str:
    """Of `fit_cur`, "cur". Raises ArgumentError for what is not called so."""
    name = fit.__name__
    if not name.startswith("fit_") or fit.__qualname__ != name:
        raise ArgumentError(
            f"{fit.__qualname__} must be a function of a module whose name begins with fit_, such "
            "as fit_cur: the one that gives the factors alone has the rest of it"
        )
    return name.removeprefix("fit_")


def _of_a_fit(annotation: Any) -> Any:
    """LowRank of Fit[LowRank], be it a type or still a string; of a union of them, the union."""
    if isinstance(annotation, str):
        return re.sub(r"\b\w*Fit\[(\w+)\]", r"\1", annotation)
    return next(iter(get_args(annotation)), Factors)
