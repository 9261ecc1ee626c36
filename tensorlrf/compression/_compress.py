"""From a model to a smaller one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression._apply import Plan, copy_of, factor_all, replace
from tensorlrf.compression._batches import list_batches
from tensorlrf.compression._factor import METHODS, ladder_of
from tensorlrf.compression._ranks import allocate
from tensorlrf.compression._report import Report, Totals
from tensorlrf.compression._survey import check_values, layer_at, survey
from tensorlrf.decomposition._input import generator
from tensorlrf.errors import ArgumentError, unknown

TARGETS = ("prefix", "original")


def compress(
    model: nn.Module,
    *,
    keep_params: float,
    method: str = "svd",
    calibration: Any = None,
    skip: Sequence[str] = (),
    target: str = "prefix",
    rank_shares: tuple[float, float] = (0.7, 1.0),
    rerun: bool = False,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> tuple[nn.Module, Report]:
    """A copy of the model that runs on factors, and a report. The given model stays as it is.

    Eligible are layers that are exactly `torch.nn.Linear`, or `torch.nn.Conv2d` of one group with a
    kernel of more than one element, where the factored form is smaller. All other modules stay and
    are listed in the report with the reason. Ranks are uniform: every eligible layer keeps about
    the same share, in multiples of 8 (below 8, in ones).

    keep_params   share of the eligible layers' weights to keep, in (0, 1]: an upper bound, layers
                  that must stay dense for want of a rank included; biases are not counted
    method        "svd": a matrix of low rank, for a conv (O, I kh kw); "tucker": Tucker-2 on the
                  channels of a conv (Kim et al. 2016); "cp": CP of a conv (Lebedev et al. 2015).
                  A Linear has the SVD in each of them.
    calibration   iterable of batches, or a DataLoader: tensors, tuples (positional arguments),
                  dicts (keyword arguments), on the model's device. It is drawn once and held. The
                  model runs in eval mode without grad. "svd" and "tucker" then minimise the error
                  of each layer's *outputs*, W x, on the inputs x that the layers compressed before
                  it deliver; "cp" has no such form, its output errors are measured all the same.
    target        what the outputs of a layer are fitted to. "prefix": W x, the given weight on the
                  inputs x that the compressed layers before it deliver. "original": W x0, on the
                  inputs x0 of the given model, from x; what earlier layers lost is then made good
                  where x still tells of it (Zhang et al. 2016, asymmetric reconstruction), which
                  matters in deep networks. It costs a second copy of the model, and of the
                  activations.
    skip          globs of qualified names that stay; a glob covers all that a module holds
    rank_shares   "tucker": relative sizes of r_out / O and r_in / I
    rerun         False: each batch's forward pass is held where it is while a layer is factored, so
                  that calibration costs two passes for the first batch and one for each other, and
                  the activations of all batches are alive at once. True: one batch's activations
                  at a time, for about L / 2 passes a batch with L layers.
    random_state  seed or torch.Generator of the methods that draw; torch's own stays as it was
    progress      a bar on stderr, where that is a terminal

    Returns the compressed copy, its training flags as in `model`, and a `Report`.

    Raises ArgumentError for a share outside (0, 1] or one too small for any rank, an unknown
    method, a glob that matches nothing, no eligible layer, NaN or Inf in a weight or in the inputs
    of a layer, and batches that the model cannot take. Warns (CalibrationWarning) of layers
    with fewer than 4 n samples, and of layers that calibration does not reach and that get the
    plain method.
    """
    _check(model, keep_params, method, target, rank_shares, random_state)
    with contextlib.ExitStack() as stack:
        # Parameters made in inference mode could not be trained, and drawing from a DataLoader or
        # running the model may advance torch's generators.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(_cuda_devices(model)))
        globs = [skip] if isinstance(skip, str) else list(skip)
        plan = _plan(model, keep_params, method, globs, rank_shares)
        batches = None if calibration is None else list_batches(calibration)
        small = copy_of(model)
        done, trace = factor_all(
            small,
            plan,
            method,
            batches,
            target=target,
            rerun=rerun,
            random_state=random_state,
            progress=progress,
        )
        small, rows = replace(small, plan, done, trace)
    report = Report(
        keep_params=float(keep_params),
        method=method,
        target=target,
        batches=len(batches or ()),
        layers=tuple(rows),
        model=_totals(model, small),
    )
    return small, report


def _check(
    model: Any, keep_params: Any, method: str, target: str, rank_shares: Any, random_state: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    number = isinstance(keep_params, (int, float)) and not isinstance(keep_params, bool)
    if not number or not 0 < keep_params <= 1:
        raise ArgumentError(
            f"keep_params={keep_params!r} must be a share in (0, 1]: 0.25 keeps at most a quarter "
            "of the eligible layers' parameters"
        )
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    pair = isinstance(rank_shares, (tuple, list)) and len(rank_shares) == 2
    if not pair or not all(isinstance(s, (int, float)) and 0 < s <= 1 for s in rank_shares):
        raise ArgumentError(
            f"rank_shares={rank_shares!r} must be two numbers in (0, 1], the relative sizes of "
            "r_out / O and r_in / I, such as (0.7, 1.0)"
        )
    if not isinstance(random_state, torch.Generator):
        generator(random_state, torch.device("cpu"))


def _plan(
    model: nn.Module,
    keep_params: float,
    method: str,
    skip: list[str],
    rank_shares: tuple[float, float],
) -> Plan:
    """What is where, and the rank of each layer that gets one."""
    found = survey(model, skip)
    ladders = {
        one.name: ladder_of(layer_at(model, one.name), method, rank_shares)
        for one in found
        if one.eligible
    }
    found = [
        one.left("no factored form is smaller")
        if one.eligible and not ladders[one.name].rungs
        else one
        for one in found
    ]
    eligible = [one.name for one in found if one.eligible]
    if not eligible:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in found[:20])
        more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
        raise ArgumentError(
            "model has no eligible layer, which is a Linear, or a Conv2d with a kernel above "
            f"1 x 1, that becomes smaller as factors ({reasons or 'it has no parameters'}{more})"
        )
    for name in eligible:
        check_values(name, layer_at(model, name).weight)
    rungs = allocate([ladders[name] for name in eligible], keep_params)
    ranks = {n: rung.rank for n, rung in zip(eligible, rungs, strict=True) if rung is not None}
    return Plan(tuple(found), ranks)


def _totals(before: nn.Module, after: nn.Module) -> Totals:
    params, size = _numbers(before)
    params_after, size_after = _numbers(after)
    return Totals(params, params_after, size, size_after)


def _numbers(model: nn.Module) -> tuple[int, int]:
    own = [p for p in model.parameters() if not is_lazy(p)]
    return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    homes = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(homes, key=lambda device: device.index or 0)
