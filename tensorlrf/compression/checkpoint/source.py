"""A folder with a model of transformers, which a stranger may have made, before others read it.

transformers follows what config.json says: to other files, to code that is fetched, to sizes that
no memory holds. Here is looked at what it would follow; all else is left to it.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from tensorlrf.compression.calibration.draws import OwnDraws
from tensorlrf.errors import (
    FileError,
    FileFormatError,
    MissingExtraError,
    UnsupportedError,
    shown,
)
from tensorlrf.files.shards import PLAIN

CONFIG, GENERATION = "config.json", "generation_config.json"

TENSORS = "tensorlrf.safetensors"
"""Our header, with a checksum of every tensor, and what no state dict has."""

PLAIN_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
DIFFUSERS_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
"""The tensors of a folder, of transformers and of diffusers: one file, or the index of shards."""

CLASS = "_class_name"
"""Of a configuration of diffusers: which of its classes it is of."""

LONGEST_CONFIG = 1 << 24
"""Bytes."""

ELSEWHERE = ("configuration_files", "transformers_weights")
"""Entries of a config.json that name other files to read."""

SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""For all calls of transformers: no code of others, nothing from the net."""

MOST_LAYERS = 1000
"""Of a model that has fewer tensors in its files than this."""

CALLS, MORE_CALLS = 50, 10_000
"""Calls of torch that it takes to build a model, at most: for each tensor in its files, and beside
these."""


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration, which names no code of others and no other files.

    Raises FileFormatError where there is none, UnsupportedError for what is not followed.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileFormatError(f"{folder} is no model folder of transformers: it has no {CONFIG}")
    try:
        if path.stat().st_size > LONGEST_CONFIG:
            raise FileFormatError(f"{folder}: {CONFIG} has more than {LONGEST_CONFIG:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        entries = list(_entries(values))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{folder}: {CONFIG} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise FileFormatError(
            f"{folder}: {CONFIG} holds {shown(values)}, not a mapping with architectures"
        )
    for key, value in entries:
        if key in ELSEWHERE:
            raise UnsupportedError(
                f"{folder}: {CONFIG} names other files under {key}; take the entry out, and give "
                "the files their usual names"
            )
        if key.endswith("_implementation") and "/" in json.dumps(value):
            raise UnsupportedError(
                f"{folder}: {CONFIG} has {key} = {shown(value)}, a kernel of others that would be "
                "fetched and run; take the entry out"
            )
    return values


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value, at any depth, and what it has."""
    inside = values.items() if isinstance(values, dict) else [("", one) for one in values]
    for key, value in inside:
        if key:
            yield key, value
        if isinstance(value, dict | list):
            yield from _entries(value)


def class_of(folder: Path, config: dict[str, Any]) -> Any:
    """The class of transformers that is the first of `architectures`.

    Raises MissingExtraError, FileFormatError, or UnsupportedError where there is none such.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError(
            f"{str(folder)!r} is a folder, and models of transformers need that package: "
            "pip install 'tensorlrf[hf]'"
        ) from None
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise FileFormatError(
            f"{folder}: {CONFIG} names no class under architectures; put the one it was saved from "
            'there, such as ["BertModel"]'
        )
    cls = getattr(transformers, names[0], None)
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise UnsupportedError(
            f"{folder}: the architecture {names[0]!r} is none of transformers "
            f"{transformers.__version__}; in Python, build the model yourself: it is what "
            "tensorlrf.compress(model, ...) and tensorlrf.load(path, model) take"
        )
    return cls


def class_of_diffusers(folder: Path, config: dict[str, Any]) -> Any:
    """The class of diffusers that a configuration names.

    Raises MissingExtraError, or UnsupportedError where there is none such.
    """
    try:
        import diffusers
    except ImportError:
        raise MissingExtraError(
            f"{str(folder)!r} is a folder of diffusers, and needs that package: pip install "
            "'tensorlrf[diffusers]'"
        ) from None
    name = config[CLASS]
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(cls, type) or not issubclass(cls, diffusers.ModelMixin):
        raise UnsupportedError(
            f"{folder}: the class {shown(name)} is no model of diffusers {diffusers.__version__}; "
            "in Python, build the model yourself: it is what tensorlrf.load(path, model) takes"
        )
    return cls


def blank(folder: Path, tensors: int, dtype: torch.dtype | None = None) -> nn.Module:
    """The architecture of config.json on the meta device, if it is one of so many tensors.

    dtype  None: everything is on meta. Otherwise torch's default one while it is built, and
           parameters alone are on meta: buffers have the values that the architecture gives them

    What is built is in proportion to the files, whatever config.json says. Raises as `config_of`
    and `class_of` do, and FileFormatError where transformers cannot build it.
    """
    config = config_of(folder)
    of_diffusers = CLASS in config
    cls = (class_of_diffusers if of_diffusers else class_of)(folder, config)
    most = max(MOST_LAYERS, tensors)
    for key, value in _entries(config):
        counts = "layer" in key or "depth" in key
        if counts and any(n > most for n in _ints(value)):
            raise _too_large(folder, f"{key} = {shown(value)}", tensors)
    where = torch.device("meta") if dtype is None else _default_dtype(dtype)
    try:
        # What is drawn for weights on meta is not to move the generator of the caller.
        with OwnDraws(), where, _parameters_on_meta(), _Bounded(CALLS * tensors + MORE_CALLS):
            if of_diffusers:
                own = {key: value for key, value in config.items() if key != "quantization_config"}
                model: nn.Module = cls.from_config(own)
            else:
                made = cls.config_class.from_pretrained(os.fspath(folder), **SAFE)
                vars(made).pop("quantization_config", None)
                model = cls(made)
    except _TooMany:
        raise _too_large(folder, "sizes", tensors) from None
    except Exception as error:  # of many kinds, for whatever is wrong with a configuration
        raise FileFormatError(
            f"{folder}: {cls.__module__.partition('.')[0]} cannot build the {cls.__name__} of "
            f"{CONFIG}: "
            f"{error or type(error).__name__}"
        ) from error
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While entered, parameters that this thread registers are on meta, before values are drawn
    for them; so are those that are made where no default device is asked for, as torch.Tensor."""
    here = threading.get_ident()

    def moved(_: nn.Module, __: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != here or is_lazy(parameter) or parameter.is_meta:
            return None  # as it is; one that is tied is on meta from its first place
        there = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        vars(there).update(vars(parameter))
        return there

    # torch declares that hooks return nothing, and says in words that they may return a parameter.
    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _ints(value: Any) -> Iterable[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]


def _too_large(folder: Path, what: str, tensors: int) -> FileFormatError:
    return FileFormatError(
        f"{folder}: {CONFIG} has {what}, a model far larger than the {tensors:,} tensors of its "
        "files; get the folder anew"
    )


class _TooMany(Exception):
    pass


class _Bounded(TorchFunctionMode):
    """Stop after so many calls of torch, in this thread."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooMany
        return func(*args, **(kwargs or {}))


# ---- names -------------------------------------------------------------------------------------


def check_inside(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise FileError where an entry is a link that leads out of the folder, or is no file.

    names  the entries to look at; None: all, at any depth, but hidden ones

    Links from the snapshot of a cache of models into its blobs are what that consists of, and good.
    """
    here = folder.resolve()
    blobs = here.parent.parent / "blobs" if here.parent.name == "snapshots" else None
    for path in _all_in(folder) if names is None else [folder / name for name in names]:
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise FileError(f"{path} is a link that leads nowhere: {error}; remove it") from None
        if target != here and here not in target.parents and target.parent != blobs:
            raise FileError(
                f"{path} is a link that leads out of the folder, to {str(target)!r}; put the file "
                "itself there if it is meant to be read"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise FileError(f"{path} is neither a file nor a folder; remove it")


def _all_in(folder: Path) -> Iterator[Path]:
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(above) / name for name in (*folders, *files) if name[:1] != ".")


def weights_of(folder: Path) -> list[Path]:
    """The files of safetensors that transformers reads of a folder, one or the shards.

    Raises FileFormatError where there are none, or the index of shards names others than files of
    the folder.
    """
    own = CLASS in config_of(folder) if (folder / CONFIG).is_file() else False
    whole, index = (folder / name for name in (DIFFUSERS_WEIGHTS if own else PLAIN_WEIGHTS))
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = sorted(one.name for one in folder.glob("*.bin"))
        told = f"; {pickled[0]} may hold code and is not opened" if pickled else ""
        raise FileFormatError(
            f"{folder} has no {whole.name} and no {index.name}{told}: load the model where you "
            "trust it, and write it with model.save_pretrained(folder), which gives safetensors"
        )
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = list(dict.fromkeys(shards))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"{index} is no index of shards: {error or type(error).__name__}; get the file anew"
        ) from None
    for name in names:
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise FileFormatError(
                f"{index} names {shown(name)}, which is no file of safetensors in the folder; get "
                "the folder anew"
            )
        if not (folder / name).is_file():
            raise FileFormatError(f"{index} names {name!r}, which is missing; get the folder anew")
    return [folder / name for name in names]
