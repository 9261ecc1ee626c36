"""What `compress` would do with a model: the public function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._unpacked import shared_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.folding._within import folded_before
from tensorlrf.compression.frontier._metric import Metric
from tensorlrf.compression.group._alike import check_alike, check_plan_alike, check_shared
from tensorlrf.compression.group._group import ranks_here
from tensorlrf.compression.journal._identity import identity
from tensorlrf.compression.journal._kept import kept_in
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.methods import Given
from tensorlrf.compression.moments._fitted import moments_for
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planned import planned
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, Allocation
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike


def plan(
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
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    fold_batch_norms: bool = False,
    objective: str = "size",
    example: Any = None,
    calibration: Any = None,
    moments: Moments | PathLike | None = None,
    holdout: float = 0.1,
    groups: Any = None,
    allocation: str | Allocation = AUTO,
    sensitivity: Sensitivity | None = None,
    loss: str = AUTO,
    readout: Readout | None = None,
    journal: PathLike | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> Plan:
    """What `compress` would do with the model, as a value that can be looked at and edited.

    Eligible are Linear, convolutions, transposed ones, the Conv1D of transformers, and subclasses
    that compute the same, where a factored form is smaller. All other modules stay, each with its
    reason. Nothing is computed but ranks, so a plan is quick unless it looks at
    inputs.

    Parameters
    ----------
    model : Module
    keep_params : float, optional
        Share of the eligible layers' weights to keep, in (0, 1]: an upper bound, layers that must
        stay dense for want of a rank included; biases are not counted. Ranks are multiples of 8
        (below 8, ones), shared out as `allocation` says. Or instead
    keep_total : float, optional
        The same of all parameters of the model, those of layers that stay and biases included: an
        upper bound, but for biases that `affine` adds. Or
    keep_bytes, keep_flops : float, optional
        Likewise the share of the bytes of these weights, and of the FLOPs that the layers do on the
        example or the first calibration batch. Layers that the batch does not reach then stay. Or
    keep_latency : float, optional
        Share of the time that the whole model takes on that batch, on this device. Each layer is
        timed alone at a few ranks on its fastest path; what comes of it is timed in the whole model
        in turn with the given one, on factors of any values, and ranks are chosen anew, three times
        at the most, until that is within the budget. Both times are in the plan. Or
    error : float, optional
        The relative error that each layer may have, in (0, 1): of its outputs where `apply` gets
        calibration (with `target="original"` beside the best outputs that its inputs allow), else
        of its weight. Layers that do not become smaller within it stay. One of the six,
        unless every method brings its own budget.
    max_drop, evaluate : optional
        How far a metric of your own may fall, as in `compress`; the smallest plan within it, judged
        by layers cut along the directions of their outputs: a full fit falls less.
    method : str, Method or mapping
        A word of the table of methods: "svd" is a matrix of low rank, for a conv (O, I kh kw), and
        "auto" whichever of "svd", "tucker" and "cp" has the least error in a layer. Or the config
        of such a method, as `SVD(...)` or `Auto(...)`, with all options and perhaps a rank or an
        error of its own; or a mapping from globs of layer names to words, configs or None (stay):
        the first glob that matches counts. A Linear has the SVD in each of these four.
    skip : str or sequence of str, optional
        Globs of qualified names that stay; a glob covers all that a module holds. None: heads stay
        (classifiers, poolers, the output layer of a language model), unless `include` names them;
        []: none. Embeddings stay unless `include` names them.
    include : str or sequence of str, optional
        "embeddings" and "heads", one or both: layers of these kinds that would stay otherwise. An
        embedding counts as a linear layer on indicators of its rows, (embedding_dim,
        num_embeddings); a head that is tied to it runs on its factors.
    fold_batch_norms : bool
        Fold batch normalisations first, as in `compress`; the plan says which and is one of the
        folded model, and `apply` does it again.
    objective : {"size", "latency"}
        "latency": layers that do not get faster on this device at the planned rank stay, alone or
        in the whole model, which is timed in turn with the given one.
    example : Tensor, tuple or dict, optional
        A batch to time or count on, for `objective="latency"`, `keep_flops` and `keep_latency`, and
        to see on what reads the outputs of whom, for `fold_batch_norms`.
    calibration : iterable of batches, DataLoader or callable, optional
        Inputs that tell what layers can lose, as `apply` takes them.
    moments : Moments or path, optional
        In its place what `tensorlrf.calibrate` has summed of the inputs of this very model, by
        which ``allocation="energy"`` knows outputs of layers; "auto" is uniform then.
    holdout, groups
        Which batches serve to judge, as in `apply`.
    allocation : str or Allocation
        How the budget is shared out over layers: "auto", with calibration by what the outputs of
        the whole model would lose, "fisher" or "measured", where the model then loses less on
        inputs held out than with uniform ranks; without calibration "uniform", about the same share
        for every layer. "energy", by the spectra of the weights, or with calibration of the layers'
        outputs, so that the squared errors have the least sum. Or an `Allocation` with conditions
        on the ranks.
    sensitivity : Sensitivity, optional
        What each layer can lose, from `tensorlrf.sensitivity`: the losses then have the least sum,
        and layers that cannot lose anything stay dense.
    loss, readout
        What counts of the outputs, as in `sensitivity`.
    journal : str or PathLike, optional
        A folder that gets what is measured, what `evaluate` says among it, as it is measured; the
        same call goes on from there. Times are measured anew.
    random_state, progress
        As in `sensitivity`.

    Returns
    -------
    Plan

    Raises
    ------
    ArgumentError
        For two budgets or none, a share too small for any rank, an unknown method or option, a glob
        that matches nothing, no eligible layer, NaN or Inf in a weight; a budget of FLOPs or time
        without a batch, or with a method whose sizes only the fit can tell; a sensitivity of
        another model, and a journal of another call.
    FileError, FileFormatError
        Of a journal, as in `sensitivity`.

    References
    ----------
    Kim et al. 2016; Lebedev et al. 2015.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> plan = tensorlrf.plan(model, method={"0": tensorlrf.SVD(rank=8), "*": None})
    >>> [(layer.name, layer.rank) for layer in plan.factored]
    [('0', 8)]
    """
    request = Request.of(
        Budget.of(
            keep_params=keep_params, keep_total=keep_total, keep_bytes=keep_bytes,
            keep_flops=keep_flops, keep_latency=keep_latency, error=error,
        ),
        method, skip, include, objective, example, allocation, sensitivity, loss, readout,
        random_state, progress,
    )  # fmt: skip
    metric = Metric.of(evaluate, max_drop, request, calibration=calibration)
    if metric.max_drop is None and evaluate is not None:
        raise ArgumentError("evaluate= judges what max_drop= allows; give both, or leave it out")
    if moments is not None and calibration is not None:
        raise ArgumentError("moments= are in the place of calibration=; give one of them")
    with ranks_here(calibration is not None) as group:
        model = shared_model(model, group)
        check_shared(group, request.not_shared | {"max_drop": max_drop})
        kept_anywhere = journal is not None
        check_alike(
            group, model,
            {"call": "plan", "holdout": holdout, **vars(request), "journal": kept_anywhere},
        )  # fmt: skip
        request = replace(request, progress=progress and group.is_first)
        data = Calibration.read(calibration, model, holdout, groups=groups, group=group)
        folded = None
        asked = {
            "call": "plan", **request.asked, "holdout": holdout, "max_drop": max_drop,
            "evaluate": evaluate, "fold_batch_norms": fold_batch_norms,
        }  # fmt: skip
        of = partial(identity, model, data, example, asked, moments)
        with kept_in(journal, group, random_state, of) as kept:
            request = replace(request, kept=kept)
            if fold_batch_norms:
                model, folded = folded_before(model, data, request.example)
            if metric.max_drop is not None and data is not None:
                made = metric.planned(model, request, data)
            else:
                made, _, _ = planned(model, request, data, moments=moments_for(moments, model))
        check_plan_alike(group, made)
        return replace(made, folded=folded)
