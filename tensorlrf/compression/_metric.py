"""`metric=`: what the errors of each layer's outputs count, and whether that serves the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.fit._fitting import AUTO, LOSS, OUTPUTS, Fitting
from tensorlrf.compression.losses._bases import Basis, sums_bytes
from tensorlrf.compression.losses._curvature import output_metrics, with_room
from tensorlrf.compression.losses._fisher import bases_of
from tensorlrf.compression.losses._measured import loss_of
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, CalibrationWarning, warn
from tensorlrf.nn.copies import copy_of, replica

CLEARLY = 0.9
"""Of the loss by "outputs" that "loss" may leave: the few batches held out tell no less apart."""


def with_metrics(
    model: nn.Module, plan: Plan, data: Calibration, fitting: Fitting, probe: Probe | None = None
) -> Calibration:
    """The calibration with the metrics of the layers' outputs that the fitting asks for; what a
    `probe` knows of the layers is taken from it.

    Warns (CalibrationWarning) of a model that cannot be differentiated, where not by "auto": it has
    none.
    """
    bases, known = ({}, {}) if probe is None else probe.taken()
    names = [row.name for row in plan.factored]
    if fitting.metric == OUTPUTS or not names:
        return data
    loss = OutputLoss.of_model(fitting.loss, fitting.readout, model, data.judging[0])
    batch = data.judging[0]
    if fitting.metric == AUTO and not loss.hears(call(replica(model), batch), batch):
        return data
    metrics = {name: known[name] for name in names if name in known}
    if not known:
        metrics = _gathered(model, names, data, fitting, loss)
    weighted = replace(data, metrics=metrics)
    if not metrics or fitting.metric == LOSS:
        return weighted
    lost = trial(model, plan, weighted, fitting, loss, bases)
    return weighted if lost[LOSS] < CLEARLY * lost[OUTPUTS] else data


def _gathered(
    model: nn.Module, names: list[str], data: Calibration, fitting: Fitting, loss: OutputLoss
) -> dict[str, Metrics]:
    """By passes of their own; none of a model that cannot be differentiated."""
    draws = generator(fitting.random_state, dense_layer_at(model, names[0]).device)
    metrics, reason = {}, "the model cannot be differentiated (its outputs have no gradient)"
    try:
        with progress_bar("differentiate", None, fitting.progress) as advance:
            metrics = output_metrics(model, names, data, loss, draws, partial(advance, ""))
    except (RuntimeError, ArgumentError) as error:
        if fitting.metric != AUTO and not isinstance(error, RuntimeError):
            raise
        first = str(error).partition("\n")[0]
        reason = f"the model cannot be differentiated ({first})"
    if not with_room(model, names, data.room):
        reason = "there is no room for as many numbers as its layers have outputs squared"
    if not metrics and fitting.metric != AUTO:
        warn(
            f"metric={fitting.metric!r}: {reason}: errors of a layer's outputs count alike, as by "
            "metric='outputs'",
            CalibrationWarning,
        )
    return metrics


def trial(
    model: nn.Module,
    plan: Plan,
    data: Calibration,
    fitting: Fitting,
    loss: OutputLoss,
    known: Mapping[str, Basis],
) -> dict[str, float]:
    """The loss of the whole model on the batches that judge, by either metric: with all layers cut
    at once, to low-rank matrices of as many parameters as the plan gives them.

    known  bases of the layers, where there are some already
    """
    models = {OUTPUTS: copy_of(model), LOSS: copy_of(model)}
    names = [row.name for row in plan.factored]
    sizes = {name: sums_bytes(dense_layer_at(model, name)) for name in names}
    for part in parted(sizes, data.room):
        bases = {name: known[name] for name in part if name in known}
        if not known:
            with progress_bar("try metrics", len(data.fitted), fitting.progress) as advance:
                bases = bases_of(model, part, data.fitted, partial(advance, ""))
        for name, basis in bases.items():
            site, rank = dense_layer_at(model, name), _rank(plan.layer(name), basis)
            for word, tried in models.items():
                seen = basis.within(data.metrics_of(name)) if word == LOSS else basis
                own = dense_layer_at(tried, name)
                own.make_ordinary()
                own.write(seen.truncated(site, rank))
    batches = data.judging
    wanted = [call(replica(model), batch) for batch in batches]
    return {word: loss_of(tried, wanted, batches, loss) for word, tried in models.items()}


def _rank(row: LayerPlan, basis: Basis) -> int:
    """Of the matrix that stands in for what is planned; where the fit decides, by its error."""
    method, params = row.method, row.params_after
    assert method is not None
    if params is not None:
        return max(1, params // (row.shape[0] + row.groups * math.prod(row.shape[1:])))
    return basis.full if method.error is None else basis.rank_within(method.error)
