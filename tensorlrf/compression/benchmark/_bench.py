"""A model timed, in turn with another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._latency import timed_passes
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.benchmark._benchmark import Benchmark, BenchmarkRow
from tensorlrf.compression.benchmark._peak import peak_of
from tensorlrf.compression.benchmark._ratio import LEAST_PAIRS, Ratio
from tensorlrf.compression.calibration.batches import Batch, call, list_batches
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica
from tensorlrf.ops import time_calls

MODEL, AGAINST = "model", "against"

PROMPT = 8
"""Tokens that decoding goes on from: few, so that it is decoding that is timed."""


def bench(
    model: nn.Module,
    examples: Any,
    *,
    against: nn.Module | None = None,
    new_tokens: int = 32,
    seconds: float = 5.0,
) -> Benchmark:
    """How long a model takes and how much memory, in turn with another one.

    Each example is one forward. Of a model that writes text (whose `generate` says that it can) and
    an example with tokens, decoding is timed as well. Where the 95% interval of the median ratio
    covers 1, the result says that no difference is shown.

    Parameters
    ----------
    model : Module
        Run in eval mode without grad, and without wrappers of torch.compile. Stays as it is.
    examples : iterable of batches
        As `calibration=` of `compress` takes them, on the device of the models.
    against : Module, optional
        Another one that takes the same inputs, such as the dense model.
    new_tokens : int
        To be written, after the first eight of each row of tokens; 0 to leave decoding out.
    seconds : float
        For each row of the table, about: at the least six pairs are timed.

    Returns
    -------
    Benchmark

    Raises
    ------
    ArgumentError
        For what cannot be run, a model that does not take an example, two models on different
        devices, and more tokens than the model has positions for.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(model, keep_params=0.5)
    >>> found = tensorlrf.bench(small, [torch.randn(8, 64)], against=model, seconds=0.05)
    >>> found.rows[0].ratio.pairs >= 6
    True
    """
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 0:
        raise ArgumentError(f"new_tokens={new_tokens!r} must be an int of at least 0")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ArgumentError(f"seconds={seconds!r} must be above zero")
    models = {MODEL: replica(own_model(model))}
    if against is not None:
        if not isinstance(against, nn.Module):
            raise ArgumentError(
                f"against is a {type(against).__name__}; pass a torch.nn.Module, or leave it out"
            )
        models[AGAINST] = replica(own_model(against))
    homes = {name: _device(one) for name, one in models.items()}
    if len(set(homes.values())) > 1:
        raise ArgumentError(
            f"model is on {homes[MODEL]} and against on {homes[AGAINST]}; move both to one device"
        )
    rows = []
    for batch in list_batches(examples, models[MODEL], "examples"):
        rows.append(_forward(models, batch, homes[MODEL], seconds))
        ids = _ids(batch)
        if new_tokens and ids is not None and all(map(_writes, models.values())):
            rows.append(_decoding(models, ids, new_tokens, homes[MODEL], seconds))
    sizes = [_bytes(one) for one in models.values()]
    dtypes = [_dtypes(one) for one in models.values()]
    other = against is not None
    return Benchmark(
        tuple(rows), sizes[0], sizes[1] if other else None, dtypes[0], dtypes[1] if other else (),
        str(homes[MODEL]), torch.get_num_threads(), torch.__version__,
    )  # fmt: skip


def _forward(
    models: Mapping[str, nn.Module], batch: Batch, device: torch.device, seconds: float
) -> BenchmarkRow:
    peaks = {}
    for name, one in models.items():
        run = partial(call, one, batch, batch.index, "examples")
        run()  # what is kept from the first call on is no part of a later one
        peaks[name] = peak_of(run, device)
    calls = {name: timed_passes(one, [batch]) for name, one in models.items()}
    ids = _ids(batch)
    mask = batch.mask
    tokens = None if ids is None else int(ids.numel() if mask is None else mask.sum())
    return _timed("forward", _shapes(batch), tokens, calls, device, seconds, peaks)


def _decoding(
    models: Mapping[str, nn.Module],
    ids: Tensor,
    new_tokens: int,
    device: torch.device,
    seconds: float,
) -> BenchmarkRow:
    prompt = ids[:, :PROMPT]
    for name, one in models.items():
        limit = getattr(getattr(one, "config", None), "max_position_embeddings", None)
        if isinstance(limit, int) and 0 < limit < prompt.shape[1] + new_tokens:
            raise ArgumentError(
                f"new_tokens={new_tokens} after {prompt.shape[1]} are above the {limit} positions "
                f"of {name}"
            )
    calls = {name: _writing(one, name, prompt, new_tokens) for name, one in models.items()}
    told = f"{new_tokens} tokens after {tuple(prompt.shape)}"
    written = new_tokens * prompt.shape[0]
    return _timed("decoding", told, written, calls, device, seconds, {})


def _writing(model: Any, name: str, prompt: Tensor, new_tokens: int) -> Callable[[], object]:
    """So many tokens, of every row, the likeliest each time."""
    options = {
        "attention_mask": torch.ones_like(prompt), "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "use_cache": True,
        "pad_token_id": 0,
    }  # fmt: skip

    def run() -> object:
        with torch.no_grad():
            return model.generate(prompt, **options)

    try:
        run()
    except Exception as error:  # of whatever kind: it is another's code
        raise ArgumentError(
            f"{name} cannot generate: {type(error).__name__}: {error}; new_tokens=0 leaves "
            "decoding out"
        ) from error
    return run


def _timed(
    what: str,
    told: str,
    tokens: int | None,
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    peaks: Mapping[str, int],
) -> BenchmarkRow:
    samples = time_calls(calls, seconds=seconds, device=device, rounds=LEAST_PAIRS).samples
    other = samples.get(AGAINST)
    return BenchmarkRow(
        what, told, median(samples[MODEL]), tokens, peaks.get(MODEL),
        None if other is None else median(other), peaks.get(AGAINST),
        None if other is None else Ratio.of(samples[MODEL], other),
    )  # fmt: skip


def _ids(batch: Batch) -> Tensor | None:
    """(rows, tokens), of a batch that has some."""
    found = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    whole = isinstance(found, Tensor) and found.ndim == 2 and not found.is_floating_point()
    return found if whole and found is not None and found.dtype != torch.bool else None


def _writes(model: Any) -> bool:
    can = getattr(model, "can_generate", None)
    return callable(can) and bool(can())


def _shapes(batch: Batch) -> str:
    named = {**{f"{k}": v for k, v in enumerate(batch.args)}, **batch.kwargs}
    alone = len(batch.args) == 1 and not batch.kwargs
    told = [
        f"{'' if alone else f'{name} '}{tuple(value.shape)}"
        for name, value in named.items()
        if isinstance(value, Tensor)
    ]
    return ", ".join(told) or "no tensor"


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _bytes(model: nn.Module) -> int:
    """Of parameters and buffers, each once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _dtypes(model: nn.Module) -> tuple[str, ...]:
    return tuple(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
