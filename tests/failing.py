"""Runs that end early: at a call of something that they do many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Failing:
    """A function that fails once it has been called so often.

    made  calls that went well
    """

    def __init__(
        self, own: Callable[..., Any], calls: int, error: type[BaseException] = MemoryError
    ) -> None:
        self.own, self.calls, self.error = own, calls, error
        self.made = 0

    def __call__(self, *args: Any) -> Any:
        if self.made == self.calls:
            raise self.error
        self.made += 1
        return self.own(*args)


@contextmanager
def cut_short(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, calls: int) -> Iterator[None]:
    """What is within fails, for want of memory, after so many calls of `place.name`."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, Failing(getattr(place, name), calls))
        with pytest.raises(MemoryError):
            yield
