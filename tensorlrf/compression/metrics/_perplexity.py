"""Perplexity of a text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.compression.calibration.batches import Batch, call, names_of
from tensorlrf.compression.losses._output_loss import AT_ONCE, Readout
from tensorlrf.compression.metrics._metric import Metric, plural, weighed
from tensorlrf.compression.metrics._reading import (
    batches_of,
    check_numbers,
    check_readout,
    counting,
)
from tensorlrf.compression.metrics.windows import (
    BATCH,
    TOKENS,
    in_batches,
    read_text,
    tokens_of,
    windows_of,
)
from tensorlrf.errors import ArgumentError, ShapeError

IDS = "input_ids"
"""What models of language call their tokens."""

SEES = 1e-2
"""Part of the largest logit by which one may change with a token that it must not see: far above
the rounding of bfloat16 in another order, far below what an encoder does."""


def perplexity(
    text: Any,
    tokenizer: Any = None,
    *,
    tokens: int | None = None,
    batch_size: int | None = None,
    readout: Readout | None = None,
) -> Metric:
    """How many words a language model wavers between: exp of the mean of -log p(token | before it).

    A text is cut into windows, one after the other. Each is read by itself: its first token is
    given and all others are predicted, so that windows of another length give another number.

    Parameters
    ----------
    text : str, path, Tensor, sequence of int, or iterable of batches
        The path of a UTF-8 file; token ids, (n,), or (windows, tokens); or batches as
        `calibration=` takes them, with the ids under `input_ids` or as the first argument, and with
        a mask where there is padding. Other ones than those a model was fitted to.
    tokenizer : optional
        For a file: that of the model, from transformers or tokenizers, or a function from a text to
        ids. Tokens that it would put around a text are left out.
    tokens : int, optional
        In a window of text, 128 by default. At least 2.
    batch_size : int, optional
        Windows of text that are run together, 16 by default; the number does not depend on it.
    readout : callable, optional
        From what the model returns to its logits (batch, tokens, vocabulary).

    Returns
    -------
    Metric
        Of values from 1 on, the smaller the better. It judges by the log-likelihood of each window,
        so that `max_drop=`, which is by how much it may rise, has a bound.

    Raises
    ------
    ArgumentError
        For a text without a tokenizer, an empty one, or one shorter than a window. Called, for a
        model without logits of each token, with NaN in them, or of a smaller vocabulary.
    FileError, FileFormatError
        Where the file is missing or no text.

    References
    ----------
    Jelinek et al. 1977.

    Examples
    --------
    >>> table = torch.nn.Embedding(50, 50)
    >>> _ = torch.nn.init.zeros_(table.weight)  # all words are as likely
    >>> round(tensorlrf.metrics.perplexity(torch.arange(50).repeat(6))(table), 6)
    50.0
    """
    check_readout(readout)
    for name, value, least in (("tokens", tokens, 2), ("batch_size", batch_size, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise ArgumentError(f"{name}={value!r} must be an int of at least {least}")
    ids = _ids(text, tokenizer)
    if ids is None:
        for name, value in (
            ("tokenizer", tokenizer),
            ("tokens", tokens),
            ("batch_size", batch_size),
        ):
            if value is not None:
                raise ArgumentError(
                    f"{name}= is for text, and batches are as they are; leave it out"
                )
        return _Perplexity(text, batches_of(text), "", readout)
    size = TOKENS if tokens is None else tokens
    windows = list(ids) if isinstance(ids, Tensor) and ids.ndim == 2 else windows_of(ids, size)
    stacked = in_batches(windows, BATCH if batch_size is None else batch_size)
    made = tuple(Batch((one,), {}, k) for k, one in enumerate(stacked))
    of = f"{plural(len(windows), 'window')} of {len(windows[0])} tokens"
    return _Perplexity(text, made, of, readout)


def _ids(text: Any, tokenizer: Any) -> Sequence[int] | Tensor | None:
    """(n,) or (windows, tokens), None for batches."""
    if isinstance(text, (str, os.PathLike)):
        read = read_text(text)
        if tokenizer is None:
            raise ArgumentError(
                f"text={os.fspath(text)!r} is a file, and perplexity counts tokens: give "
                "tokenizer=, such as transformers.AutoTokenizer.from_pretrained(folder), or token "
                "ids as text="
            )
        return tokens_of(read, tokenizer)
    if isinstance(text, Tensor):
        if text.is_floating_point() or text.is_complex() or text.ndim not in (1, 2):
            raise ArgumentError(
                f"text is a tensor of {str(text.dtype).removeprefix('torch.')} and shape "
                f"{tuple(text.shape)}; token ids are integers, (n,) or (windows, tokens)"
            )
        if text.ndim == 2 and (text.shape[0] < 1 or text.shape[1] < 2):
            raise ArgumentError(
                f"text of shape {tuple(text.shape)} has no window of two tokens or more"
            )
        return text
    whole = isinstance(text, Sequence) and bool(text) and all(type(one) is int for one in text)
    return text if whole else None


@dataclass(frozen=True, repr=False, eq=False)
class _Perplexity(Metric):
    """exp of the mean of -log p, over all tokens that are predicted."""

    batches: tuple[Batch, ...]
    of: str
    readout: Readout | None

    name = "perplexity"
    larger_is_better = False

    def scores(self, model: nn.Module) -> Tensor:
        """(windows,), log p a token."""
        batches = list(self._placed(model))
        if self.of:
            self._check_causal(model, batches[0])
        parts = [self._batch(model, batch) for batch in batches]
        found, whole = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        if not whole.sum():
            raise ArgumentError("text: no token follows another one; is all of it padding?")
        return weighed(found, whole)

    def _placed(self, model: nn.Module) -> Iterator[Batch]:
        """The batches as the model is called with them: windows of a text go where it is."""
        names = names_of(model)
        home = next((p.device for p in model.parameters()), torch.device("cpu"))
        lasting: dict[str, Any] = {"use_cache": False} if "use_cache" in names else {}
        for batch in self.batches:
            if self.of:
                moved = tuple(ids.to(home) for ids in batch.args)
                batch = replace(batch, args=moved, kwargs=lasting)
            yield replace(batch, names=names)

    def _check_causal(self, model: nn.Module, batch: Batch) -> None:
        """Raise ArgumentError for a model that sees the words that it is to predict: what it says
        before the last one changes with that."""
        window = batch.args[0][:1]
        others = window[window != window[0, -1]]
        if not len(others):
            return
        changed = window.clone()
        changed[0, -1] = others[0]
        before, after = (
            self._logits(model, replace(batch, args=(ids,)))[0, :-1] for ids in (window, changed)
        )
        if float((before - after).abs().max()) > SEES * float(before.abs().max()):
            raise ArgumentError(
                "the model sees the words that it is to predict, as encoders do, and has no "
                "perplexity; judge it by agreement or cosine"
            )

    def value(self, mean: float) -> float:
        """exp(-mean); infinite beyond what float64 holds."""
        try:
            return math.exp(-mean)
        except OverflowError:
            return math.inf

    def _batch(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(windows,) each: the sum of log p, and how many tokens were predicted."""
        logits, ids = self._logits(model, batch), _ids_of(batch)
        mask = batch.mask
        there = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
        told = (there[:, 1:] & there[:, :-1]).to(logits.device)  # (batch, tokens - 1)
        targets = ids[:, 1:].to(logits.device)
        logs = torch.zeros(told.shape, dtype=torch.float64, device=logits.device)
        logs[told] = torch.cat(list(_log_p(logits[:, :-1][told], targets[told])))
        return logs.sum(1).cpu(), told.sum(1).double().cpu()

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(batch, tokens, vocabulary)"""
        ids = _ids_of(batch)
        logits = counting(call(model, batch, argument="text"), self.readout)
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise ShapeError(
                f"outputs of shape {tuple(logits.shape)} on tokens of shape {tuple(ids.shape)} are "
                "no logits (batch, tokens, vocabulary): perplexity is of language models that "
                "predict the next token"
            )
        check_numbers([logits], batch)
        if int(ids.max()) >= logits.shape[-1]:
            raise ArgumentError(
                f"text has the token {int(ids.max())}, and the model {logits.shape[-1]} words; is "
                "the tokenizer its own?"
            )
        return logits

    def _of(self) -> str:
        return self.of or plural(len(self.batches), "batch")


def _ids_of(batch: Batch) -> Tensor:
    """(batch, tokens)"""
    ids = batch.kwargs.get(IDS, batch.args[0] if batch.args else None)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ArgumentError(
            f"batch {batch.index} of text has no token ids (batch, tokens) under {IDS} or as "
            "its first argument"
        )
    return ids


def _log_p(logits: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Of each row (n, vocabulary) the log of what it gives its target, some rows at a time."""
    rows = max(1, AT_ONCE // logits.shape[-1])
    for some, of in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        yield -F.cross_entropy(some.double(), of, reduction="none")
