"""A plan carried out on a copy of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._baked import without_baked
from tensorlrf.compression._latency import measure_model
from tensorlrf.compression._metric import with_metrics
from tensorlrf.compression._survey import Surveyed, survey
from tensorlrf.compression._unpacked import packed_again, shared_model
from tensorlrf.compression._working_copy import WorkingCopy
from tensorlrf.compression.bases._shared import Bases, bases_in
from tensorlrf.compression.bases._words import words_of
from tensorlrf.compression.calibration._batchnorm import (
    norms_of,
    reestimated,
    set_statistics,
)
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._outputs import Apart
from tensorlrf.compression.calibration._tied import with_heads
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.checkpoint.pretrained.marks import mark
from tensorlrf.compression.fit._factored import Factored
from tensorlrf.compression.fit._fitting import AUTO, LOSS, OUTPUTS, Fitting
from tensorlrf.compression.folding._within import folded_as
from tensorlrf.compression.group._alike import check_alike, check_plan_alike, check_shared
from tensorlrf.compression.group._group import ranks_here
from tensorlrf.compression.group._scattered import put_together
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.page.environment import environment_of
from tensorlrf.compression.plan._check_plan import check_plan
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.report._budget import shortfall
from tensorlrf.compression.report._report import Report
from tensorlrf.compression.report._reporting import totals
from tensorlrf.compression.report._rows import BatchNorms, Latency
from tensorlrf.compression.tuning._tune import tune
from tensorlrf.decomposition.signatures import refuses_old_words
from tensorlrf.errors import (
    ArgumentError,
    BudgetWarning,
    GroupError,
    lowered_by,
    warn,
)
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.arguments import PathLike
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import copy_of, replica

ROOM = 1 << 30
"""Bytes that layers may take which are factored side by side, of one layer at the least."""


@refuses_old_words
def apply(
    model: nn.Module,
    plan: Plan,
    *,
    calibration: Any = None,
    moments: Moments | PathLike | None = None,
    target: str = "original",
    affine: bool = False,
    batch_norm: bool = True,
    holdout: float = 0.1,
    groups: Any = None,
    rerun: bool = False,
    memory_limit: int | None = None,
    example: Any = None,
    metric: str = AUTO,
    loss: str = AUTO,
    readout: Readout | None = None,
    shared: str | Sequence[str] | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> tuple[nn.Module, Report]:
    """A copy of the model with the plan carried out, and a report.

    The given model stays as it is.

    Parameters
    ----------
    model : Module
        The one that the plan was made for, or one of the same architecture.
    plan : Plan
        From `tensorlrf.plan`, perhaps edited. Batch normalisations that it folds are folded first;
        a file of the result is loaded into the model as it was.
    calibration : iterable of batches, DataLoader or callable, optional
        Inputs to fit to: tensors, tuples (positional arguments), dicts (keyword arguments), on the
        model's device; the iterable is drawn once and held. Or a function that runs the model it is
        given. The model runs in eval mode without grad. "svd" and "tucker" then minimise the error
        of each layer's *outputs*; "cp" has no such form, its output errors are measured all the
        same. Rows that an `attention_mask` among the arguments leaves out are padding, and not
        fitted to. Their second moments are drawn towards the plain metric as far as the number of
        samples warrants (Ledoit & Wolf 2004); where part of the batches is held out and casts doubt
        on the fit, the amount is chosen there. Those of an expert of a mixture are first drawn
        towards those of all its experts, by what these have in common (Bühlmann & Straub 1970).
    moments : Moments or path, optional
        In place of `calibration` what `tensorlrf.calibrate` has summed of the inputs of this very
        model, or the file with it. No batch is needed and nothing runs: fits are those of
        ``target="independent"`` and ``metric="outputs"``, none is judged on inputs held out, and
        the error of the model's outputs is not known.
    target : {"original", "prefix", "independent"}
        What the outputs of a layer are fitted to. "original": W x0, on the inputs x0 of the given
        model, from the inputs x that the compressed layers before it deliver; what earlier layers
        lost is then made good where x still tells of it (Zhang et al. 2016, asymmetric
        reconstruction). "prefix": W x, the given weight on x, which needs no second copy of the
        model and of the activations, and holds where the course of a model depends on its values.
        "independent": W x0 from x0, all layers at once and each by itself.
    affine : bool
        Let biases make good what they can (`decomposition.bias_correction`). A layer without bias
        gets one, and the report says so. With held-out batches only where it lowers their error.
    batch_norm : bool
        Re-estimate the statistics of batch normalisations where calibration has held-out batches,
        and keep them only where the error of the model's outputs on these falls.
    holdout : float
        Share of the batches that is not fitted to, but serves to judge: rounded down, and one at
        the least of two or more. 0 holds none out.
    groups : sequence, optional
        Of each batch the label of what it is of, as of a picture or a document, or a list of the
        labels of its examples. Batches that have one in common are all fitted to or all held out,
        and the interval of the report's model error is one over groups.
    rerun : bool
        False: each batch's forward pass is held where it is while a layer is factored, so that
        calibration costs two passes for the first batch and one for each other, with one more for
        every layer that a pass calls several times, and the activations of all batches are alive at
        once. True: one batch's activations at a time, for about L / 2 passes a batch with L layers.
    memory_limit : int, optional
        Most bytes that calibration and fit of one layer may take beside the model, the batches and
        activations, by default half of the memory that is free: with n input columns (a convolution
        has as many as a patch has numbers) some 32 n^2, or 40 n^2 with batches held out. A layer
        that would take more has a sketch of its second moments (Ghashami et al. 2016) in their
        place, as large as fits. `Report.memory` tells of every layer what was forecast.
    example : Tensor, tuple or dict, optional
        A batch to time the given and the compressed model on, for the report. With a plan that was
        made by time (`keep_latency`, `objective="latency"`) the compressed one is tuned on it
        before, and a budget of time is timed without an example as well, on the first batch.
    metric : {"outputs", "loss", "auto"}
        In what the outputs of a layer are to be near. "outputs": the sum of squares. "loss": what
        an error of them costs the model, to second order, by the gradients there (one pass forth
        and back a batch); formats that cannot have it are fitted as by "outputs", and so are layers
        that no gradient reaches and, the widest first, those whose outputs squared find no room in
        twice the size of the model. `error` of a plan is then counted in it. "auto": "loss"
        where it leaves a loss of the whole model on inputs held out that is lower by a tenth or
        more, with all layers truncated at once; without calibration neither.
    loss, readout
        What counts of the model's outputs, for `metric`, as in `sensitivity`.
    shared : str or sequence of str, optional
        Layers that may have one right factor, stored once: "inputs", those fed the same tensor, as
        query, key and value; "experts", those of one place in the experts of a mixture; "layers",
        neighbours in depth; or a glob, all that it matches. Layers of "svd" with a known rank are
        asked, word by word, and have it where the squared error of their outputs on inputs held out
        is less by a twentieth than apart, at equal parameters; `Report.bases` tells of all that
        were tried. Memory is shared, time is not: each layer makes its own product, of a higher
        rank.
    random_state : int or Generator, optional
        Of the methods that draw; torch's own generator stays as it was.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    model : Module
        The compressed copy, its training flags as in `model`.
    report : Report
        What became of every layer.

    Raises
    ------
    ArgumentError, RankError
        For an unknown word, and a plan of another model, or one edited into something that cannot
        be; one that folds batch normalisations which the model has not, or which the first batch
        shows to be read by others; NaN or Inf in a weight or in the inputs of a layer; batches that
        the model cannot take
        (the layer and the model's own error are named); a `memory_limit` below what a layer takes
        at the least.

    Warns
    -----
    CalibrationWarning
        Of layers with fewer than 4 n samples, of layers whose moments are sketched for want of
        memory, and of layers that calibration does not reach, or that have no room for a sketch
        either, and that get the plain method. Of a model that cannot be differentiated, where
        `metric` asks for it.
    BudgetWarning
        Of a model that keeps far more than `keep_params` since most of it is not eligible, and of
        one that takes more time than `keep_latency`.

    References
    ----------
    Ghashami et al. 2016; Ledoit & Wolf 2004; Bühlmann & Straub 1970 (experts); Zhang et al. 2016;
    Martens & Grosse 2015 (the metric of the loss); Wang et al. 2025 (bases that layers share).

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> plan = tensorlrf.plan(model, keep_params=0.5, skip=[])
    >>> small, report = tensorlrf.apply(model, plan, calibration=[torch.rand(512, 64)])
    >>> report.eligible.share <= 0.5
    True
    """
    fitting = Fitting(
        target, affine, batch_norm, holdout, rerun, memory_limit, random_state, progress,
        metric, loss, readout, groups, shared, moments,
    )  # fmt: skip
    fitting.check(calibrated=calibration is not None)
    if not isinstance(plan, Plan):
        raise ArgumentError(
            f"plan is a {type(plan).__name__}; make one with tensorlrf.plan(model, ...) or "
            "Plan.from_json(text)"
        )
    with ranks_here(calibration is not None) as group:
        model = shared_model(model, group)
        timed = plan.keep_latency or plan.allotment.promised_cost
        check_shared(group, {"keep_latency": timed, "shared": shared})
        check_alike(group, model, {"call": "apply", **vars(fitting)})
        fitting = replace(fitting, progress=progress and group.is_first)
        data = Calibration.read(
            calibration, model, fitting.holdout, fitting.memory_limit, groups, group
        )
        if plan.folded is not None:
            model = folded_as(model, plan.folded, data, example)
        fitting = fitting.of_moments(model)
        return carried_out(model, plan, survey(model), data, fitting, example)


def carried_out(
    model: nn.Module,
    plan: Plan,
    found: Sequence[Surveyed],
    data: Calibration | None,
    fitting: Fitting,
    example: Any,
    probe: Probe | None = None,
    known: Mapping[str, Factored] | None = None,
) -> tuple[nn.Module, Report]:
    """`apply` to a model in which a survey has `found` these modules, and at which a `probe` may
    have looked; with what its layers become where that is `known`."""
    # Parameters made in inference mode could not be trained.
    less = partial(_less, data, fitting)
    with torch.inference_mode(False), without_autocast(), lowered_by(less):
        check_plan(model, plan, found)
        if data is not None:
            check_plan_alike(data.group, plan)
        _check_shared(plan, fitting)
        small = copy_of(model)
        for row in plan.factored:
            dense_layer_at(small, row.name).make_ordinary()
        known_moments = fitting.known
        metric = None if known_moments is None else OUTPUTS
        if data is not None:
            data = with_metrics(model, plan, data, fitting, probe)
            metric = LOSS if data.metrics else OUTPUTS
            factored = {row.name for row in plan.factored}
            tables = {one.name: one.tied for one in found if one.name in factored and one.tied}
            data = with_heads(model, tables, data) if known is None else data
        if probe is not None:
            probe.forget()
        bases = Bases()
        if fitting.shared is not None and known is None:
            words = words_of(fitting.shared, calibrated=data is not None)
            bases = bases_in(small, plan, words, data)
            plan = bases.planned(plan)
        work = WorkingCopy(model, small, plan, fitting, data, bases.kept)
        if known is None:
            work.factor_all()
            work.findings().tell()
        else:
            work.take_over(known)
        small, rows = work.replaced(found)
        put_together(small)
        small = without_baked(packed_again(small))
        norms, error = batch_norms(model, small, data) if fitting.batch_norm else (None, None)
        if error is None and data is not None and data.held:
            error = data.apart(model, small)
        latency = latency_of(model, small, plan, example, data, fitting)
    report = Report(
        **plan.budgets,
        target=None if data is None and known_moments is None else fitting.target,
        metric=metric,
        affine=fitting.affine,
        batches=data.n_fitted if data else known_moments.batches if known_moments else 0,
        held_out=0 if data is None else len(data.held),
        layers=tuple(rows),
        model=totals(model, small),
        model_error=None if error is None else error.error,
        model_error_interval=None if error is None else error.interval,
        batch_norms=norms,
        latency=latency,
        quality=None,
        allotment=plan.allotment,
        memory=work.memory,
        refinement=None,
        folded=plan.folded,
        bases=tuple(bases.told),
        pools=() if work.pools is None else work.pools.told,
        from_moments=known_moments is not None,
        environment=environment_of(small),
    )
    if missed := shortfall(report):
        warn(missed, BudgetWarning)
    mark(small)
    return small, report


def _less(data: Calibration | None, fitting: Fitting) -> str:
    """What lowers the memory of the whole."""
    ways = []
    if data is not None:
        ways = ["smaller batches (--batch-size) take less"]
        if not fitting.rerun:
            ways.append("rerun=True (--rerun) has one batch's activations at a time")
        if fitting.target == "original":
            ways.append("target='prefix' (--target) makes do without a second copy of the model")
    ways.append("compress_checkpoint (--stream) has a layer at a time in memory")
    return f"while the model was compressed: {'; '.join(ways)}"


def _check_shared(plan: Plan, fitting: Fitting) -> None:
    """Raise ArgumentError where time or arithmetic was asked for, of which bases save none."""
    timed = plan.keep_latency or plan.keep_flops or plan.allotment.promised_cost
    if fitting.shared is not None and timed is not None:
        raise ArgumentError(
            f"shared={fitting.shared!r} saves memory alone, at a higher rank of each product; "
            "leave it out where FLOPs or time are the budget"
        )


def batch_norms(
    model: nn.Module, small: nn.Module, data: Calibration | None
) -> tuple[BatchNorms | None, Apart | None]:
    """Try new statistics of the batch normalisations of `small`, and keep them where that helps;
    what came of it, and how far the outputs are from those of the given model then. (None, None)
    where none are tried.
    """
    norms = norms_of(small)
    if not norms or data is None or not data.held:
        return None, None
    before = data.apart(model, small)
    if before is None:
        return None, None
    try:
        found = reestimated(small, data.fitted, data.group)
    except (ArgumentError, RuntimeError) as error:  # a batch of one sample has no variance
        if isinstance(error, GroupError):
            raise
        return None, None
    tried = replica(small)
    set_statistics(norms_of(tried), found)
    after = data.apart(model, tried)
    kept = after is not None and after.error < before.error
    if kept:
        set_statistics(norms, found)
    error_after = float("nan") if after is None else after.error
    row = BatchNorms(len(norms), kept, before.error, error_after)
    return row, after if kept else before


def latency_of(
    model: nn.Module,
    small: nn.Module,
    plan: Plan | Report,
    example: Any,
    data: Calibration | None,
    fitting: Fitting,
) -> Latency | None:
    """Of both models in turn, on the example, or on the first calibration batch where a budget of
    time was counted on it; None without. Where time is what was asked for the paths of `small` are
    chosen by measurement first, alone and together."""
    if example is None and plan.keep_latency is not None and data is not None:
        example = data.first
    if example is None:
        return None
    batch = Batch.of(example)
    wanted = plan.keep_latency is not None or plan.allotment.promised_cost is not None
    if wanted and any(isinstance(module, FactoredLayer) for module in small.modules()):
        tune(small, batch, progress=fitting.progress)
    return Latency(*measure_model(model, small, [batch]))
