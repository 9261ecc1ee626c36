"""From a model, inputs and a metric to what a model of every size is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.frontier._judge import Drop, Evaluate, Judge
from tensorlrf.compression.frontier._point import DENSE, FACTORS, FrontierPoint
from tensorlrf.compression.frontier._points import Frontier
from tensorlrf.compression.frontier._prospect import Prospect
from tensorlrf.compression.frontier._quantised import QUANTISERS
from tensorlrf.compression.frontier._timed import timed
from tensorlrf.compression.group._group import ALONE
from tensorlrf.compression.journal._identity import identity
from tensorlrf.compression.journal._kept import kept_in
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.methods import Given
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, Allocation
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.plan.times._seconds import Sample
from tensorlrf.compression.report._quality import Judged
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)


def frontier(
    model: nn.Module,
    calibration: Any,
    *,
    evaluate: Evaluate | None = None,
    example: Any = None,
    shares: Sequence[float] = SHARES,
    evaluations: int = 8,
    method: Given = "svd",
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    allocation: str | Allocation = AUTO,
    sensitivity: Sensitivity | None = None,
    loss: str = AUTO,
    readout: Readout | None = None,
    holdout: float = 0.1,
    groups: Any = None,
    journal: PathLike | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> Frontier:
    """What a model of every size is worth: plans for many shares from one look at the layers.

    No plan is carried out. What one loses is told three times, each nearer to the truth: as the sum
    of what its layers are predicted to lose; as the loss of the whole model, all its layers cut
    along the directions of their outputs, on inputs held out; and as what `evaluate` says of that
    cheap model. A full fit (`apply`) is better than it, the more so the smaller the plan. The given
    model with the weights of the same layers rounded to 8 and 4 bits is judged beside.

    Parameters
    ----------
    model : Module
        Stays as it is.
    calibration : iterable of batches, DataLoader or callable
        Inputs, as `apply` takes them.
    evaluate : callable, optional
        One of `tensorlrf.metrics`, on data of its own; or a metric of your own, the higher the
        better: a function of a model to a number, or to a score of each example, as a 1-D tensor or
        a sequence, or to a pair of these scores and of the label of each one's group (as the
        picture that a crop is of). It is called twice on the given model, so that its noise is
        known.
    example : Tensor, tuple or dict, optional
        A batch to time on, on this device: each layer alone at a few ranks, from which follows what
        a plan promises, and whole models in turn: the given one, plans on factors of any values,
        and the rounded ones where torch runs on integers.
    shares : sequence of float
        Of the eligible layers' weights to keep, in (0, 1].
    evaluations : int
        Plans that `evaluate` judges and that are timed whole, at the most, spread over all shares.
    method, skip, include
        As in `plan`.
    allocation : str or Allocation
        How a share is shared out over layers, as in `plan`.
    sensitivity : Sensitivity, optional
        What each layer can lose, found before.
    loss, readout
        What counts of the outputs, as in `sensitivity`.
    holdout, groups
        Which batches serve to judge, as in `apply`.
    journal : str or PathLike, optional
        A folder that gets what is measured, what `evaluate` says among it, as it is measured; the
        same call goes on from there. Times are measured anew.
    random_state, progress
        As in `sensitivity`.

    Returns
    -------
    Frontier

    Raises
    ------
    ArgumentError
        For shares that cannot be, an `evaluate` that fails, or that returns NaN or what is no
        metric, an `example` that the model cannot take, and all that `plan` and `sensitivity`
        raise.
    FileError, FileFormatError
        Of a journal, as in `sensitivity`.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> batches = [torch.rand(64, 64) for _ in range(4)]
    >>> found = tensorlrf.frontier(model, batches, shares=(0.8, 0.4), skip=[], progress=False)
    >>> [point.kind for point in found.points]
    ['dense', 'factors', 'factors', 'int8', 'int4', 'w8a8']
    """
    wanted = _checked(shares)
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise ArgumentError(f"evaluations={evaluations!r} must be a positive int")
    request = Request.of(
        None, method, skip, include, "size", None, allocation, sensitivity, loss, readout,
        random_state, progress,
    )  # fmt: skip
    sample = None if example is None else Sample(Batch.of(example), "example")
    model = unpacked_model(model)
    data = Calibration.read(calibration, model, holdout, groups=groups)
    if data is None:
        raise ArgumentError("calibration=None: a frontier looks at inputs; give some batches")
    asked = {
        "call": "frontier", **request.asked, "holdout": holdout, "evaluate": evaluate,
        "shares": wanted, "evaluations": evaluations,
    }  # fmt: skip
    with kept_in(
        journal, ALONE, random_state, partial(identity, model, data, example, asked)
    ) as kept:
        prospect = Prospect.of(model, replace(request, kept=kept), data)
        judge = None
        if evaluate is not None:
            judge = Judge(evaluate, prospect.model, kept=kept, calibration=calibration)
        return _looked(prospect, wanted, judge, evaluations, sample, progress=progress)


def _looked(
    prospect: Prospect,
    wanted: Sequence[float],
    judge: Judge | None,
    evaluations: int,
    sample: Sample | None,
    *,
    progress: bool,
) -> Frontier:
    """At plans of these shares."""
    plans = [prospect.plan(share) for share in wanted]
    judged = set(spread(len(plans), evaluations))
    quantisers = [q for q in QUANTISERS if not q.activations or prospect.has_linear_layers]
    with progress_bar("judge", len(plans) + len(quantisers), progress) as advance:
        points = [_dense(prospect, judge)]
        for k, (share, plan) in enumerate(zip(wanted, plans, strict=True)):
            points.append(_plan(prospect, share, plan, judge if k in judged else None))
            advance(f"{share:g}")
        for quantiser in quantisers:
            quantised = cache(partial(prospect.quantised, quantiser))
            size, loss = (
                prospect.quantised_size(quantiser),
                prospect.quantised_loss(quantiser, quantised),
            )
            point = FrontierPoint(quantiser.word, None, size.params, size.bytes, loss=loss)
            points.append(_judged(point, judge, quantised, f"the model in {quantiser.word}"))
            advance(quantiser.word)
    if sample is not None:
        points = timed(points, plans, judged, prospect, quantisers, sample)
    return Frontier(
        prospect.unit,
        None if judge is None else judge.noise,
        tuple(points),
        tuple(plans),
        prospect.sensitivity,
        prospect,
        Judged() if judge is None else judge.judged,
    )


def _checked(shares: Any) -> list[float]:
    """The largest first."""
    numbers = [shares] if isinstance(shares, (int, float)) else list(shares)
    good = all(
        isinstance(s, (int, float)) and not isinstance(s, bool) and 0 < s <= 1 for s in numbers
    )
    if not numbers or not good:
        raise ArgumentError(f"shares={shares!r} must be shares in (0, 1], such as (0.8, 0.5, 0.25)")
    return sorted({float(share) for share in numbers}, reverse=True)


def spread(n: int, most: int) -> list[int]:
    """At most so many of n places, the first and the last among them, evenly apart."""
    if n <= most:
        return list(range(n))
    return sorted({round(k * (n - 1) / max(1, most - 1)) for k in range(most)})


def _dense(prospect: Prospect, judge: Judge | None) -> FrontierPoint:
    size = prospect.dense
    quality = None if judge is None else judge.given
    return FrontierPoint(DENSE, None, size.params, size.bytes, loss=0.0, quality=quality)


def _plan(prospect: Prospect, share: float, plan: Plan, judge: Judge | None) -> FrontierPoint:
    size = prospect.size(plan)
    point = FrontierPoint(
        FACTORS, share, size.params, size.bytes, prospect.predicted(plan), prospect.loss(plan)
    )
    return _judged(
        point, judge, lambda: prospect.truncated(plan), f"the model at a share of {share:g}"
    )


def _judged(
    point: FrontierPoint, judge: Judge | None, make: Callable[[], nn.Module], who: str
) -> FrontierPoint:
    if judge is None:
        return point
    found: Drop = judge.drop_of(make, who)
    values = (found.quality, found.mean, found.bound)
    quality, drop, bound = (value if math.isfinite(value) else None for value in values)
    return replace(point, quality=quality, drop=drop, bound=bound)
