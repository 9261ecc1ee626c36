"""Tuning inside a user's own calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tensorlrf_kernels._tables import tuning_by


@contextmanager
def autotune() -> Iterator[None]:
    """Inside, launches that no table has are timed; outside nothing ever is.

    An op that meets a problem without a tuned launch times its candidates, which takes seconds a
    bucket, and keeps the fastest for this process.

    Yields
    ------
    None

    Examples
    --------
    >>> import tensorlrf_kernels
    >>> with tensorlrf_kernels.autotune():
    ...     pass  # calls of ops on a GPU
    """
    from tensorlrf_kernels import tune  # a command as well, which the package must not have loaded

    with tuning_by(tune.tune_once):
        yield
