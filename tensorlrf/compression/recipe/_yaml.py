"""YAML as far as it says one thing to everybody: a text to nodes that know their line, and back.

Of the two versions of YAML that are about, one reads `on` as true, `010` as eight and `1:30` as
ninety, the other takes them for words. Here nobody guesses: what they read differently is to stand
in quotes. Anchors, aliases, tags and a second document are refused, and so are keys that stand
twice, the first of which readers of YAML drop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tensorlrf.errors import (
    ArgumentError,
    FileFormatError,
    MissingExtraError,
    TensorlrfError,
    shown,
)

LARGEST = 1 << 20
"""Bytes of a text."""

MOST_NODES = 20_000
"""Keys, values, lists and mappings in it: a layer of a plan has six or a few more."""

DEEPEST = 16
"""Lists and mappings within each other."""

WIDTH = 100
"""Columns of a text that is written."""

NONE = ("", "~", "null")
FLAGS = {"true": True, "false": False}
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Unclear(str):
    """A word that one version of YAML takes for something else."""


@dataclass(frozen=True)
class Node:
    """A value of a text, or one that Python gives.

    value  None, a flag, a number, a string, `Unclear`, a list of nodes, or a mapping to nodes
    key    the way to it, as it is told in errors
    file   of the text; empty where there is none
    line   where it begins, or its key; zero where there is none
    """

    value: Any
    key: str
    file: str
    line: int

    @property
    def where(self) -> str:
        """What an error begins with."""
        at = f"{self.file}, line {self.line}: " if self.line else ""
        return f"{at}{self.key}: " if self.key else at

    def wrong(self, why: object) -> TensorlrfError:
        """The error for what cannot be here."""
        kind = FileFormatError if self.line else ArgumentError
        return kind(f"{self.where}{why}")

    @classmethod
    def of(cls, value: Any, key: str = "") -> Node:
        """Of plain values in Python: those that a text can hold."""
        if isinstance(value, dict):
            entries = {k: cls.of(v, _joined(key, k)) for k, v in value.items()}
            return cls(entries, key, "", 0)
        if isinstance(value, (list, tuple)):
            return cls([cls.of(v, f"{key}[{k}]") for k, v in enumerate(value)], key, "", 0)
        return cls(value, key, "", 0)


def read_yaml(text: str, file: str) -> Node:
    """The one document of a text. Raises FileFormatError, naming `file` and the line."""
    yaml = _package()
    if len(text) > LARGEST:
        raise FileFormatError(f"{file} has more than {LARGEST:,} characters, and is no recipe")
    try:
        return _Events(yaml, text, file).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileFormatError(
            f"{file}, line {line}: the character {shown(chr(error.character))} is not for YAML"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        told = " ".join(filter(None, (error.context, error.problem)))
        tabs = "; indent by spaces, not by tabs" if r"'\t'" in told else ""
        raise FileFormatError(f"{file}, line {line}: this is no YAML: {told}{tabs}") from None


def write_yaml(value: Any) -> str:
    """The text of a mapping of plain values, which `read_yaml` reads as the same."""
    yaml = _package()
    events = [
        yaml.StreamStartEvent(), yaml.DocumentStartEvent(explicit=False), *_events(yaml, value, 0),
        yaml.DocumentEndEvent(explicit=False), yaml.StreamEndEvent(),
    ]  # fmt: skip
    text: str = yaml.emit(events, allow_unicode=True, width=WIDTH)
    return text


def _package() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError(
            "recipes are YAML, which needs the package PyYAML: pip install 'tensorlrf[recipe]'"
        ) from None
    return yaml


def _joined(key: str, inner: str) -> str:
    return f"{key}.{inner}" if key else str(inner)


class _Events:
    """The events of a parser, and the nodes that they make."""

    def __init__(self, yaml: Any, text: str, file: str) -> None:
        self._yaml, self._file, self._count = yaml, file, 0
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._resolvers = yaml.SafeLoader.yaml_implicit_resolvers

    def document(self) -> Node:
        next(self._events)  # the stream begins
        if isinstance(next(self._events), self._yaml.StreamEndEvent):
            return Node(None, "", self._file, 1)
        found = self._node(next(self._events), "", 0, None)
        next(self._events)  # the document ends
        more = next(self._events)
        if not isinstance(more, self._yaml.StreamEndEvent):
            raise self._refused(more, "", "a second document begins; a file is one recipe")
        return found

    def _node(self, event: Any, key: str, depth: int, line: int | None) -> Node:
        """The node that begins with an event; `line` that of its key."""
        yaml = self._yaml
        self._count += 1
        if self._count > MOST_NODES:
            raise self._refused(event, "", f"there are more than {MOST_NODES:,} values")
        if isinstance(event, yaml.AliasEvent):
            raise self._refused(event, key, f"*{event.anchor} is an alias; write out what it means")
        if event.anchor is not None:
            raise self._refused(event, key, f"&{event.anchor} is an anchor; leave it out")
        if event.tag is not None:
            raise self._refused(event, key, f"{event.tag} is a tag; leave it out")
        line = event.start_mark.line + 1 if line is None else line
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(event)
        elif depth == DEEPEST:
            raise self._refused(event, key, "it is nested too deeply")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(one := next(self._events), yaml.SequenceEndEvent):
                value.append(self._node(one, f"{key}[{len(value)}]", depth + 1, None))
        else:
            value = self._mapping(key, depth)
        return Node(value, key, self._file, line)

    def _mapping(self, key: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(one := next(self._events), self._yaml.MappingEndEvent):
            name = self._node(one, key, depth + 1, None)
            if not isinstance(one, self._yaml.ScalarEvent):
                raise name.wrong("a list or a mapping is no key")
            if isinstance(name.value, (Unclear, bool)) or name.value is None:
                raise self._refused(one, key, f"the key {one.value!r} must stand in quotes")
            if one.value in entries:
                first = entries[one.value].line
                raise self._refused(
                    one, _joined(key, one.value), f"it stands twice, first in line {first}"
                )
            line = one.start_mark.line + 1
            entries[one.value] = self._node(
                next(self._events), _joined(key, one.value), depth + 1, line
            )
        return entries

    def _scalar(self, event: Any) -> Any:
        if not event.implicit[0]:
            return event.value  # in quotes, or a block of text
        return _plain_value(event.value, self._resolvers)

    def _refused(self, event: Any, key: str, why: str) -> TensorlrfError:
        return Node(None, key, self._file, event.start_mark.line + 1).wrong(why)


def _plain_value(text: str, resolvers: Any) -> Any:
    """What a text without quotes is: by YAML 1.2, where YAML 1.1 agrees."""
    told = next(
        (tag for tag, of in resolvers.get(text[:1], []) if of.match(text)), "str"
    ).rpartition(":")[2]  # fmt: skip
    if text in NONE:
        return None
    if text in FLAGS:
        return FLAGS[text]
    if WHOLE.fullmatch(text) and told == "int" and len(text) < 30:
        return int(text)
    if NUMBER.fullmatch(text) and told in ("float", "str") and math.isfinite(float(text)):
        return float(text)
    return text if told == "str" and not NUMBER.fullmatch(text) else Unclear(text)


def _events(yaml: Any, value: Any, depth: int) -> Iterator[Any]:
    """Lists, and mappings but for the outermost two, stand in one line each."""
    if isinstance(value, dict):
        yield yaml.MappingStartEvent(None, None, True, flow_style=depth > 1)
        for key, inner in value.items():
            yield _scalar_event(yaml, key)
            yield from _events(yaml, inner, depth + 1)
        yield yaml.MappingEndEvent()
    elif isinstance(value, (list, tuple)):
        yield yaml.SequenceStartEvent(None, None, True, flow_style=True)
        for inner in value:
            yield from _events(yaml, inner, depth + 1)
        yield yaml.SequenceEndEvent()
    else:
        yield _scalar_event(yaml, value)


def _scalar_event(yaml: Any, value: Any) -> Any:
    if isinstance(value, str):
        plain = _plain_value(value, yaml.SafeLoader.yaml_implicit_resolvers)
        is_plain = type(plain) is str and value.isprintable()
        # Between single quotes some characters would be line breaks.
        style = None if is_plain else "'" if value.isprintable() else '"'
        return yaml.ScalarEvent(None, None, (is_plain, True), value, style=style)
    return yaml.ScalarEvent(None, None, (True, False), _told(value))


def _told(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    # YAML 1.1 takes 1e-05 for a word.
    return re.sub(r"^(-?\d+)e", r"\1.0e", text)
