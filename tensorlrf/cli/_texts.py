"""Plain text as calibration batches."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression.calibration.batches import MASK
from tensorlrf.errors import ArgumentError, FileError, FileFormatError

TOKENS = 128
BATCH = 16


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 files: what blank lines separate or, in a file without any, its lines.

    Raises FileError, FileFormatError for bytes that are no UTF-8, ArgumentError where there is no
    text at all.
    """
    documents: list[str] = []
    for path in paths:
        if not path.is_file():
            raise FileError(f"--text {path} is not a file")
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"--text {path} is no UTF-8 text: {error}") from None
        lines = [line.strip() for line in text.split("\n")]
        if "" in lines:
            parts = "\n".join(lines).split("\n\n")
            lines = [" ".join(part.split()) for part in parts]
        documents += [line for line in lines if line]
    if not documents:
        raise ArgumentError(f"--text {', '.join(map(str, paths))}: there is no text in it")
    return documents


def batches_of(
    texts: Sequence[str],
    tokenizer: Any,
    model: Any,
    *,
    tokens: int,
    batch_size: int,
    max_batches: int | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Windows of at most `tokens` tokens of all texts, in padded batches with an attention mask.

    Windows of a batch are of like length, so that there is little padding; the order of the batches
    and, where there are more than `max_batches`, the choice of windows are drawn by `seed`.
    """
    _check_sizes(model, tokens, batch_size, max_batches)
    accepted = inspect.signature(model.forward).parameters
    keys = [key for key in ("input_ids", "token_type_ids") if key in tokenizer.model_input_names]
    windows = _windows(texts, tokenizer, tokens, [key for key in keys if key in accepted])
    if not windows:
        raise ArgumentError("--text: the tokenizer of the folder makes no tokens of it")
    draw = random.Random(seed)
    if max_batches is not None and len(windows) > max_batches * batch_size:
        windows = draw.sample(windows, max_batches * batch_size)
    windows.sort(key=lambda window: len(window["input_ids"]))
    pad = tokenizer.pad_token_id
    chunks = [windows[k : k + batch_size] for k in range(0, len(windows), batch_size)]
    # Shuffled, so that the batches held out are not of one length.
    draw.shuffle(chunks)
    more = {"use_cache": False} if "use_cache" in accepted else {}
    return [{**_padded(chunk, 0 if pad is None else pad), **more} for chunk in chunks]


def _windows(
    texts: Sequence[str], tokenizer: Any, tokens: int, keys: Sequence[str]
) -> list[dict[str, list[int]]]:
    """All windows of the texts; of a tokenizer that cannot go on, the first one of each."""
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=tokens,
        return_overflowing_tokens=bool(tokenizer.is_fast),
    )
    rows = zip(*(encoded[key] for key in keys), strict=True)
    windows = [dict(zip(keys, row, strict=True)) for row in rows]
    return [window for window in windows if window["input_ids"]]


def _padded(windows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """(batch, longest) each; the mask is 0 on padding, which is on the right."""
    shape = len(windows), max(len(window["input_ids"]) for window in windows)
    batch = {key: torch.zeros(shape, dtype=torch.long, device="cpu") for key in (*windows[0], MASK)}
    batch["input_ids"].fill_(pad)
    for k, window in enumerate(windows):
        for key, ids in window.items():
            batch[key][k, : len(ids)] = torch.tensor(ids, device="cpu")
        batch[MASK][k, : len(window["input_ids"])] = 1
    return batch


def _check_sizes(model: Any, tokens: int, batch_size: int, max_batches: int | None) -> None:
    for option, value in (("batch-size", batch_size), ("max-batches", max_batches)):
        if value is not None and value < 1:
            raise ArgumentError(f"--{option} {value} must be at least 1")
    if tokens < 8:
        raise ArgumentError(f"--tokens {tokens} must be at least 8")
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < tokens:
        raise ArgumentError(f"--tokens {tokens} is above the {limit} positions of the model")
