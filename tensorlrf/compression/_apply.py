"""A plan carried out on a copy of the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._calibrate import Seen, Trace, calibrated, record, replica
from tensorlrf.compression._factor import Factored, factor, factored_layer, row
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._ranks import LayerRank
from tensorlrf.compression._report import LayerReport
from tensorlrf.compression._survey import ROOT, Found, layer_at
from tensorlrf.errors import ArgumentError, CalibrationWarning, TensorlrfError

SAMPLES_PER_COLUMN = 4
"""With fewer samples than this times n, the moments fit the samples more than the data."""


@dataclass(frozen=True)
class Plan:
    """found: all modules that own parameters; ranks: of those that are to be factored."""

    found: tuple[Found, ...]
    ranks: dict[str, LayerRank]


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy. Raises ArgumentError where torch cannot make one."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ArgumentError(
            f"model cannot be copied ({type(error).__name__}: {error}); remove what deepcopy "
            "cannot take, such as tensors with a graph kept as attributes"
        ) from error


def factor_all(
    model: nn.Module,
    plan: Plan,
    method: str,
    batches: list[Any] | None,
    *,
    target: str,
    rerun: bool,
    random_state: int | torch.Generator | None,
    progress: bool,
) -> tuple[dict[str, Factored], Trace | None]:
    """Factors of every layer of the plan, those that calibration reaches in order of execution.

    With calibration the weights of `model`, a copy, are overwritten on the way by what their
    factors stand for, so that later layers see what the earlier ones will deliver. With the target
    "original" a second copy keeps the given weights and runs beside it.
    """
    done: dict[str, Factored] = {}
    trace = None
    with progress_bar("compress", len(plan.ranks), progress) as advance:

        def take(name: str, seen: Seen | None) -> None:
            weight = layer_at(model, name).weight
            try:
                done[name] = factor(name, weight, method, plan.ranks[name], seen, random_state)
            except TensorlrfError as error:
                error.add_note(f"while factoring {name}")
                raise
            advance(name)

        if batches is not None:
            names = list(plan.ranks)
            # Modes are set on a replica: the flags of the copy are to be those of the model.
            working = replica(model).eval()
            trace = record(working, names, batches[0])
            original = copy_of(working) if target == "original" else None
            passes = calibrated(working, names, trace, batches, rerun=rerun, original=original)
            with closing(passes) as layers:
                for name, seen in layers:
                    take(name, seen)
                    with torch.no_grad():
                        layer_at(model, name).weight.copy_(done[name].factors.to_dense())
            _warn(model, names, done)
        for name in plan.ranks:
            if name not in done:
                take(name, None)
    return done, trace


def replace(
    model: nn.Module, plan: Plan, done: dict[str, Factored], trace: Trace | None
) -> tuple[nn.Module, list[LayerReport]]:
    """(the model with factored layers in all their places, its rows of the report)."""
    rows = []
    for found in plan.found:
        factored = done.get(found.name)
        new = None
        if factored is not None:
            new = factored_layer(factored.factors, layer_at(model, found.name))
            for place in found.places:
                if place == ROOT:
                    model = new
                    continue
                parent, _, child = place.rpartition(".")
                setattr(model.get_submodule(parent), child, new)
        rows.append(row(found, factored, new, trace))
    return model, rows


def _warn(model: nn.Module, names: list[str], done: dict[str, Factored]) -> None:
    """One warning for all layers of a kind, not one a layer."""
    missed = [name for name in names if name not in done]
    if missed:
        _say(
            f"calibration does not reach {_some(missed)}: the plain method is used there; "
            "give batches that take the model through these layers, or skip= them"
        )
    thin = []
    for name, factored in done.items():
        n = layer_at(model, name).weight[0].numel()
        if (factored.samples or 0) < SAMPLES_PER_COLUMN * n:
            thin.append(f"{name} ({factored.samples:,} samples, n = {n:,})")
    if thin:
        _say(
            f"calibration is thin for {_some(thin)}: with fewer than {SAMPLES_PER_COLUMN} n "
            "samples (rows, or patches of a conv) the factors fit the samples more than the data; "
            "give more batches"
        )


def _say(message: str) -> None:
    # From here by way of _warn, factor_all and compress to the line that called it.
    warnings.warn(message, CalibrationWarning, stacklevel=5)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
