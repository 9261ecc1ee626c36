"""What tells factors of one format apart but for their numbers: what the tensors do not say, their
sizes, and their dtype."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from tensorlrf.factors import FORMATS, Factors
from tensorlrf.factors.kinds import found_of

P = ParamSpec("P")
T = TypeVar("T")


def structure_of(factors: Factors) -> tuple[Hashable, ...]:
    """As a key."""
    tensors = factors.tensors().values()
    sizes = tuple([tuple(t.shape) for t in tensors])
    return type(factors), hashable(factors._context()), sizes, factors.dtype


def hashable(value: Any) -> Hashable:
    """JSON values, and tuples, as a key."""
    if isinstance(value, dict):
        return tuple([(name, hashable(one)) for name, one in value.items()])
    return tuple([hashable(one) for one in value]) if isinstance(value, list) else value


def of_structure(
    function: Callable[Concatenate[Factors, P], T],
) -> Callable[Concatenate[Factors, P], T]:
    """A function that looks at nothing but the structure of factors: what it gives is kept with
    them, and torch.compile takes it as a constant, without tracing how it is found."""

    def constant(structure: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(_blank(*structure), *args, **kwargs)

    # What torch.compiler.assume_constant_result sets, which would import the compiler.
    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def call(factors: Factors, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return constant(_structure_in_values(factors), *args, **kwargs)
        kept = found_of(factors)
        key = function, *args, *kwargs.items()
        found: T | None = kept.get(key)
        if found is None:
            found = kept[key] = function(factors, *args, **kwargs)
        return found

    return call


def _structure_in_values(factors: Factors) -> tuple[Any, ...]:
    """The structure in plain values, which are constants to torch.compile."""
    sizes = [(name, plain(list(t.shape)), t.dtype) for name, t in factors.tensors().items()]
    return factors.format, plain(factors._context()), sizes


def plain(value: Any) -> Any:
    """Lists in place of tuples, and numbers in place of symbols for them."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    # A size that is a symbol becomes the number that it stands for, as the length of a range.
    return len(range(value)) if value >= 0 else -len(range(-value))


def _blank(format: str, context: Any, sizes: list[tuple[str, list[int], torch.dtype]]) -> Factors:
    """Factors of a structure, without numbers."""
    tensors = {name: torch.empty(n, dtype=dtype, device="meta") for name, n, dtype in sizes}
    return FORMATS[format].from_tensors(tensors, context)
