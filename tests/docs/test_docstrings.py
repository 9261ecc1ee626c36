"""Public docstrings are numpydoc: arguments by name, what is returned and raised, an example."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import tensorlrf_kernels
from tests.docs.reference import listed, named

SECTIONS = (
    *("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns"),
    *("Notes", "References", "Examples"),
)
"""In the order that numpydoc gives them."""

PACKAGES = ("", ".compression", ".decomposition", ".factors", ".large", ".nn", ".ops")


DOCUMENTED = [
    name for name in listed() if inspect.isclass(named(name)) or inspect.isroutine(named(name))
]


def sections(text: str) -> dict[str, str]:
    """Title -> what stands below it; the text in front of all has the title ""."""
    parts = re.split(r"^(\w[\w ]*)\n-+$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def told(section: str) -> list[str]:
    """The names before the colons of a section."""
    heads = [line.partition(" : ")[0] for line in section.splitlines() if re.match(r"\S", line)]
    return [name.lstrip("*") for head in heads for name in head.split(", ")]


def arguments(of: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(of).parameters if name != "self"]


def members(of: type) -> list[tuple[str, Any]]:
    """Public methods and properties that the class itself defines."""
    own = [(name, value) for name, value in vars(of).items() if not name.startswith("_")]
    return [
        (name, value)
        for name, value in own
        if inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)
    ]


def test_the_reference_lists_every_public_name_once() -> None:
    ops = [f.name for f in pkgutil.iter_modules(tensorlrf_kernels.__path__) if f.ispkg]
    packages = [*(f"tensorlrf{package}" for package in PACKAGES), "tensorlrf_kernels"]
    packages += [f"tensorlrf_kernels.{op}" for op in ops if op != "tables"]
    assert len(listed()) == len(set(listed()))
    there = {id(named(name)) for name in listed()}
    for package in map(importlib.import_module, packages):
        public = {name: getattr(package, name) for name in package.__all__}
        missing = [
            name
            for name, value in public.items()
            if id(value) not in there and not inspect.ismodule(value)
        ]
        assert missing == [], package.__name__


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_docstring_is_numpydoc(name: str) -> None:
    value = named(name)
    text = inspect.getdoc(value) or ""
    found = sections(text)
    summary, *rest = text.split("\n")
    assert summary[:1] == summary[:1].upper(), "a sentence"
    assert summary.endswith("."), "on a line"
    assert not rest or rest[0] == "", "a blank line below the first one"
    titles = list(found)[1:]
    assert titles == [title for title in SECTIONS if title in titles], "sections in their order"
    if isinstance(value, type) and issubclass(value, Exception):
        return
    assert sorted(told(found.get("Parameters", ""))) == sorted(arguments(value)), "each once"
    if not isinstance(value, type) and inspect.signature(value).return_annotation != "None":
        assert "Returns" in found or "Yields" in found


@pytest.mark.parametrize("name", [n for n in DOCUMENTED if inspect.isclass(named(n))])
def test_members_have_a_docstring(name: str) -> None:
    value = named(name)
    missing = [method for method, _ in members(value) if not inspect.getdoc(getattr(value, method))]
    assert missing == []


def test_ruff_finds_nothing_in_them() -> None:
    """All of pydocstyle's rules in numpy's convention. Not the imperative mood: a function of
    mathematics is called what it gives."""
    spans: dict[str, list[range]] = {}
    for name in DOCUMENTED:
        found = inspect.unwrap(named(name))
        lines, first = inspect.getsourcelines(found)
        file = str(inspect.getsourcefile(found))
        spans.setdefault(file, []).append(range(first, first + len(lines)))
    rules = ["--select", "D", "--ignore", "D401,D102,D105"]
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", *rules, *spans]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    places = [(f["filename"], f["location"]["row"], f["message"]) for f in json.loads(said)]
    wrong = [place for place in places if any(place[1] in span for span in spans[place[0]])]
    assert wrong == []
