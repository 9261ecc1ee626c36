"""Options that once had another name: the old word is refused, with the new one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from tensorlrf.errors import ArgumentError, shown

RENAMED = {"method": "solver", "moment_bytes": "memory_limit"}
"""The word of before -> the word of now."""

P = ParamSpec("P")
T = TypeVar("T")


def check_words(given: Mapping[str, Any], valid: Collection[str], who: str) -> None:
    """Raise ArgumentError for an old word among the options that `who` is given, where the new one
    is among its `valid` ones."""
    if RENAMED.keys().isdisjoint(given):
        return
    for old, new in RENAMED.items():
        if old in given and old not in valid and new in valid:
            value = shown(given[old])
            raise ArgumentError(f"{old}={value} of {who} is {new}= now; write {new}={value}")


def refuses_old_words(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which tells the new word to whoever calls it with the old one."""
    who = function.__qualname__.removeprefix("fit_").removesuffix(".__init__")
    valid = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check_words(kwargs, valid, who)
        return function(*args, **kwargs)

    return checked
