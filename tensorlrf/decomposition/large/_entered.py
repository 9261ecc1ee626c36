"""How a decomposition of a divided tensor is entered."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

from tensorlrf.decomposition.linalg.threads import problem
from tensorlrf.decomposition.signatures import without_measure
from tensorlrf.factors.autocast import without_autocast

F = TypeVar("F", bound=Callable[..., Any])


def entered(function: F) -> F:
    """Without autocast, and on the cores that are free where the tensor is not small; an argument
    `measure=` is for the short function alone."""

    @functools.wraps(function)
    def called(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        shape = getattr(tensor, "shape", None)
        count = math.prod(shape) if isinstance(shape, tuple) else 1 << 30
        with without_autocast(), problem(count):
            return function(tensor, *args, **kwargs)

    vars(called)["__signature__"] = without_measure(inspect.signature(function))
    return cast(F, called)
