"""`metric=`: what the errors of each layer's outputs count, and whether that serves the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._working_copy import chosen_rank
from tensorlrf.compression.calibration._calibrate import at_once
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import Gathered
from tensorlrf.compression.calibration._statistics import Statistics
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.fit._factor import Options, factor_in
from tensorlrf.compression.fit._fitting import LOSS, OUTPUTS, Fitting
from tensorlrf.compression.losses._curvature import output_metrics
from tensorlrf.compression.losses._measured import loss_of
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.decomposition.configs import SVD, Method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import CalibrationWarning, warn
from tensorlrf.nn.copies import copy_of, replica


def with_metrics(model: nn.Module, plan: Plan, data: Calibration, fitting: Fitting) -> Calibration:
    """The calibration with the metrics of the layers' outputs that the fitting asks for.

    Warns (CalibrationWarning) of a model that cannot be differentiated: it has none.
    """
    names = [row.name for row in plan.factored]
    if fitting.metric == OUTPUTS or not names:
        return data
    loss = OutputLoss.of_model(fitting.loss, fitting.readout, model, data.judging[0])
    device = dense_layer_at(model, names[0]).device
    draws = generator(fitting.random_state, device)
    metrics, reason = {}, "its outputs have no gradient"
    try:
        with progress_bar("differentiate", None, fitting.progress) as advance:
            metrics = output_metrics(model, names, data, loss, draws, partial(advance, ""))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    if not metrics:
        warn(
            f"metric={fitting.metric!r}: the model cannot be differentiated ({reason}): errors of "
            "a layer's outputs count alike, as by metric='outputs'",
            CalibrationWarning,
        )
        return data
    weighted = replace(data, metrics=metrics)
    if fitting.metric == LOSS:
        return weighted
    lost = trial(model, plan, weighted, fitting, loss)
    return weighted if lost[LOSS] < lost[OUTPUTS] else data


def trial(
    model: nn.Module, plan: Plan, data: Calibration, fitting: Fitting, loss: OutputLoss
) -> dict[str, float]:
    """The loss of the whole model on the batches that judge, by either metric: with every layer
    truncated at once, from one set of moments.

    A layer has the method of the plan where layers are fitted at once, and where that is quick; a
    low-rank matrix of as many parameters in place of any other.
    """
    models = {OUTPUTS: copy_of(model), LOSS: copy_of(model)}
    names = [row.name for row in plan.factored]
    trace = record(model, names, data.batches[0])
    sites = {name: dense_layer_at(model, name) for name in names if name not in trace.readers}
    methods = {name: _quick(plan.layer(name), fitting.target) for name in sites}
    matrix = [name for name, method in methods.items() if not method.multiplies_moments]
    needs = Gathered(lags=False, held=bool(data.held)).within(sites, fitting.memory_limit, matrix)
    forms = {name: need.form for name, need in needs.items() if need.form is not None}
    names, data = list(forms), replace(data, forms=forms)
    options = Options(random_state=fitting.random_state)
    with progress_bar("try metrics", len(names), fitting.progress) as advance:
        for layers in at_once(model, names, trace, data):
            for name, moments in layers:
                site, method = dense_layer_at(model, name), methods[name]
                fit, held = moments.taken()
                for word, tried in models.items():
                    seen = (fit, held) if word == LOSS else (_plain(fit), _plain(held))
                    done = factor_in(name, site, method, *seen, options)
                    if done.factors.n_params < site.weight.numel() or chosen_rank(method):
                        own = dense_layer_at(tried, name)
                        own.make_ordinary()
                        own.write(done.factors.to_dense())
                advance(name)
    batches = data.judging
    wanted = [call(replica(model), batch) for batch in batches]
    return {word: loss_of(tried, wanted, batches, loss) for word, tried in models.items()}


def _plain(statistics: Sequence[Statistics] | None) -> Sequence[Statistics] | None:
    return None if statistics is None else [replace(s, metric=None) for s in statistics]


def _quick(row: LayerPlan, target: str) -> Method:
    method, params = row.method, row.params_after
    assert method is not None
    if target == "independent" or isinstance(method, SVD) or params is None:
        return method
    a_rank = row.shape[0] + row.groups * math.prod(row.shape[1:])
    return SVD(rank=max(1, params // a_rank))
