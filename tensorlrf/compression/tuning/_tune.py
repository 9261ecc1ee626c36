"""Measuring the paths of a model's layers, and keeping the fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.tuning._choices import commit, row_of, tables_of
from tensorlrf.compression.tuning._orders import choose_orders
from tensorlrf.compression.tuning._passes import Seen, layout_for, measure, record
from tensorlrf.compression.tuning._recurrences import choose_recurrences
from tensorlrf.compression.tuning._tuning import ALL_DENSE, BucketTiming, Tuning, WholeTiming
from tensorlrf.compression.tuning._whole import bytes_held, choices_of, time_whole
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica
from tensorlrf.nn.whole import check_whole

OBJECTIVES = ("size", "latency")
SECONDS = 0.2
"""Of measuring, for each layer and bucket of rows, unless asked otherwise."""
WHOLE = 10
"""Times the seconds of a layer are spent on the whole model."""


def tune(
    model: nn.Module,
    example: Any,
    *,
    objective: str = "size",
    freeze: bool = True,
    seconds: float | None = None,
    progress: bool = True,
) -> Tuning:
    """Measure the paths of every factored layer on this device, and keep the fastest; in place.

    A step for inference: a layer whose best path is "dense" is frozen, so that it keeps its dense
    weight instead of rebuilding it in each call. **While frozen it does not see writes through
    `.data` or numpy** (`nn.FactoredLayer.freeze`); `model.train()`, `load_state_dict` or a `.to()`
    that changes something thaw it. Give `freeze=False` to a model whose weights go on changing.

    A layer that no example reaches stays as it is and is reported so. An error, or Ctrl-C, leaves
    the model as it was. Compile a model after it was tuned.

    Parameters
    ----------
    model : Module
    example : Tensor, tuple, dict or list
        A batch as the model takes it: a tensor, a tuple (positional arguments) or a dict (keyword
        arguments); or a list of batches, for other numbers of rows.
    objective : {"size", "latency"}
        "size": every layer keeps its factors, and runs the path "dense" where no other is faster.
        "latency": a layer that is fastest dense in all its buckets is replaced by torch's own dense
        layer, in all its places. Its parameters are new ones, so an optimizer must be made after
        that.
    freeze : bool
        Whether layers are frozen; else the path "dense" is timed, and runs, with the weight rebuilt
        in each call.
    seconds : float, optional
        Of measuring for each layer and bucket, 0.2 by default, ten times that for the whole model;
        what is slow takes longer, as everything runs five times.
    progress : bool
        A bar on stderr, if that is a terminal.

    Returns
    -------
    Tuning
        What was measured, and what was chosen.

    Raises
    ------
    ArgumentError
        For a model without factored layers, a compiled one, one on the meta device, an example that
        the model cannot take or that has no rows, and wrong options.

    Notes
    -----
    A replica of the model runs on the examples in eval mode without grad: once to see which numbers
    of rows M each layer gets, once to measure the layers, and then, whole, to try their choices.

    A layer is measured once in every bucket of M (a power of two) that an example takes it to, on
    the input with the most rows, while that input is there: no activation is kept for it, and it
    has the values, strides, dtype and autocast that the model gives it. All paths of a layer and
    torch's own dense layer run in turn. Paths that are equally fast within the noise (at most 5%)
    are decided by the bytes that they keep in memory. Before that, tall factors of linear layers
    (left ones) are laid in memory by columns where that is faster for the rows that came, on a CPU.

    A layer alone finds its weights and its input in cache. So its choice holds only where it proves
    itself in the model: passes with every layer on its fastest path, with dense for all that gain
    less than 10% or 30% alone, and with dense everywhere run in turn (five of each at least; the
    dense weights of all layers are held meanwhile), and the fastest of these is kept.

    The choices become `layer.path_table`, and `layer.measured[layer.device_key]`, which is saved
    with the model: loaded on such a device, it runs and is frozen as it was. Rows that were not
    measured go by the cost model, unless the measured buckets next to them on both sides agree.

    Recurrent modules go from step to step by torch's kernel or by a loop over their factors,
    whichever is faster on the first example that reaches them.

    An embedding is factored for the memory that its table takes, and against a lookup in the table
    no product wins. So it is not tried on the path "dense", and keeps its factors unless the
    objective is "latency".

    Examples
    --------
    >>> model = torch.nn.Sequential(tensorlrf.nn.factorize(torch.nn.Linear(256, 256), "svd", 8))
    >>> tuning = tensorlrf.tune(model, torch.rand(64, 256), seconds=0.01)
    >>> [layer.name for layer in tuning.layers], tuning.not_reached
    (['0'], ())
    """
    _check(model, objective, freeze, seconds)
    examples = list_examples(example)
    places = _factored(model)
    with torch.inference_mode(False):  # parameters made in it could not be trained
        own = replica(model)  # what runs, so that the model itself does not change meanwhile
        twins = _factored(own)
        freezable = {layer for layer in twins if freeze and layer._can_freeze()}
        seen = record(own, list(twins), examples)
        if not seen and all(_is_empty(one) for one in examples):
            raise ArgumentError("example has no rows, so nothing can be timed; give a full one")
        orders = choose_orders(
            model, dict(zip(places, twins, strict=True)), seen, seconds or SECONDS
        )
        alone = measure(own, twins, freezable, seen, examples, seconds or SECONDS, progress)
        measured, whole = _together(
            own, freezable, seen, alone, examples, objective, seconds or SECONDS, progress
        )
        rows = [
            row_of(
                model,
                layer,
                places[layer],
                objective,
                measured.get(twin, []),
                twin in freezable,
                orders.get(layer, ()),
            )
            for layer, twin in zip(places, twins, strict=True)
        ]
        reached = {layer: row for layer, row in zip(places, rows, strict=True) if row.reached}
        came = {layer: seen.get(twin, {}) for layer, twin in zip(places, twins, strict=True)}
        commit(model, came, reached)
        recurrences = choose_recurrences(model, examples, seconds or SECONDS, freeze=freeze)
        kept = {row.name: layer.is_frozen for layer, row in zip(places, rows, strict=True)}
        rows = [replace(row, frozen=kept[row.name]) for row in rows]
    return Tuning(objective, len(examples), tuple(rows), whole, recurrences)


def list_examples(example: Any) -> list[Any]:
    """The batches of `example`: one, or a list of them. Raises ArgumentError for anything else."""
    batches = example if isinstance(example, list) else [example]
    remedy = (
        "pass a batch (a tensor, a tuple of positional or a dict of keyword arguments) or a list "
        "of batches"
    )
    if not batches:
        raise ArgumentError(f"example=[] is empty; {remedy}")
    for k, batch in enumerate(batches):
        if not isinstance(batch, (Tensor, tuple, Mapping, Batch)):
            where = f"example[{k}]" if isinstance(example, list) else "example"
            raise ArgumentError(f"{where} is a {type(batch).__name__}; {remedy}")
    return batches


def _check(model: Any, objective: str, freeze: Any, seconds: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    check_whole(model, "a measurement, which each rank would take in its own time,")
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    if not isinstance(freeze, bool):
        raise ArgumentError(f"freeze={freeze!r} must be True or False")
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds < math.inf):
        raise ArgumentError(f"seconds={seconds!r} must be None or a time above zero, such as 0.2")
    # `torch.compile(model)` is a wrapper, `model.compile()` a mark on the model itself.
    compiled = any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
    if compiled or any(hasattr(m, "_orig_mod") for m in model.modules()):
        raise ArgumentError(
            "model is compiled, and times of its layers mean nothing then; tune the model before "
            "torch.compile"
        )


def _factored(model: nn.Module) -> dict[FactoredLayer, list[str]]:
    """Every factored layer and all its names, in the order of the model."""
    places: dict[FactoredLayer, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactoredLayer) and module.timed_paths:
            places.setdefault(module, []).append(name or ROOT)
    if not places:
        raise ArgumentError(
            "model has no factored layer, so there is nothing to tune; compress it first"
        )
    for layer, names in places.items():
        if any(p.is_meta for p in layer.parameters()):
            raise ArgumentError(
                f"model: {names[0]} is on the meta device and cannot run; load its weights first"
            )
    return places


def _is_empty(batch: Any) -> bool:
    one = Batch.of(batch)
    values = (*one.args, *one.kwargs.values())
    return any(isinstance(t, Tensor) and t.numel() == 0 for t in values)


def _together(
    model: nn.Module,
    freezable: set[FactoredLayer],
    seen: Seen,
    alone: dict[FactoredLayer, list[BucketTiming]],
    examples: list[Any],
    objective: str,
    seconds: float,
    progress: bool,
) -> tuple[dict[FactoredLayer, list[BucketTiming]], WholeTiming | None]:
    """What to keep of the choices that the layers made alone, by passes of the whole model."""
    choices = choices_of(alone)
    if len(choices) == 1:
        return alone, None
    tables = {name: tables_of(choice, freezable) for name, choice in choices.items()}
    held = {name: bytes_held(choice, objective, freezable) for name, choice in choices.items()}
    frozen = {
        layer: layout_for(layer, seen)
        for layer, rows in choices[ALL_DENSE].items()
        if layer in freezable and any(one.chosen == "dense" for one in rows)
    }
    with progress_bar("tune the whole model", None, progress) as advance:
        whole = time_whole(model, examples, tables, held, frozen, WHOLE * seconds, advance)
    return choices[whole.chosen], whole
