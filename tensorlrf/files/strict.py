"""JSON of a file read strictly: every value is of the type that is asked for, or an error says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from tensorlrf.errors import FileFormatError, shown

T = TypeVar("T")

WORDS = ("inf", "-inf", "nan")
"""That stand for what JSON has no numbers for."""


class JsonNode:
    """A JSON value of a file, and the way to it for errors.

    Each method returns what its name says, or raises FileFormatError.
    """

    def __init__(self, value: Any, where: str, path: str) -> None:
        self._value, self._where, self.path = value, where, path

    @classmethod
    def of_text(cls, text: str, path: str) -> JsonNode:
        """JSON in which no key stands twice and every number is finite."""
        try:
            value = json.loads(
                text, object_pairs_hook=once, parse_float=_finite, parse_constant=_finite
            )
        except ValueError as error:
            raise FileFormatError(f"path={path!r} has a damaged header: {error}") from None
        except RecursionError:
            raise FileFormatError(
                f"path={path!r} has a damaged header: it is nested deeply"
            ) from None
        return cls(value, "", path)

    @property
    def value(self) -> Any:
        """As it is."""
        return self._value

    def over(self, value: Any) -> JsonNode:
        """Another value in the same place."""
        return JsonNode(value, self._where, self.path)

    def wrong(self, wanted: str) -> NoReturn:
        """Raise FileFormatError: the value is not what is wanted."""
        raise FileFormatError(
            f"path={self.path!r} has a damaged header: {self._where or 'it'} is "
            f"{shown(self._value)}, not {wanted}; get the file anew"
        )

    def __getitem__(self, key: str | int) -> JsonNode:
        if isinstance(key, str) and key not in self.mapping():
            self.wrong(f"a mapping with {key!r}")
        where = f"{self._where}[{key}]" if isinstance(key, int) else f"{self._where}.{key}"
        return JsonNode(self._value[key], where.removeprefix("."), self.path)

    def keys_are(self, keys: Iterable[str], maybe: Iterable[str] = ()) -> None:
        found = set(self.mapping())
        if not set(keys) <= found <= {*keys, *maybe}:
            self.wrong(f"a mapping with {', '.join(keys)}")

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self._value, dict):
            self.wrong("a mapping")
        return self._value

    def each(self, read: Callable[[JsonNode], T]) -> dict[str, T]:
        return {key: read(self[key]) for key in self.mapping()}

    def entries(self) -> list[JsonNode]:
        if not isinstance(self._value, list):
            self.wrong("a list")
        return [self[k] for k in range(len(self._value))]

    def text(self) -> str:
        if not isinstance(self._value, str):
            self.wrong("a string")
        return self._value

    def flag(self) -> bool:
        if not isinstance(self._value, bool):
            self.wrong("true or false")
        return self._value

    def whole(self, least: int = 0) -> int:
        value = self._value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
            self.wrong(f"a whole number of at least {least}")
        return value

    def number(self) -> float:
        if isinstance(self._value, bool) or not isinstance(self._value, (int, float)):
            self.wrong("a number")
        try:
            return float(self._value)
        except OverflowError:
            self.wrong("a number of float64")

    def word_or_number(self) -> float:
        """A number, or what is none as its word."""
        return float(self._value) if self._value in WORDS else self.number()

    def wholes(self) -> tuple[int, ...]:
        if not isinstance(self._value, list) or len(self._value) > 64:
            self.wrong("a list of at most 64 whole numbers")
        return tuple(at.whole() for at in self.entries())

    def maybe(self, read: Callable[[JsonNode], T]) -> T | None:
        return None if self._value is None else read(self)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON text. Raises ValueError where a key stands twice in it."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word} is no finite number")
    return number
