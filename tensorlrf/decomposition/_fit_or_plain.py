"""The fit to a target, or the plain factors where these serve better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._target import F, Target


def fit_or_plain(
    target: Target[F], plain: Callable[[], F], fit: Callable[[], Fit[F]], least: float = 0.0
) -> Fit[F]:
    """The factors of `fit` with their true error, or the plain ones where their loss is no larger.

    `errors` of what `fit` gives are those on the way, to which that of the result is added. With
    `least`, a loss in the shrunk form below which no factors are, `plain` is not called for
    where the fit comes near it. A fit that linear algebra gives up on is none.
    """
    shrinkage = target.given.shrinkage
    try:
        fitted = fit()
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        usual = plain()
        reason = f"the plain factors, the fit to the inputs failed ({error})"
        return Fit(usual, (target.of_factors(usual).error,), False, reason, shrinkage)
    served = target.of_factors(fitted.factors)
    fitted = replace(fitted, errors=(*fitted.errors, served.error), shrinkage=shrinkage)
    if least > 0 and served.loss <= least * (1 + 1e-3) + target.rounding:
        return fitted
    usual = plain()
    verdict = target.of_factors(usual)
    if served.loss < verdict.loss:
        return fitted
    errors = (*fitted.errors[:-1], verdict.error)
    reason = f"{fitted.reason}, none better than the plain factors"
    return replace(fitted, factors=usual, errors=errors, reason=reason)
