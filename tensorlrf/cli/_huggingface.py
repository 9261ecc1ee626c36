"""A folder with a model of transformers: read it, and write the compressed one."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf.cli._arrays import some
from tensorlrf.cli._outcome import one_line, warn
from tensorlrf.compression.calibration.draws import OwnDraws
from tensorlrf.compression.checkpoint.companions import WEIGHTS, copy_companions, matches
from tensorlrf.compression.checkpoint.folder import TENSORS, write_files
from tensorlrf.compression.checkpoint.pretrained.card import write_card
from tensorlrf.compression.checkpoint.pretrained.quantization import METHOD, QUANTIZATION
from tensorlrf.compression.checkpoint.source import (
    CONFIG,
    SAFE,
    blank,
    check_inside,
    class_of,
    config_of,
    weights_of,
)
from tensorlrf.errors import (
    ArgumentError,
    FileFormatError,
    UnsupportedError,
    is_out_of_memory,
)
from tensorlrf.files.folder import filling
from tensorlrf.files.safetensors import opened

MOST_IN_BYTE = 4
"""Numbers that a byte of weights stands for, at most: quantised ones have two bits at least."""

DTYPES = ("float32", "keep")


def read_model(folder: Path, dtype: str) -> nn.Module:
    """The model of a folder in eval mode, in float32 or in the dtype of the folder ("keep").

    Its class is the first of `architectures` in config.json. Raises MissingExtraError without
    transformers, FileFormatError or UnsupportedError for a folder that is no model of it.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"--dtype {dtype} is unknown; choose one of {', '.join(DTYPES)}")
    check_inside(folder)
    cls = _class(folder)
    architecture = cls.__name__
    with quiet(), OwnDraws():
        _check_size(folder)
        try:
            model, found = cls.from_pretrained(
                os.fspath(folder),
                **SAFE,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32 if dtype == "float32" else "auto",
            )
        except Exception as error:  # of many kinds, and most of them say what is wrong
            if is_out_of_memory(error):
                error.add_note(
                    f"memory ended while {folder} was loaded: --dtype keep has it in the dtype of "
                    "its files, and `compress --stream` has a layer at a time"
                )
                raise
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


def read_tokenizer(folder: Path, option: str = "--text") -> Any:
    """The tokenizer of the folder, for an option. Raises FileFormatError where it has none."""
    import transformers

    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(os.fspath(folder), **SAFE)
        except Exception as error:
            raise FileFormatError(
                f"{folder}: {option} needs the tokenizer of the folder, which transformers cannot "
                f"load: {one_line(error)}"
            ) from error
    # Without its files transformers makes one up that knows no words.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / str(name)).is_file() for name in files):
        raise FileFormatError(
            f"{folder}: {option} needs a tokenizer, and the folder has none of the files "
            f"{', '.join(sorted(map(str, files)))}"
        )
    return tokenizer


def write_model(model: nn.Module, source: Path, target: Path, overwrite: bool) -> None:
    """A folder for `tensorlrf.load`, with the known small files of the source, all or nothing.

    What was in it goes. Raises FileError where the system refuses.
    """
    check_inside(source)
    with filling(target, overwrite=overwrite) as fresh:
        write_files(model, fresh)
        left = copy_companions(source, fresh)
        write_card(fresh, model)
    if left:
        warn(f"unknown files of {source} are not copied: {some(list(map(str, left)), 5)}")


def _class(folder: Path) -> Any:
    """The class of the model. Raises where it is compressed already or an adapter, too."""
    config = config_of(folder)
    told = config.get(QUANTIZATION)
    of_ours = isinstance(told, dict) and told.get("quant_method") == METHOD
    if of_ours or (
        (folder / TENSORS).is_file()
        and not any(
            file.name != TENSORS and matches(file.name, WEIGHTS) for file in folder.iterdir()
        )
    ):
        raise FileFormatError(f"{folder} is compressed already; give the dense model")
    if (folder / "adapter_config.json").exists():
        raise UnsupportedError(
            f"{folder} holds an adapter, which names its model elsewhere; merge the two, and save "
            "what comes out"
        )
    return class_of(folder, config)


def _check_size(folder: Path) -> None:
    """Raise FileFormatError where config.json makes another model than the weights are for, which
    would be filled with random numbers, however many."""
    tensors = size = 0
    for path in weights_of(folder):
        with opened(path) as file:
            tensors += len(file.tensors)
            size += path.stat().st_size
    model = blank(folder, tensors)
    numbers = sum(p.numel() for p in model.parameters())
    if numbers > MOST_IN_BYTE * size:
        raise FileFormatError(
            f"{folder}: {CONFIG} makes a model of {numbers:,} numbers, and its weights are "
            f"{size:,} bytes; get the folder anew"
        )


def _stored_dtype(folder: Path) -> str | None:
    values = config_of(folder)
    dtype = values.get("dtype", values.get("torch_dtype"))
    return dtype.removeprefix("torch.") if isinstance(dtype, str) else None


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its bars and its advice, which are not for users of this program and
    would print what files say as it is. Nothing where there is no transformers."""
    if importlib.util.find_spec("transformers") is None:
        yield
        return
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
