"""The examples of public docstrings print what they say."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from types import FunctionType

import pytest
import torch

import tensorlrf
from tests.docs.reference import listed, named

FINDER = doctest.DocTestFinder(recurse=False)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> Iterator[doctest.DocTest]:
    """Those of public functions, classes, and what classes define themselves."""
    for name in listed():
        value = named(name)
        yield from _of(value, name)
        for member in vars(value).values() if inspect.isclass(value) else ():
            method = getattr(member, "__func__", member)
            if isinstance(method, FunctionType | property) and method.__doc__:
                yield from _of(method, f"{name}.{getattr(method, '__name__', '')}")


def _of(value: object, name: str) -> Iterator[doctest.DocTest]:
    about = {"torch": torch, "tensorlrf": tensorlrf}
    for found in FINDER.find(value, name, globs=about):
        if found.examples:
            yield found


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_it_prints_what_it_says(example: doctest.DocTest) -> None:
    said: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert outcome.failed == 0, "".join(said)
