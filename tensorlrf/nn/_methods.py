"""Which decompositions a layer can be given by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tensorlrf.decomposition import cp, svd, tucker
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors import Factors

Decomposition = Callable[..., Factors]
"""From a weight, a rank or an error, and options by keyword, to factors."""

_METHODS: dict[str, Decomposition] = {}
# A layer takes these itself, or has no use for them: it keeps copies, cut from any graph.
_NOT_OPTIONS = ("rank", "error", "differentiable")


def register_method(name: str, decompose: Decomposition) -> None:
    """Make `decompose` known as `name`. Raises ArgumentError where the name is taken."""
    if name in _METHODS:
        raise ArgumentError(
            f"name={name!r} is registered already, for {_METHODS[name].__qualname__}; "
            "choose another"
        )
    _METHODS[name] = decompose


def method_names() -> tuple[str, ...]:
    """The names that are known, in order of registration."""
    return tuple(_METHODS)


def find_method(name: str) -> Decomposition:
    """The decomposition of that name. Raises ArgumentError that lists the names."""
    if name not in _METHODS:
        raise unknown("method", name, method_names())
    return _METHODS[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Every option is one of the method's own. Raises ArgumentError that lists them."""
    _, *parameters = inspect.signature(find_method(name)).parameters
    valid = [option for option in parameters if option not in _NOT_OPTIONS]
    for option in options:
        if option not in valid:
            raise ArgumentError(
                f"{option}= is no option of method {name!r}; its options are {', '.join(valid)}"
            )


register_method("svd", svd)
register_method("cp", cp)
register_method("tucker", tucker)
