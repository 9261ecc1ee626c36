"""What a function shows of its arguments: old words refused with the new ones, `measure=` left out,
each parameter told in the docstring."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from tensorlrf.errors import ArgumentError, shown

RENAMED = {"method": "solver", "moment_bytes": "memory_limit"}
"""The word of before -> the word of now."""

SECTION = re.compile(r"^Parameters\n-+\n(.*?)(?=\n\n\S|\Z)", re.S | re.M)
ENTRY = re.compile(r"^(\S[^\n]*(?:\n[ ][^\n]*)*)", re.M)
"""Of a docstring: what it says of parameters, and each of them."""

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


def without_measure(signature: inspect.Signature) -> inspect.Signature:
    """What signatures show."""
    seen = [p for p in signature.parameters.values() if p.name != "measure"]
    return signature.replace(parameters=seen)


def parameters(doc: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(names, the rest of their line, the text below it) of every entry under Parameters."""
    section = SECTION.search(doc)
    for entry in ENTRY.findall(section[1]) if section else ():
        head, _, text = entry.partition("\n")
        given, colon, kind = head.partition(" :")
        yield tuple(name.strip() for name in given.split(",")), colon + kind, text


def with_parameters(doc: str | None, names: Iterable[str], others: Iterable[str | None]) -> str:
    """A docstring with these parameters, in this order: as it tells of them itself, or as the first
    of the others does that knows them."""
    doc = inspect.cleandoc(doc or "")
    wanted = list(names)
    found: dict[str, str] = {}
    for source in (doc, *(inspect.cleandoc(other or "") for other in others)):
        for given, kind, text in parameters(source):
            new = [name for name in given if name in wanted and name not in found]
            entry = f"{', '.join(new)}{kind}\n{text}"
            found |= {name: entry if k == 0 else "" for k, name in enumerate(new)}
    entries = "\n".join(filter(None, (found.get(name, "") for name in wanted)))
    section = f"Parameters\n----------\n{entries}"
    if SECTION.search(doc):
        return SECTION.sub(lambda _: section, doc)
    about, *rest = re.split(r"\n\n(?=\S[^\n]*\n-+$)", doc, maxsplit=1, flags=re.M)
    return "\n\n".join([about, section, *rest])
