"""Factors to files and back: safetensors, with what the tensors do not say as JSON in the header.

A file holds one factors object or a named collection of them. It is written to a temporary name
in the same folder and then renamed, so that no reader ever sees half of one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tensorlrf.errors import ArgumentError, FileFormatError, unknown
from tensorlrf.factors import FORMATS, Factors

FORMAT_VERSION = 1
_HEADER_KEY = "tensorlrf"


def save_factors(factors: Factors, path: str | os.PathLike[str]) -> None:
    """Write one factors object to `path`; read it back with `load_factors`.

    Raises ArgumentError where `factors` is not a factors object.
    """
    if not isinstance(factors, Factors):
        raise ArgumentError(
            f"factors is a {type(factors).__name__}; pass a factors object, or a mapping of them "
            "to save_factors_dict"
        )
    _write({"": factors}, path)


def load_factors(path: str | os.PathLike[str], device: str = "cpu") -> Factors:
    """The factors object that `save_factors` wrote to `path`.

    Raises FileNotFoundError, and FileFormatError for a file that is damaged, foreign, from a later
    version, or holds a named collection.
    """
    found = _read(path, device)
    if list(found) != [""]:
        raise FileFormatError(
            f"path={os.fspath(path)!r} holds {len(found)} named factors; use load_factors_dict"
        )
    return found[""]


def save_factors_dict(factors: Mapping[str, Factors], path: str | os.PathLike[str]) -> None:
    """Write named factors objects, such as those of a model's layers, to one file.

    Raises ArgumentError where the mapping is empty, a name is empty or not a string, or a value is
    not a factors object.
    """
    if not isinstance(factors, Mapping) or not factors:
        raise ArgumentError(f"factors={factors!r} must be a mapping from names to factors objects")
    for name, value in factors.items():
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"factors has the key {name!r}; names are non-empty strings")
        if not isinstance(value, Factors):
            raise ArgumentError(
                f"factors[{name!r}] is a {type(value).__name__}; pass a factors object"
            )
    _write(factors, path)


def load_factors_dict(path: str | os.PathLike[str], device: str = "cpu") -> dict[str, Factors]:
    """The named factors that `save_factors_dict` wrote, in the order they were given.

    Raises FileNotFoundError, and FileFormatError for a file that is damaged, foreign, from a later
    version, or holds a single factors object.
    """
    found = _read(path, device)
    if "" in found:
        raise FileFormatError(
            f"path={os.fspath(path)!r} holds one factors object without a name; use load_factors"
        )
    return found


def _write(factors: Mapping[str, Factors], path: str | os.PathLike[str]) -> None:
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for name, value in factors.items():
        keys = {}
        for part, tensor in value.tensors().items():
            # Positions, not names, key the tensors: a layer's name may hold any character.
            keys[part] = f"{len(entries)}.{part}"
            tensors[keys[part]] = tensor.detach().contiguous().clone()
        entries.append(
            {"name": name, "format": value.format, "meta": value.meta(), "tensors": keys}
        )
    from safetensors.torch import save_file

    header = {"version": FORMAT_VERSION, "entries": entries}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER_KEY: json.dumps(header)})


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path`, to write to; moved to `path` at the end, all or nothing.

    Raises FileNotFoundError where the folder of `path` does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path={os.fspath(path)!r}: the folder {target.parent} is missing")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | os.PathLike[str], device: str) -> dict[str, Factors]:
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={name!r} is not a file")
    try:
        with safe_open(name, framework="pt", device=device) as file:
            header = _header(name, file.metadata())
            return {e["name"]: _entry(name, e, file) for e in header["entries"]}
    except SafetensorError as error:
        raise FileFormatError(
            f"path={name!r} is damaged or not a safetensors file ({error}); write it again"
        ) from error
    except (KeyError, TypeError) as error:
        raise FileFormatError(
            f"path={name!r} has a damaged header: {error!r}; write it again"
        ) from error


def _header(name: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_HEADER_KEY)
    if text is None:
        raise FileFormatError(
            f"path={name!r} is a safetensors file without factors of tensorlrf; files to load are "
            "written by tensorlrf.io.save_factors or save_factors_dict"
        )
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"path={name!r} has a damaged header: {error}") from error
    version = header.get("version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise FileFormatError(
            f"path={name!r} has format version {version!r}; this tensorlrf reads up to "
            f"{FORMAT_VERSION}, a newer one will read it"
        )
    return dict(header)


def _entry(name: str, entry: Mapping[str, Any], file: Any) -> Factors:
    if entry["format"] not in FORMATS:
        raise FileFormatError(
            f"path={name!r}: {unknown('format', entry['format'], sorted(FORMATS))}"
        )
    parts = {part: file.get_tensor(key) for part, key in entry["tensors"].items()}
    try:
        return FORMATS[entry["format"]].from_tensors(parts, entry["meta"])
    except ArgumentError as error:
        raise FileFormatError(f"path={name!r} holds factors that do not fit: {error}") from error
