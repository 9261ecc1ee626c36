"""Measuring the paths of a model's layers, and keeping the fastest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import _disable_current_modes

from tensorlrf.compression._latency import (
    TORCH,
    comes_channels_last,
    layout_of,
    pick,
    resident_bytes,
    time_layer,
    torch_layer,
)
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.tuning._tuning import (
    ALL_DENSE,
    BucketTiming,
    LayerTuning,
    Tuning,
    WholeTiming,
)
from tensorlrf.compression.tuning._whole import bytes_held, choices_of, chosen_for, time_whole
from tensorlrf.errors import ArgumentError, TensorlrfError, UnsupportedError, unknown
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica
from tensorlrf.ops import PathTable
from tensorlrf.ops.buckets import BUCKETS, bucket

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
    are decided by the bytes that they keep in memory.

    A layer alone finds its weights and its input in cache. So its choice holds only where it proves
    itself in the model: passes with every layer on its fastest path, with dense for all that gain
    less than 10% or 30% alone, and with dense everywhere run in turn (five of each at least; the
    dense weights of all layers are held meanwhile), and the fastest of these is kept.

    The choices become `layer.path_table`, and `layer.measured[layer.device_key]`, which is saved
    with the model: loaded on such a device, it runs and is frozen as it was. Rows that were not
    measured go by the cost model, unless the measured buckets next to them on both sides agree.

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
        seen = _record(own, list(twins), examples)
        if not seen and all(_is_empty(one) for one in examples):
            raise ArgumentError("example has no rows, so nothing can be timed; give a full one")
        alone = _measure(own, twins, freezable, seen, examples, seconds or SECONDS, progress)
        measured, whole = _together(
            own, freezable, seen, alone, examples, objective, seconds or SECONDS, progress
        )
        rows = [
            _row(model, layer, places[layer], objective, measured.get(twin, []), twin in freezable)
            for layer, twin in zip(places, twins, strict=True)
        ]
        reached = {layer: row for layer, row in zip(places, rows, strict=True) if row.reached}
        came = {layer: seen.get(twin, {}) for layer, twin in zip(places, twins, strict=True)}
        _commit(model, came, reached)
    return Tuning(objective, len(examples), tuple(rows), whole)


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
        if not isinstance(batch, (Tensor, tuple, Mapping)):
            where = f"example[{k}]" if isinstance(example, list) else "example"
            raise ArgumentError(f"{where} is a {type(batch).__name__}; {remedy}")
    return batches


def table_of(layer: FactoredLayer, chosen: Mapping[int, str], frozen: bool) -> PathTable:
    """The path table of a layer with measured choices, bucket -> path."""
    by_cost = layer._default_path_table(frozen)
    choices = {}
    for rows in BUCKETS:
        below = max((b for b in chosen if b <= rows), default=None)
        above = min((b for b in chosen if b >= rows), default=None)
        if below is not None and above is not None and chosen[below] == chosen[above]:
            choices[rows] = chosen[below]
        else:
            choices[rows] = by_cost.lookup(rows)
    return PathTable.from_choices(choices)


def _tables(
    timed: Mapping[FactoredLayer, Sequence[BucketTiming]], freezable: Container[FactoredLayer]
) -> dict[FactoredLayer, PathTable]:
    return {
        layer: table_of(
            layer,
            {one.bucket: one.chosen for one in rows},
            layer in freezable and any(one.chosen == "dense" for one in rows),
        )
        for layer, rows in timed.items()
    }


# ---- what comes in ------------------------------------------------------------------------------


def _check(model: Any, objective: str, freeze: Any, seconds: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
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
        if isinstance(module, FactoredLayer):
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
    values = batch.values() if isinstance(batch, Mapping) else batch
    tensors = [batch] if isinstance(batch, Tensor) else [t for t in values if isinstance(t, Tensor)]
    return any(t.numel() == 0 for t in tensors)


# ---- the two passes -----------------------------------------------------------------------------


@dataclass
class _Seen:
    """The calls of a layer in one bucket of rows: how many, and where the one with the most rows
    was: the example, the number of the call in its pass, and whether it came channels last."""

    calls: int = 0
    rows: int = 0
    example: int = 0
    call: int = 0
    channels_last: bool = False


def _record(
    model: nn.Module, layers: list[FactoredLayer], examples: list[Any]
) -> dict[FactoredLayer, dict[int, _Seen]]:
    """What each layer is called with."""
    seen: dict[FactoredLayer, dict[int, _Seen]] = {}

    def called(layer: FactoredLayer, x: Tensor, example: int, nth: int) -> None:
        rows = layer._rows(x)
        if rows == 0:
            return
        buckets = seen.setdefault(layer, {})
        one = buckets.setdefault(bucket(rows), _Seen())
        one.calls += 1
        if rows > one.rows:
            one.rows, one.example, one.call = rows, example, nth
            one.channels_last = comes_channels_last(layer, x)

    for k, batch in enumerate(examples):
        _pass(model, layers, batch, k, called)
    return seen


def _measure(
    model: nn.Module,
    places: dict[FactoredLayer, list[str]],
    freezable: Container[FactoredLayer],
    seen: dict[FactoredLayer, dict[int, _Seen]],
    examples: list[Any],
    seconds: float,
    progress: bool,
) -> dict[FactoredLayer, list[BucketTiming]]:
    """Times of each layer in each of its buckets, in ascending order."""
    wanted = {(layer, one.example, one.call): one for layer in seen for one in seen[layer].values()}
    timed: dict[FactoredLayer, list[BucketTiming]] = {}
    with progress_bar("tune", len(wanted), progress) as advance:

        def called(layer: FactoredLayer, x: Tensor, example: int, nth: int) -> None:
            one = wanted.get((layer, example, nth))
            if one is not None:
                timing = _time(layer, x, one, seconds, layer in freezable, places[layer][0])
                timed.setdefault(layer, []).append(timing)
                advance(places[layer][0])

        for k, batch in enumerate(examples):
            here = {layer for layer, example, _ in wanted if example == k}
            if here:
                _pass(model, [layer for layer in places if layer in here], batch, k, called)
    return {layer: sorted(rows, key=lambda one: one.bucket) for layer, rows in timed.items()}


def _together(
    model: nn.Module,
    freezable: set[FactoredLayer],
    seen: dict[FactoredLayer, dict[int, _Seen]],
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
    tables = {name: _tables(choice, freezable) for name, choice in choices.items()}
    held = {name: bytes_held(choice, objective, freezable) for name, choice in choices.items()}
    frozen = {
        layer: _layout(layer, seen)
        for layer, rows in choices[ALL_DENSE].items()
        if layer in freezable and any(one.chosen == "dense" for one in rows)
    }
    with progress_bar("tune the whole model", None, progress) as advance:
        whole = time_whole(model, examples, tables, held, frozen, WHOLE * seconds, advance)
    return choices[whole.chosen], whole


def _layout(
    layer: FactoredLayer, seen: Mapping[FactoredLayer, Mapping[int, _Seen]]
) -> torch.memory_format:
    """Of a dense weight for the inputs that the layer has seen."""
    return layout_of(layer, any(one.channels_last for one in seen[layer].values()))


Called = Callable[[FactoredLayer, Tensor, int, int], None]


def _pass(
    model: nn.Module, layers: list[FactoredLayer], batch: Any, example: int, called: Called
) -> None:
    """One pass that tells `called` the layer, its input, the example and the number of the call.

    Each draws the same random numbers, so that all take the same course.
    """
    counts: Counter[FactoredLayer] = Counter()

    # After the layer has run: what it cannot take it has then refused in its own words.
    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        nth = counts[layer]
        counts[layer] += 1
        with _disable_current_modes():  # that of the draws would take part in what is timed
            called(layer, x, example, nth)

    with _hooked(layers, hook):
        call(model, batch, example, "example")


@contextmanager
def _hooked(layers: list[FactoredLayer], hook: Callable[..., None]) -> Iterator[None]:
    with ExitStack() as handles:
        for layer in layers:
            handle = layer.register_forward_hook(hook, with_kwargs=True)
            handles.callback(handle.remove)
        yield


def _time(
    layer: FactoredLayer, x: Tensor, one: _Seen, seconds: float, freeze: bool, name: str
) -> BucketTiming:
    try:
        timings = time_layer(layer, x, seconds, freeze=freeze)
    except TensorlrfError as error:
        error.add_note(f"while timing {name}")
        raise
    except Exception as error:
        raise UnsupportedError(
            f"model: a path of {name} cannot be timed on its input {tuple(x.shape)}: "
            f"{type(error).__name__}: {error}. Give a smaller example, or leave the model untuned"
        ) from error
    held = resident_bytes(layer, freeze=freeze)
    chosen = pick(timings, {path: held[path] for path in layer.timed_paths})
    fastest = pick(timings, {way: held[way] for way in timings.samples})
    seconds_of = {path: timings.median(path) for path in layer.timed_paths}
    # Of parametrised factors torch has no layer; an embedding has no time on the path "dense".
    dense = next((way for way in (TORCH, "dense") if way in timings.samples), chosen)
    return BucketTiming(
        bucket=bucket(one.rows),
        rows=one.rows,
        input=tuple(x.shape),
        calls=one.calls,
        seconds=seconds_of,
        dense_seconds=timings.median(dense),
        chosen=chosen,
        dense_wins=fastest in (TORCH, "dense"),
    )


# ---- what comes out -----------------------------------------------------------------------------


def _row(
    model: nn.Module,
    layer: FactoredLayer,
    names: list[str],
    objective: str,
    timings: list[BucketTiming],
    freezable: bool,
) -> LayerTuning:
    factors = layer.factors
    frozen = freezable and any(one.chosen == "dense" for one in timings)
    row = LayerTuning(
        name=names[0],
        places=tuple(names),
        kind=layer.stands_for,
        format=factors.format,
        rank=factors.rank,
        device_key=layer._key(frozen),
        timings=tuple(timings),
        replaced=False,
        frozen=frozen,
        note="",
        factor_bytes=factors.n_bytes,
        dense_bytes=resident_bytes(layer, freeze=frozen)[TORCH],
    )
    if objective == "size" or not row.dense_wins:
        return row
    reason = _why_not_dense(model, layer, names)
    note = f"is fastest dense, but {reason}; it keeps its factors" if reason else ""
    return replace(row, replaced=not reason, frozen=frozen and bool(reason), note=note)


def _why_not_dense(model: nn.Module, layer: FactoredLayer, names: list[str]) -> str:
    """Why torch's dense layer cannot take its place; empty where it can."""
    if ROOT in names:
        return "it is the model itself, which cannot be replaced in place (see tensorlrf.densify)"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, name) for name in hooks):
        return "it has hooks, which a new layer would not have"
    if "forward" in vars(layer):
        return "its forward is replaced on the instance"
    if is_parametrized(layer):
        return "its factors are parametrised"
    own = {id(p) for p in layer.parameters()}
    for module in model.modules():
        if module is not layer and own & {id(p) for p in module._parameters.values()}:
            return "it shares parameters with another module"
    return ""


def _commit(
    model: nn.Module,
    seen: dict[FactoredLayer, dict[int, _Seen]],
    rows: dict[FactoredLayer, LayerTuning],
) -> None:
    """Write the choices into the model: all of them or, when interrupted, none."""
    dense = {}
    for layer, row in rows.items():
        if row.replaced:
            last = any(one.channels_last for one in seen[layer].values())
            dense[layer] = torch_layer(layer, channels_last=last)
    with ExitStack() as undo:
        for layer, row in rows.items():
            undo.callback(vars(layer).update, chosen_for(layer), measured=dict(layer.measured))
            if row.frozen:
                layer.freeze(memory_format=_layout(layer, seen))
            else:
                layer.thaw()
            # What was measured of the layer in its other state is no longer its choice.
            layer.measured.pop(layer._key(not row.frozen), None)
            chosen = {one.bucket: one.chosen for one in row.timings}
            layer.set_measured(layer.device_key, table_of(layer, chosen, row.frozen))
            for place in row.places if row.replaced else ():
                parent, _, child = place.rpartition(".")
                holder = model.get_submodule(parent)
                undo.callback(setattr, holder, child, layer)
                setattr(holder, child, dense[layer])
        undo.pop_all()
