"""What a model loses at each share of its ranks, measured on batches held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._outputs import apart
from tensorlrf.compression.frontier._judge import Evaluate, Judge
from tensorlrf.compression.ranks._rank_scale import rank_scale
from tensorlrf.compression.ranks._table import KEY, RankRow, RankTable, finite, table_of
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica

SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)


def rank_table(
    small: nn.Module,
    calibration: Any,
    *,
    model: nn.Module | None = None,
    scales: Sequence[float] = SCALES,
    evaluate: Evaluate | None = None,
    holdout: float = 0.1,
) -> RankTable:
    """What a model of factored layers loses at each share of its ranks.

    The table becomes the attribute `rank_table` of `small`, which `save` keeps and `load` gives
    back. Order the terms first, by `order_by_energy`.

    Parameters
    ----------
    small : Module
        With factored layers; it runs at each share by `rank_scale`.
    calibration : iterable of batches or callable
        As for `compress`. The same batches and `holdout` hold out the same ones as there, which
        nothing was fitted to.
    model : Module, optional
        What the outputs are compared with, such as the dense model; by default `small` on all its
        ranks.
    scales : sequence of float
        Shares in (0, 1].
    evaluate : callable, optional
        A metric: from a model to a number, the higher the better, or to a score for each example.
    holdout : float
        The share of the batches that is held out; with 0 all of them are looked at.

    Returns
    -------
    RankTable
        It prints itself, is JSON, and finds the smallest share within an error.

    Raises
    ------
    ArgumentError
        For what cannot be, a model without layers to scale, and an `evaluate` that fails.

    Examples
    --------
    >>> model = torch.nn.Sequential(tensorlrf.nn.factorize(torch.nn.Linear(32, 32), "svd", 8))
    >>> batches = [torch.randn(16, 32) for _ in range(10)]
    >>> table = tensorlrf.rank_table(model, batches, scales=(1.0, 0.5))
    >>> [row.params for row in table.rows]
    [544, 288]
    """
    small = own_model(small)
    if KEY in dir(small) and table_of(small) is None:
        raise ArgumentError(f"small has a {KEY} of its own, which the table would replace")
    shares = _checked(scales)
    if not rank_scale(small, shares[0]).ranks:
        raise ArgumentError(
            "small has no layer whose factors have leading terms; compress it first"
        )
    wanted = replica(small if model is None else own_model(model))
    data = Calibration.read(calibration, wanted, holdout)
    if data is None:
        raise ArgumentError("calibration is None; give batches to compare outputs on")
    judge = None if evaluate is None else Judge(evaluate, wanted, calibration=calibration)
    params = sum(p.numel() for p in small.parameters())
    rows = [_row(small, wanted, share, data, judge, params) for share in shares]
    quality = None if judge is None else finite(judge.given)
    table = RankTable(tuple(rows), params, len(data.judging), quality)
    vars(small)[KEY] = table
    return table


def _row(
    small: nn.Module,
    wanted: nn.Module,
    share: float,
    data: Calibration,
    judge: Judge | None,
    params: int,
) -> RankRow:
    with rank_scale(small, share), torch.inference_mode(False), torch.no_grad():
        with without_autocast():
            found = apart(wanted, small, data.judging)
        drop = None if judge is None else judge.drop(small, f"the share {share:.3g}")
        layers = [m for m in small.modules() if isinstance(m, FactoredLayer)]
        run = params - sum(m._assembled().n_params - m.factors.n_params for m in layers)
    interval = None if found is None else found.interval
    return RankRow(
        scale=share,
        params=run,
        error=None if found is None else finite(found.error),
        low=None if interval is None else finite(interval[0]),
        high=None if interval is None else finite(interval[1]),
        quality=None if drop is None else finite(drop.quality),
    )


def _checked(scales: Any) -> list[float]:
    given = list(scales) if isinstance(scales, Sequence) and not isinstance(scales, str) else []
    if not given or not all(type(s) in (int, float) and 0 < s <= 1 for s in given):
        raise ArgumentError(f"scales={scales!r} must be shares in (0, 1], such as (1.0, 0.5)")
    return sorted({float(s) for s in given}, reverse=True)
