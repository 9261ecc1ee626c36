"""Factors to files and back: safetensors, with what the tensors do not say as JSON in the header.

A file holds one factors object or a named collection of them, with a checksum of each tensor and
of the header. No reader ever sees half of one, and nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, FileFormatError, shown, unknown
from tensorlrf.factors import FORMATS, Factors
from tensorlrf.files.arguments import PathLike, as_device, as_path
from tensorlrf.files.safetensors import SafeFile, check_storable, opened, plain
from tensorlrf.files.sealed import Stored, checked, made_by, seal, unseal, write_sealed
from tensorlrf.files.strict import JsonNode

FORMAT_VERSION = 2
"""The first had no checksums."""

KEY = "tensorlrf"


def save_factors(factors: Factors, path: PathLike, *, overwrite: bool = False) -> None:
    """Write one factors object to a file; read it back with `load_factors`.

    Written beside its place and renamed, so that no half of a file is ever seen.

    Parameters
    ----------
    factors : Factors
    path : str or path
    overwrite : bool
        Whether a file that is there may be replaced.

    Raises
    ------
    FileError
        Where `path` exists or cannot be written.
    ArgumentError
        Where `factors` is not a factors object.
    UnsupportedError
        Where it has no values to write, as on the meta device.

    Examples
    --------
    >>> import os, tempfile
    >>> f = tensorlrf.svd(torch.ones(4, 6), 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "f.safetensors")
    ...     tensorlrf.io.save_factors(f, path)
    ...     again = tensorlrf.io.load_factors(path)
    >>> torch.equal(again.left, f.left)
    True
    """
    if not isinstance(factors, Factors):
        raise ArgumentError(
            f"factors is a {type(factors).__name__}; pass a factors object, or a mapping of them "
            "to save_factors_dict"
        )
    _write({"": factors}, path, overwrite)


def load_factors(path: PathLike, device: torch.device | str = "cpu") -> Factors:
    """The factors object that `save_factors` wrote.

    Parameters
    ----------
    path : str or path
    device : device or str
        Where its tensors go.

    Returns
    -------
    Factors
        A copy: what becomes of the file later does not touch it.

    Raises
    ------
    MissingFileError
        Where there is no file.
    FileFormatError
        For a file that is damaged, foreign, from a later version, or holds a named collection.
    """
    found = read(path, device).factors
    if list(found) != [""]:
        raise FileFormatError(
            f"path={os.fspath(path)!r} holds {len(found)} named factors; use load_factors_dict"
        )
    return found[""]


def save_factors_dict(
    factors: Mapping[str, Factors], path: PathLike, *, overwrite: bool = False
) -> None:
    """Write named factors objects, such as those of a model's layers, to one file.

    Parameters
    ----------
    factors : Mapping
        Name -> factors object.
    path : str or path
    overwrite : bool
        Whether a file that is there may be replaced.

    Raises
    ------
    ArgumentError
        Where the mapping is empty, a name is empty or not a string, or a value is not a factors
        object; else as `save_factors`.
    FileError, UnsupportedError
        As `save_factors`.

    Examples
    --------
    >>> import os, tempfile
    >>> named = {"fc": tensorlrf.svd(torch.ones(4, 6), 1)}
    >>> named["conv"] = tensorlrf.cp(torch.ones(3, 4, 5), 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "all.safetensors")
    ...     tensorlrf.io.save_factors_dict(named, path)
    ...     list(tensorlrf.io.load_factors_dict(path))
    ['fc', 'conv']
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
    _write(factors, path, overwrite)


def load_factors_dict(path: PathLike, device: torch.device | str = "cpu") -> dict[str, Factors]:
    """The named factors that `save_factors_dict` wrote, in the order they were given.

    Parameters
    ----------
    path : str or path
    device : device or str
        Where the tensors go.

    Returns
    -------
    dict
        Name -> factors object.

    Raises
    ------
    MissingFileError
        Where there is no file.
    FileFormatError
        For a file that is damaged, foreign, from a later version, or holds a single factors object.
    """
    found = read(path, device).factors
    if "" in found:
        raise FileFormatError(
            f"path={os.fspath(path)!r} holds one factors object without a name; use load_factors"
        )
    return found


def _write(factors: Mapping[str, Factors], path: PathLike, overwrite: bool) -> None:
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for name, value in factors.items():
        keys = {}
        for part, tensor in value.tensors().items():
            check_storable(f"factors[{name!r}].{part}" if name else part, tensor)
            # Positions, not names, key the tensors: a layer's name may hold any character.
            keys[part] = f"{len(entries)}.{part}"
            tensors[keys[part]] = plain(tensor)
        entries.append(
            {"name": name, "format": value.format, "meta": value.meta(), "tensors": keys}
        )
    header = {
        "version": FORMAT_VERSION,
        "tensorlrf": made_by(),
        "tensors": {key: Stored.of(tensor).to_json() for key, tensor in tensors.items()},
        "entries": entries,
    }
    write_sealed(path, KEY, seal(header), tensors, overwrite=overwrite)


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FactorsFile:
    """All of a file of factors.

    Parameters
    ----------
    factors : dict
        Name -> factors; one without a name has the name "".
    sealed : bool
        Whether checksums were there and right; files of the first version have none.
    """

    factors: dict[str, Factors]
    sealed: bool


def read(path: PathLike, device: torch.device | str = "cpu") -> FactorsFile:
    """What a file of factors holds; all of it is read and checked.

    Parameters
    ----------
    path : str or path
    device : device or str
        Where the tensors go.

    Returns
    -------
    FactorsFile

    Raises
    ------
    MissingFileError, FileFormatError
        As `load_factors` and `load_factors_dict` do.
    """
    target = as_device(device)
    with opened(as_path(path)) as file:
        root, tensor = _header(file)
        found: dict[str, Factors] = {}
        used: set[str] = set()
        for entry in root["entries"].entries():
            name, factors, keys = _entry(entry, file, tensor)
            if name in found or used & keys:
                entry.wrong("one of a name and with tensors of its own")
            used |= keys
            found[name] = factors.to(device=target)
        if used != set(file.tensors) or not found:
            root["entries"].wrong("about all tensors of the file")
        return FactorsFile(found, "checksum" in root.mapping())


def _header(file: SafeFile) -> tuple[JsonNode, Callable[[str], Tensor]]:
    """(the header, from the name of a tensor to its checked values)."""
    if KEY not in file.metadata:
        raise FileFormatError(
            f"path={file.path!r} is a safetensors file without factors of tensorlrf; files to load "
            "are written by tensorlrf.io.save_factors or save_factors_dict"
        )
    root = JsonNode.of_text(file.metadata[KEY], file.path)
    if root["version"].whole(1) == 1:
        root.keys_are(["version", "entries"])
        return root, file.tensor
    root = unseal(file, KEY, FORMAT_VERSION)
    root.keys_are(["checksum", "version", "tensorlrf", "tensors", "entries"])
    return root, checked(file, root["tensors"].each(Stored.read))


def _entry(
    at: JsonNode, file: SafeFile, tensor: Callable[[str], Tensor]
) -> tuple[str, Factors, set[str]]:
    """(name, factors, the names of their tensors in the file)."""
    at.keys_are(["name", "format", "meta", "tensors"])
    name, kind, keys = at["name"].text(), at["format"].text(), at["tensors"].each(JsonNode.text)
    for key in keys.values():
        if key not in file.tensors:
            at["tensors"].wrong(f"names of tensors in the file, which has no {key!r}")
    parts = {part: tensor(key) for part, key in keys.items()}
    factors = assembled(kind, parts, at["meta"].mapping(), f"path={file.path!r}")
    return name, factors, set(keys.values())


def assembled(
    kind: str, parts: Mapping[str, Tensor], meta: Mapping[str, Any], where: str
) -> Factors:
    """Factors of which a file says the format and `meta`.

    Parameters
    ----------
    kind : str
        Name of the format.
    parts : Mapping
        Name -> tensor.
    meta : Mapping
        What the tensors do not say.
    where : str
        What an error begins with.

    Returns
    -------
    Factors

    Raises
    ------
    FileFormatError
        If there are none such.
    """
    if kind not in FORMATS:
        raise FileFormatError(f"{where}: {unknown('format', kind, sorted(FORMATS))}")
    try:
        factors = FORMATS[kind].from_tensors(parts, meta)
        whole = all(type(n) is int for n in factors.shape)  # 3.0 equals 3 in all that is checked
        fits = whole and factors.tensors().keys() == parts.keys() and bool(repr(factors))
    except Exception as error:  # whatever a format trips over here is what the file says of it
        raise FileFormatError(
            f"{where} holds factors that do not fit: {error or type(error).__name__}"
        ) from error
    if not fits:
        raise FileFormatError(
            f"{where} holds {sorted(parts)} and {shown(meta)} for factors of the format {kind!r}, "
            "which has other parts or sizes that are no whole numbers; get the file anew"
        )
    return factors
