"""What options mean together, and what is refused: by one rule and in one text for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorlrf.decomposition._input import check_sequence
from tensorlrf.errors import ArgumentError, UnsupportedError


def check_moments(gram: Any, mean: Any = None, **sweeps: Any) -> None:
    """What goes with `gram`: `mean`, and the `sweeps` (n_iter_max=, tol=) of a method that makes
    them in the metric of the inputs alone. Raises ArgumentError where it is not given."""
    if gram is not None:
        return
    if mean is not None:
        raise ArgumentError("mean= goes with gram=, the second moments of the same inputs")
    for name, value in sweeps.items():
        if value is not None:
            raise ArgumentError(
                f"{name}={value!r} goes with gram=, which is not given; without it there is "
                "nothing to iterate, leave it out"
            )


def check_graph(differentiable: bool, gram: Any) -> None:
    """Raise UnsupportedError where a graph is asked of sweeps in the metric of `gram`."""
    if differentiable and gram is not None:
        raise UnsupportedError("gram= with differentiable=True is not served; use svd for that")


def check_callback(callback: Any, gram: Any) -> None:
    """What is called as callback(factors, error) in sweeps without `gram`. Raises ArgumentError for
    what cannot be called, UnsupportedError with `gram`."""
    if callback is None:
        return
    if not callable(callback):
        raise ArgumentError(f"callback={callback!r} must be callable as callback(factors, error)")
    if gram is not None:
        raise UnsupportedError(
            "callback= does not go with gram=; the errors of all sweeps are in those of Fit"
        )


def check_modes(modes: Sequence[int] | None, order: int) -> tuple[int, ...]:
    """`modes` of a tensor as they count from its front, all of them by default.

    Negative ones count from the end. Raises ArgumentError for what is no mode, for none at all, and
    where one is named twice.
    """
    if modes is None:
        return tuple(range(order))
    check_sequence(modes, "modes", f"{tuple(range(order))}")
    if not modes:
        raise ArgumentError("modes=() leaves nothing to factor; name at least one mode")
    for k in modes:
        if isinstance(k, bool) or not isinstance(k, int) or not -order <= k < order:
            raise ArgumentError(
                f"modes={tuple(modes)} has the entry {k!r}; the modes of this tensor are 0 to "
                f"{order - 1}, or {-order} to -1 from the end"
            )
    counted = tuple(k % order for k in modes)
    if len(set(counted)) != len(counted):
        raise ArgumentError(f"modes={tuple(modes)} names a mode twice; name each once")
    return counted


def are_positive(values: tuple[Any, ...]) -> bool:
    """Whether these are ints above zero, and there is one."""
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in values)
    return bool(values) and whole and min(values) > 0


def is_pair(value: Any) -> bool:
    """Whether these are two positive ints."""
    return isinstance(value, tuple) and len(value) == 2 and are_positive(value)


def check_blocks(name: str, value: Any) -> None:
    """Raise ArgumentError for what is no positive int, two of them, or None."""
    alone = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value is not None and not alone and not is_pair(value):
        raise ArgumentError(f"{name}={value!r} must be a positive int, two of them, or None")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ArgumentError for what is no int of at least that."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name}={value!r} must be an int of at least {least}")
