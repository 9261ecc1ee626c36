"""A folder with a model of transformers: read it, and write the compressed one."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf._files._folder import filling
from tensorlrf.cli._outcome import one_line, warn
from tensorlrf.compression.calibration._draws import OwnDraws
from tensorlrf.compression.checkpoint._folder import CONFIG, FILES, TENSORS, write_files
from tensorlrf.errors import (
    ArgumentError,
    FileFormatError,
    MissingExtraError,
    UnsupportedError,
)

WEIGHTS = (
    *(".safetensors", ".bin", ".h5", ".onnx", ".gguf", ".msgpack", ".pt", ".pth", ".ckpt", ".ot"),
    *(".tflite", ".onnx_data", ".index.json"),
)
"""How the names of files with dense weights end: those do not go along."""

DTYPES = ("float32", "keep")


def read_model(folder: Path, dtype: str) -> nn.Module:
    """The model of a folder in eval mode, in float32 or in the dtype of the folder ("keep").

    Its class is the first of `architectures` in config.json. Raises MissingExtraError without
    transformers, FileFormatError or UnsupportedError for a folder that is no model of it.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"--dtype {dtype} is unknown; choose one of {', '.join(DTYPES)}")
    architecture = _architecture(folder)
    transformers = _transformers(folder)
    cls: Any = getattr(transformers, architecture, None)
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not known:
        raise UnsupportedError(
            f"{folder}: the architecture {architecture!r} is none of transformers "
            f"{transformers.__version__}; compress it in Python, with tensorlrf.compress(model, "
            "...), or its .safetensors file by weights alone"
        )
    with _quiet(), OwnDraws():
        try:
            model, found = cls.from_pretrained(
                os.fspath(folder),
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32 if dtype == "float32" else "auto",
            )
        except Exception as error:  # of many kinds, and most of them say what is wrong
            raise FileFormatError(
                f"{folder}: transformers cannot load the {architecture}: {one_line(error)}"
            ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise FileFormatError(
            f"{folder}: the weights of {len(missing)} tensors of a {architecture} are missing, "
            f"{', '.join(missing[:5])}{', ...' if missing[5:] else ''}; get the folder anew, or "
            "put the class that it was saved from into architectures in config.json"
        )
    stored = _stored_dtype(folder)
    if dtype == "float32" and stored not in (None, "float32"):
        warn(f"{folder} is {stored}, the result will be float32; --dtype keep keeps {stored}")
    whole: nn.Module = model.eval()
    return whole


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder. Raises FileFormatError where it has none."""
    transformers = _transformers(folder)
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                os.fspath(folder), local_files_only=True
            )
        except Exception as error:
            raise FileFormatError(
                f"{folder}: --text needs the tokenizer of the folder, which transformers cannot "
                f"load: {one_line(error)}"
            ) from error
    # Without its files transformers makes one up that knows no words.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / str(name)).is_file() for name in files):
        raise FileFormatError(
            f"{folder}: --text needs a tokenizer, and the folder has none of the files "
            f"{', '.join(sorted(map(str, files)))}"
        )
    return tokenizer


def write_model(model: nn.Module, source: Path, target: Path, overwrite: bool) -> None:
    """A folder for `tensorlrf.load`, with all small files of the source, all or nothing.

    What was in it goes. Raises FileError where the system refuses.
    """
    others = list(_others(source))
    with filling(target, overwrite=overwrite) as fresh:
        write_files(model, fresh)
        for file in others:
            copy = fresh / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copyfile(file, copy)


def _others(source: Path) -> Iterator[Path]:
    """The files that go along: no weights of the model, nothing hidden."""
    parts = _sentence_parts(source)
    for file in sorted(source.rglob("*")):
        inside = file.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not file.is_file() or hidden or str(inside) in FILES:
            continue
        if not file.name.endswith(WEIGHTS) or any(p in parts for p in inside.parents):
            yield file


def _sentence_parts(source: Path) -> set[Path]:
    """Subfolders of the other modules of a sentence encoder, whose weights are small."""
    try:
        entries = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        return {Path(entry["path"]) for entry in entries if entry["path"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(
            f"{folder} is no model folder of transformers: it has no {CONFIG}"
        ) from None
    except ValueError as error:
        raise FileFormatError(f"{folder}: {CONFIG} is no JSON: {error}") from None
    return values if isinstance(values, dict) else {}


def _architecture(folder: Path) -> str:
    names = _config(folder).get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise FileFormatError(
            f"{folder}: {CONFIG} names no class under architectures; put the one it was saved from "
            'there, such as ["BertModel"]'
        )
    weights = [f for f in folder.iterdir() if f.name.endswith(WEIGHTS) and f.name != TENSORS]
    if (folder / TENSORS).is_file() and not weights:
        raise FileFormatError(f"{folder} is compressed already; give the dense model")
    return names[0]


def _stored_dtype(folder: Path) -> str | None:
    values = _config(folder)
    dtype = values.get("dtype", values.get("torch_dtype"))
    return dtype.removeprefix("torch.") if isinstance(dtype, str) else None


def _transformers(folder: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError(
            f"{folder} is a folder, and models of transformers need that package: "
            "pip install 'tensorlrf[hf]'"
        ) from None
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and its advice, which are not for users of this program."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
