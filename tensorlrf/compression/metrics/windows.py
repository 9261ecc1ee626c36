"""Text and tokens as windows that a language model is judged on."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, FileFormatError, MissingFileError

TOKENS = 128
"""Of a window."""

BATCH = 16
"""Windows that are run together."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole of a UTF-8 file. Raises MissingFileError, FileFormatError, and ArgumentError where
    there is nothing in it."""
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(
            f"text={os.fspath(path)!r} is not a file; give the path of one, token ids, or batches"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"text={os.fspath(path)!r} is no UTF-8 text: {error}") from None
    if not text.strip():
        raise ArgumentError(f"text={os.fspath(path)!r}: there is no text in it")
    return text


def tokens_of(text: str, tokenizer: Any) -> list[int]:
    """What a tokenizer makes of a text, without the tokens that it puts around one.

    tokenizer  of transformers or of tokenizers, or a function from a text to ids

    Raises ArgumentError where it is none, or fails.
    """
    encode = tokenizer if callable(tokenizer) else getattr(tokenizer, "encode", None)
    if encode is None or isinstance(tokenizer, (str, type)):
        raise ArgumentError(
            f"tokenizer is a {type(tokenizer).__name__}; pass that of the model, such as "
            "transformers.AutoTokenizer.from_pretrained(folder), or a function from a text to ids"
        )
    try:
        plain = {"add_special_tokens": False} if _takes(encode, "add_special_tokens") else {}
        quiet = {"verbose": False} if _takes(encode, "verbose") else {}
        made = encode(text, **plain, **quiet)
        made = made["input_ids"] if isinstance(made, Mapping) else getattr(made, "ids", made)
        ids = [int(one) for one in made]
    except Exception as error:  # of whatever kind: it is another's code
        raise ArgumentError(
            f"tokenizer fails on the text: {type(error).__name__}: {error}"
        ) from error
    return ids


def _takes(function: Any, argument: str) -> bool:
    """Whether it is named among the arguments; of what is not written in Python it is not known."""
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def windows_of(ids: Sequence[int] | Tensor, tokens: int) -> list[Tensor]:
    """Pieces of so many tokens, one after the other, and a shorter one at the end unless it is a
    single token, which there is nothing to predict in.

    Raises ArgumentError where there is less than one piece.
    """
    flat = torch.as_tensor(ids, dtype=torch.long, device="cpu")
    if len(flat) < tokens:
        raise ArgumentError(
            f"text has {len(flat):,} tokens, fewer than one window of {tokens}; give more of it, "
            f"or tokens={max(2, len(flat))}"
        )
    return [piece for piece in torch.split(flat, tokens) if len(piece) > 1]


def in_batches(windows: Sequence[Tensor], size: int) -> list[Tensor]:
    """Windows of one length together, (at most size, tokens) each."""
    found: list[list[Tensor]] = []
    for window in windows:
        if not found or len(found[-1]) == size or len(found[-1][0]) != len(window):
            found.append([])
        found[-1].append(window)
    return [torch.stack(part) for part in found]
