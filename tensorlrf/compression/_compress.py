"""From a model to a smaller one: a plan, and the plan carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._compressed import compressed, refinement_for
from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression._unpacked import put_unpacked
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._batchnorm import norms_of, set_statistics, statistics_of
from tensorlrf.compression.calibration._dense_layer import module_at, tied_places
from tensorlrf.compression.checkpoint.pretrained.marks import mark
from tensorlrf.compression.fit._fitting import Fitting
from tensorlrf.compression.folding._within import take_folds
from tensorlrf.compression.frontier._metric import Metric
from tensorlrf.compression.group._unsharded import is_wrapped
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.methods import Given
from tensorlrf.compression.modular._modular import take_modules
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, Allocation
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.refinement._student import take_over
from tensorlrf.compression.report._report import Report
from tensorlrf.decomposition.signatures import refuses_old_words
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.packed.unpacked import Unpacked
from tensorlrf.nn.tables.ties import keep_bias


@refuses_old_words
def compress(
    model: nn.Module,
    *,
    keep_params: float | None = None,
    keep_total: float | None = None,
    keep_bytes: float | None = None,
    keep_flops: float | None = None,
    keep_latency: float | None = None,
    error: float | None = None,
    max_drop: float | None = None,
    evaluate: Any = None,
    method: Given = "svd",
    calibration: Any = None,
    moments: Moments | PathLike | None = None,
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    target: str = "original",
    affine: bool = False,
    batch_norm: bool = True,
    fold_batch_norms: bool = False,
    holdout: float = 0.1,
    groups: Any = None,
    rerun: bool = False,
    memory_limit: int | None = None,
    objective: str = "size",
    example: Any = None,
    allocation: str | Allocation = AUTO,
    sensitivity: Sensitivity | None = None,
    metric: str = AUTO,
    loss: str = AUTO,
    readout: Readout | None = None,
    shared: str | Sequence[str] | None = None,
    refine: float | None = None,
    journal: PathLike | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> tuple[nn.Module, Report]:
    """A copy of the model that runs on factors, and a report.

    `plan` and `apply` in one; see there for the arguments. The given model stays as it is.

    Parameters
    ----------
    model : Module
    method, skip, include, objective
        What is to become of which layer, as in `plan`. With method="modular" whole modules
        become smaller in place of layers that get factors: perceptrons and inverted bottlenecks
        have fewer channels and attentions smaller heads, by `keep_params` and `calibration`.
    keep_params, keep_total, keep_bytes, keep_flops, keep_latency, error
        The budget, as in `plan`. Give one, such as keep_params (share of the weights to keep) or
        error, or a rank to every method. Or instead
    max_drop : float, optional
        How far the metric of `evaluate` may fall: the smallest model within it is looked for, in
        at most eight evaluations and three fits. The bound on the drop counts, with 95% confidence.
    evaluate : callable or pair of callables, optional
        One of `tensorlrf.metrics`, on data of its own; or a metric of your own, the higher the
        better: a function of a model to a number, to a score of each example, as a 1-D tensor or a
        sequence, or to a pair of these scores and of the label of each one's group (as the picture
        that a crop is of). By scores the drop has a bound from their paired differences, group by
        group. Of a pair of functions the second one, on data that the search does not see, confirms
        what is found. The report says what it says.
    calibration, moments, target, affine, batch_norm, holdout, groups, rerun, memory_limit
        How it is fitted, as in `apply`.
    fold_batch_norms : bool
        Fold batch normalisations into the layers before them first, as `tensorlrf.fold_batch_norms`
        does, on the example or the first calibration batch; the report says which. A file of the
        result is loaded into the model as it was.
    example : Tensor, tuple or dict, optional
        A batch to time on (`objective="latency"`, `keep_latency`) or to count on (`keep_flops`),
        and to time both models on, in turn, for the report.
    allocation, sensitivity, loss, readout
        How the budget is shared out over layers, as in `plan`.
    metric, shared
        In what outputs of layers are to be near, and which layers may have one right factor, as in
        `apply`.
    refine : float, optional
        Seconds for `tensorlrf.refine` on the batches of `calibration`, by `loss` and `readout`, at
        the end; it is judged by the same that are held out.
    journal : str or PathLike, optional
        A folder that gets what is measured to share ranks out, what `evaluate` says and where the
        refinement is, as it is measured; the same call goes on from there. Fits are made and times
        measured anew: where fits take the night, `compress_checkpoint` keeps these.
    random_state, progress
        As in `apply`.

    Returns
    -------
    model : Module
        The compressed copy, its training flags as in `model`.
    report : Report
        What became of every layer.

    Raises
    ------
    ArgumentError, RankError
        What `plan` and `apply` raise; for an `evaluate` that fails, or returns NaN or what is no
        metric; a `max_drop` below what its data tell apart from none, and one that no model meets,
        with the closest one named; a journal of another call, or with method="modular".
    FileError, FileFormatError
        Of a journal, as in `sensitivity`.

    References
    ----------
    Clopper & Pearson 1934; Liang & Zeger 1986 (the bounds). Lin et al. 2025, "MoDeGPT" (modules).

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> small, report = tensorlrf.compress(model, keep_params=0.5, skip=["2"])
    >>> type(small[0]).__name__, type(small[2]).__name__
    ('FactoredLinear', 'Linear')
    >>> report.layer("2").reason
    "skipped by '2'"
    """
    request = Request.of(
        Budget.of(
            keep_params=keep_params, keep_total=keep_total, keep_bytes=keep_bytes,
            keep_flops=keep_flops, keep_latency=keep_latency, error=error,
        ),
        method, skip, include, objective, example, allocation, sensitivity, loss, readout,
        random_state, progress, whole=True,
    )  # fmt: skip
    judging = Metric.of(evaluate, max_drop, request, calibration=calibration)
    fitting = Fitting(
        target, affine, batch_norm, holdout, rerun, memory_limit, random_state, progress,
        metric, loss, readout, groups, shared, moments,
    )  # fmt: skip
    settings = refinement_for(refine, holdout, max_drop, calibrated=calibration is not None)
    return compressed(
        model, request, judging, fitting, calibration, settings,
        fold_batch_norms=fold_batch_norms, journal=journal,
    )  # fmt: skip


@refuses_old_words
def compress_(
    model: nn.Module,
    *,
    keep_params: float | None = None,
    keep_total: float | None = None,
    keep_bytes: float | None = None,
    keep_flops: float | None = None,
    keep_latency: float | None = None,
    error: float | None = None,
    max_drop: float | None = None,
    evaluate: Any = None,
    method: Given = "svd",
    calibration: Any = None,
    moments: Moments | PathLike | None = None,
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    target: str = "original",
    affine: bool = False,
    batch_norm: bool = True,
    fold_batch_norms: bool = False,
    holdout: float = 0.1,
    groups: Any = None,
    rerun: bool = False,
    memory_limit: int | None = None,
    objective: str = "size",
    example: Any = None,
    allocation: str | Allocation = AUTO,
    sensitivity: Sensitivity | None = None,
    metric: str = AUTO,
    loss: str = AUTO,
    readout: Readout | None = None,
    shared: str | Sequence[str] | None = None,
    refine: float | None = None,
    journal: PathLike | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> Report:
    """The same as `compress`, in place: layers are replaced, all at once at the very end.

    An error or Ctrl-C before that leaves the model as it was.

    Parameters
    ----------
    model : Module
        Its layers are replaced.
    keep_params, keep_total, keep_bytes, keep_flops, keep_latency, error
        The budget, as in `plan`.
    method, skip, include, objective
        As in `plan`.
    calibration, moments, target, affine, batch_norm, holdout, groups, rerun, memory_limit
        As in `apply`.
    fold_batch_norms, max_drop, evaluate, example, allocation, sensitivity, metric, loss, readout
        As in `compress`.
    shared, refine, journal
        As in `compress`.
    random_state, progress
        As in `compress`.

    Returns
    -------
    Report
        What became of every layer.

    Raises
    ------
    ArgumentError, RankError
        As `compress`, and where the model is itself the one layer to be replaced.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tensorlrf.compress_(model, keep_params=0.5)
    >>> type(model[0]).__name__
    'FactoredLinear'
    """
    request = Request.of(
        Budget.of(
            keep_params=keep_params, keep_total=keep_total, keep_bytes=keep_bytes,
            keep_flops=keep_flops, keep_latency=keep_latency, error=error,
        ),
        method, skip, include, objective, example, allocation, sensitivity, loss, readout,
        random_state, progress, whole=True,
    )  # fmt: skip
    judging = Metric.of(evaluate, max_drop, request, calibration=calibration)
    fitting = Fitting(
        target, affine, batch_norm, holdout, rerun, memory_limit, random_state, progress,
        metric, loss, readout, groups, shared, moments,
    )  # fmt: skip
    settings = refinement_for(refine, holdout, max_drop, calibrated=calibration is not None)
    if isinstance(model, nn.Module) and is_wrapped(model):
        raise ArgumentError(
            "model is wrapped or sharded by torch.distributed, which would go on with its old "
            "parameters; use compress, and wrap or shard what it gives"
        )
    given, model = model, uncompiled(model)
    if model is not given and model is not getattr(given, "_orig_mod", None):
        raise ArgumentError(
            "model holds modules that torch.compile wrapped, which would go on with their old "
            "layers; compile them after compress_, or use compress"
        )
    ties = tied_places(model, [name for name, _ in model.named_modules() if name])
    small, report = compressed(
        model, request, judging, fitting, calibration, settings,
        fold_batch_norms=fold_batch_norms, journal=journal,
    )  # fmt: skip
    if isinstance(small, (FactoredLayer, Unpacked)):
        raise ArgumentError(
            f"model is a {type(model).__name__}, one layer, which cannot become another in place; "
            "use compress"
        )
    put_unpacked(model, small)
    for row in report.layers:
        for place in (*row.places, *ties) if row.factored else ():
            if ties.get(place, row.name) == row.name:
                new = module_at(small, place)
                if place in ties:
                    keep_bias(new, module_at(model, place))
                put(model, [place], new)
    if report.folded is not None:
        take_folds(model, small, report.folded)
    if request.modular:
        take_modules(model, small)
    if report.refinement is not None:
        take_over(model, small)
    if report.batch_norms is not None and report.batch_norms.kept:
        set_statistics(norms_of(model), statistics_of(norms_of(small)))
    mark(model)
    return report
