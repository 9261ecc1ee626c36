"""Plain text as calibration batches, and what each of them is of."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf.compression.calibration.batches import MASK
from tensorlrf.errors import ArgumentError, FileError, FileFormatError

DECODED = "decoder_input_ids"

DOCUMENTS = "documents"
"""For `--groups`: each document is a group of its own."""


def read_texts(paths: Sequence[Path], option: str = "--text") -> list[str]:
    """The documents of UTF-8 files: what blank lines separate or, in a file without any, its lines.

    Raises FileError, FileFormatError for bytes that are no UTF-8, ArgumentError where there is no
    text at all.
    """
    documents: list[str] = []
    for path in paths:
        if not path.is_file():
            raise FileError(f"{option} {path} is not a file")
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{option} {path} is no UTF-8 text: {error}") from None
        lines = [line.strip() for line in text.split("\n")]
        if "" in lines:
            parts = "\n".join(lines).split("\n\n")
            lines = [" ".join(part.split()) for part in parts]
        documents += [line for line in lines if line]
    if not documents:
        raise ArgumentError(f"{option} {', '.join(map(str, paths))}: there is no text in it")
    return documents


def read_labels(groups: str | None, texts: Sequence[str]) -> list[str] | None:
    """Of each text the label that `--groups` gives it: its own number, or a line of a file. None
    where it is not given.

    Raises FileError, FileFormatError, ArgumentError.
    """
    if groups is None:
        return None
    if groups == DOCUMENTS:
        return [str(k) for k in range(len(texts))]
    path = Path(groups)
    if not path.is_file():
        raise FileError(
            f"--groups {groups} is neither the word {DOCUMENTS} nor a file with a label for each "
            "document, one a line"
        )
    try:
        labels = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"--groups {groups} is no UTF-8 text: {error}") from None
    labels = [label.strip() for label in labels if label.strip()]
    if len(labels) != len(texts):
        raise ArgumentError(
            f"--groups {groups} has {len(labels)} labels, and --text {len(texts)} documents; give "
            "a label for each, one a line"
        )
    return labels


def batches_of(
    texts: Sequence[str],
    tokenizer: Any,
    model: Any,
    *,
    tokens: int,
    batch_size: int,
    max_batches: int | None,
    seed: int,
    labels: Sequence[str] | None = None,
) -> tuple[list[dict[str, Any]], list[list[str]] | None]:
    """(windows of at most `tokens` tokens of all texts, in padded batches with an attention mask;
    of each batch the labels of its texts, where these have any).

    Windows of a batch are of like length, so that there is little padding; the order of the batches
    and, where there are more than `max_batches`, the choice of windows are drawn by `seed`. With
    labels, a batch has whole groups, or a part of one. A decoder beside an encoder is to say what
    the encoder has read.
    """
    _check_sizes(model, tokens, batch_size, max_batches)
    accepted = inspect.signature(model.forward).parameters
    keys = [key for key in ("input_ids", "token_type_ids") if key in tokenizer.model_input_names]
    windows = _windows(texts, tokenizer, tokens, [key for key in keys if key in accepted])
    if not windows:
        raise ArgumentError("the tokenizer of the folder makes no tokens of the text")
    draw = random.Random(seed)
    if max_batches is not None and len(windows) > max_batches * batch_size:
        windows = draw.sample(windows, max_batches * batch_size)
    windows.sort(key=lambda window: len(window.keys["input_ids"]))
    chunks = _chunks(windows, batch_size) if labels is None else _whole(windows, labels, batch_size)
    # Shuffled, so that the batches held out are not of one length.
    draw.shuffle(chunks)
    pad = tokenizer.pad_token_id
    more = {"use_cache": False} if "use_cache" in accepted else {}
    made = [{**_padded(chunk, 0 if pad is None else pad), **more} for chunk in chunks]
    if getattr(model.config, "is_encoder_decoder", False) and DECODED in accepted:
        made = [{**batch, **_decoded(batch, model.config)} for batch in made]
    if labels is None:
        return made, None
    return made, [sorted({labels[window.text] for window in chunk}) for chunk in chunks]


class Window(NamedTuple):
    """text  number of the text that it is of
    keys  what the tokenizer makes of it
    """

    text: int
    keys: dict[str, list[int]]


def _chunks(windows: Sequence[Window], size: int) -> list[list[Window]]:
    return [list(windows[k : k + size]) for k in range(0, len(windows), size)]


def _whole(windows: Sequence[Window], labels: Sequence[str], size: int) -> list[list[Window]]:
    """Chunks of one group each, or of several that are small."""
    groups: dict[str, list[Window]] = {}
    for window in windows:
        groups.setdefault(labels[window.text], []).append(window)
    chunks: list[list[Window]] = []
    small: list[Window] = []
    for own in groups.values():
        if len(own) >= size:
            chunks += _chunks(own, size)
            continue
        if len(small) + len(own) > size:
            chunks.append(small)
            small = []
        small = [*small, *own]
    return [*chunks, small] if small else chunks


def _windows(
    texts: Sequence[str], tokenizer: Any, tokens: int, keys: Sequence[str]
) -> list[Window]:
    """All windows of the texts; of a tokenizer that cannot go on, the first one of each."""
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=tokens,
        return_overflowing_tokens=bool(tokenizer.is_fast),
    )
    rows = list(zip(*(encoded[key] for key in keys), strict=True))
    of = encoded.get("overflow_to_sample_mapping", range(len(rows)))
    windows = [
        Window(text, dict(zip(keys, row, strict=True))) for text, row in zip(of, rows, strict=True)
    ]
    return [window for window in windows if window.keys["input_ids"]]


def _padded(windows: Sequence[Window], pad: int) -> dict[str, Tensor]:
    """(batch, longest) each; the mask is 0 on padding, which is on the right."""
    shape = len(windows), max(len(window.keys["input_ids"]) for window in windows)
    names = (*windows[0].keys, MASK)
    batch = {key: torch.zeros(shape, dtype=torch.long, device="cpu") for key in names}
    batch["input_ids"].fill_(pad)
    for k, window in enumerate(windows):
        for key, ids in window.keys.items():
            batch[key][k, : len(ids)] = torch.tensor(ids, device="cpu")
        batch[MASK][k, : len(window.keys["input_ids"])] = 1
    return batch


def _decoded(batch: dict[str, Any], config: Any) -> dict[str, Tensor]:
    """What a decoder is given that is to say the text again: a token to start with, and all others
    one later, so that it has as many as the encoder."""
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    known = (getattr(config, name, None) for name in names)
    start = next((token for token in known if token is not None), 0)
    ids = batch["input_ids"]
    shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return {DECODED: shifted, f"decoder_{MASK}": batch[MASK]}


def _check_sizes(model: Any, tokens: int, batch_size: int, max_batches: int | None) -> None:
    for option, value in (("batch-size", batch_size), ("max-batches", max_batches)):
        if value is not None and value < 1:
            raise ArgumentError(f"--{option} {value} must be at least 1")
    if tokens < 8:
        raise ArgumentError(f"--tokens {tokens} must be at least 8")
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < tokens:
        raise ArgumentError(f"--tokens {tokens} is above the {limit} positions of the model")
