"""`--evaluate`: one of tensorlrf.metrics, on text of its own, or a metric of the user's by name."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tensorlrf.cli._huggingface import read_tokenizer
from tensorlrf.cli._outcome import warn
from tensorlrf.cli._texts import batches_of, read_texts
from tensorlrf.compression.metrics import agreement, cosine, perplexity
from tensorlrf.compression.metrics.windows import BATCH, TOKENS
from tensorlrf.errors import ArgumentError, FileError, TensorlrfError

PERPLEXITY = "perplexity"
BESIDE = {"agreement": agreement, "cosine": cosine}
READY = (PERPLEXITY, *BESIDE)
"""Words that are metrics, and no modules."""


@dataclass(frozen=True)
class Evaluation:
    """What `--evaluate` asks for.

    name      as it was given
    word      the metric, where it is one of ours
    file      text to evaluate on, or None for that of --text
    function  the user's own, where it is none of ours
    """

    name: str
    word: str = ""
    file: Path | None = None
    function: Any = None

    def own_file(self, text: list[Path]) -> Path | None:
        """The file, unless it is all of `text`; a warning where it is a part."""
        if self.file is None or self.file.resolve() not in {one.resolve() for one in text}:
            return self.file
        if len(text) > 1:
            warn(f"--evaluate {self.name}: that file is in --text, which models are fitted to")
        return self.file if len(text) > 1 else None


def metric_for(
    asked: Evaluation | None,
    model: nn.Module,
    folder: Path,
    batches: Any,
    text: list[Path],
    tokens: int | None,
    batch_size: int | None,
) -> Any:
    """For `evaluate=`, or None.

    model    the dense one, of the folder
    batches  those that models are fitted to, or None; they are `text`
    """
    if asked is None or not asked.word:
        return None if asked is None else asked.function
    file = asked.own_file(text)
    if file is None and batches is None:
        raise ArgumentError(
            f"--evaluate {asked.name} has nothing to evaluate on: give {asked.word}:FILE, or --text"
        )
    try:
        if asked.word == PERPLEXITY and file is not None:
            tokenizer = read_tokenizer(folder, "--evaluate")
            return perplexity(file, tokenizer, tokens=tokens, batch_size=batch_size)
        if file is not None:
            batches, _ = batches_of(
                read_texts([file], "--evaluate"), read_tokenizer(folder, "--evaluate"), model,
                tokens=TOKENS if tokens is None else tokens,
                batch_size=BATCH if batch_size is None else batch_size, max_batches=None, seed=0,
            )  # fmt: skip
        if asked.word == PERPLEXITY:
            return perplexity(batches)
        return BESIDE[asked.word](batches, model)
    except TensorlrfError as error:
        raise type(error)(f"--evaluate {asked.name}: {error}") from error


def read_evaluate(name: str | None) -> Evaluation | None:
    """What is asked for; modules are looked for in the current folder as well. None for None.

    Raises ArgumentError where there is no such function, FileError where there is no such file.
    That module's code is run.
    """
    if name is None:
        return None
    word, colon, rest = name.partition(":")
    if word not in READY:
        return Evaluation(name, function=_function(name))
    if colon and not Path(rest).is_file():
        raise FileError(f"--evaluate {name}: {rest or 'what follows the colon'} is not a file")
    return Evaluation(name, word, Path(rest) if colon else None)


def _function(name: str) -> Any:
    """The function, or pair of functions, of that name."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ArgumentError(
            f"--evaluate {name} must be one of {', '.join(READY)}, best with text of its own as in "
            f"{PERPLEXITY}:held_out.txt, or module:function, as in metrics:accuracy for a function "
            "in metrics.py here"
        )
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ArgumentError(
            f"--evaluate {name}: the module cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        with suppress(ValueError):
            sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ArgumentError(f"--evaluate {name}: {module} has no {attribute}")
        found = getattr(found, part)
    return found
