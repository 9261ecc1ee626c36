"""`metric=`: what the errors of each layer's outputs count, and whether that serves the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.fit._fitting import AUTO, LOSS, OUTPUTS, Fitting
from tensorlrf.compression.losses._curvature import output_metrics, with_room
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.plan._matrix_ranks import matrix_ranks
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import (
    ArgumentError,
    CalibrationWarning,
    GroupError,
    is_out_of_memory,
    warn,
)

CLEARLY = 0.9
"""Of the loss by "outputs" that "loss" may leave: the few batches held out tell no less apart."""


def with_metrics(
    model: nn.Module, plan: Plan, data: Calibration, fitting: Fitting, probe: Probe | None = None
) -> Calibration:
    """The calibration with the metrics of the layers' outputs that the fitting asks for, by what a
    `probe` knows of the layers where there is one.

    Warns (CalibrationWarning) of a model that cannot be differentiated, where not by "auto": it has
    none.
    """
    names = [row.name for row in plan.factored]
    if fitting.metric == OUTPUTS or not names:
        return data
    if probe is None:
        probe = Probe(
            model, names, data, fitting.loss, fitting.readout, fitting.random_state,
            fitting.progress,
        )  # fmt: skip
    loss = probe.output_loss
    if fitting.metric == AUTO and not probe.hears:
        return data
    metrics = {name: probe.metrics[name] for name in names if name in probe.metrics}
    if not probe.metrics:
        metrics = _gathered(model, names, data, fitting, loss)
    lost = {} if fitting.metric == LOSS or not metrics else trial(plan, probe, metrics)
    serves = not lost or lost[LOSS] < CLEARLY * lost[OUTPUTS]
    return replace(data, metrics=metrics) if serves else data


def _gathered(
    model: nn.Module, names: list[str], data: Calibration, fitting: Fitting, loss: OutputLoss
) -> dict[str, Metrics]:
    """By passes of their own; none of a model that cannot be differentiated."""
    draws = generator(fitting.random_state, dense_layer_at(model, names[0]).device)
    ended, metrics, reason = (
        False,
        {},
        "the model cannot be differentiated (its outputs have no gradient)",
    )
    try:
        with progress_bar("differentiate", None, fitting.progress) as advance:
            metrics = output_metrics(model, names, data, loss, draws, partial(advance, ""))
    except GroupError:
        raise
    except (RuntimeError, ArgumentError) as error:
        if fitting.metric != AUTO and not isinstance(error, RuntimeError):
            raise
        first = str(error).partition("\n")[0]
        reason = f"the model cannot be differentiated ({first})"
        if is_out_of_memory(error):
            ended, reason = True, f"memory ends in it, and smaller batches take less ({first})"
    if not with_room(model, names, data.room):
        reason = "there is no room for as many numbers as its layers have outputs squared"
    if not metrics and (fitting.metric != AUTO or ended):
        warn(
            f"metric={fitting.metric!r}: {reason}: errors of a layer's outputs count alike, as by "
            "metric='outputs'",
            CalibrationWarning,
        )
    return metrics


def trial(plan: Plan, probe: Probe, metrics: Mapping[str, Metrics]) -> dict[str, float]:
    """The loss of the whole model on the batches that judge, by either metric: with all layers cut
    at once, to low-rank matrices of as many parameters as the plan gives them."""
    ranks = _ranks(plan, probe)
    return {OUTPUTS: probe.loss_at(ranks), LOSS: probe.loss_at(ranks, metrics)}


def _ranks(plan: Plan, probe: Probe) -> dict[str, int]:
    """Of the matrices that stand in for what is planned; where the fit decides, by its error."""
    ranks = matrix_ranks(plan.layers)
    open_ = {row.name: row.method for row in plan.factored if row.name not in ranks}
    for bases in probe.parts() if open_ else ():
        for name in open_.keys() & bases.keys():
            method, basis = open_[name], bases[name]
            error = None if method is None else method.error
            ranks[name] = basis.full if error is None else basis.rank_within(error)
    return ranks
