"""`--evaluate module:function`: a metric of the user's own, by name."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import Any

from tensorlrf.errors import ArgumentError


def read_evaluate(name: str | None) -> Any:
    """The function, or pair of functions, of that name; modules are looked for in the current
    folder as well. None for None.

    Raises ArgumentError where there is none. That module's code is run.
    """
    if name is None:
        return None
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ArgumentError(
            f"--evaluate {name} must be module:function, as in metrics:accuracy for a function in "
            "metrics.py here"
        )
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ArgumentError(
            f"--evaluate {name}: the module cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        with suppress(ValueError):
            sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ArgumentError(f"--evaluate {name}: {module} has no {attribute}")
        found = getattr(found, part)
    return found
