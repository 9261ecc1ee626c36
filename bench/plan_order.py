"""Whether the plans that a rule finds better are better: predicted losses beside true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import interval
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.plan._matrix_ranks import matrix_ranks

PLANS = 40
SPREAD = 1.0
"""Standard deviation of the logarithm of the factors that plans near the optimum have."""


def rank_correlation(
    model: nn.Module,
    found: tensorlrf.Sensitivity,
    probe: Any,
    keep: float,
    skip: Sequence[str],
    n_plans: int = PLANS,
) -> dict[str, Any]:
    """Spearman's correlation of predicted and true losses over plans of one budget, each the
    optimum of losses that are multiplied by random factors, a layer each."""
    draws = np.random.default_rng(0)
    predicted, true = [], []
    for _ in range(n_plans):
        factors = np.exp(SPREAD * draws.standard_normal(len(found.layers)))
        weights = {row.name: float(f) for row, f in zip(found.layers, factors, strict=True)}
        plan = tensorlrf.plan(
            model,
            keep_params=keep,
            skip=list(skip),
            sensitivity=found,
            allocation=tensorlrf.Allocation(rule="energy", weights=weights),
        )
        predicted.append(found.predicted(plan))
        true.append(probe.loss_at(matrix_ranks(plan.layers)))
    return {
        "rank_correlation": _pearson(_places(predicted), _places(true)),
        "plans": n_plans,
        "least": min(true),
        "most": max(true),
        "predicted": predicted,
        "true": true,
    }


def told_order(row: Mapping[str, Any]) -> str:
    """The rank correlation of a row, with its interval over plans."""
    predicted, true = np.array(row["predicted"]), np.array(row["true"])

    def correlation(drawn: np.ndarray) -> float:
        return _pearson(_places(predicted[drawn]), _places(true[drawn]))

    low, high = interval(correlation, len(true))
    return (
        f"{row['keep']:g}, {row['rule'].removeprefix('order-')}: rank correlation "
        f"{row['rank_correlation']:.2f} [{low:.2f}, {high:.2f}] over {row['plans']} plans, their "
        f"losses {row['least']:.3g} to {row['most']:.3g}."
    )


def output_energies(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any]
) -> dict[str, float]:
    """The sum of the squares of all that a layer puts out, its bias taken off."""
    found = dict.fromkeys(names, 0.0)
    handles = [
        model.get_submodule(name).register_forward_hook(partial(_add, found, name))
        for name in names
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                model(batch) if isinstance(batch, Tensor) else model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _add(found: dict[str, float], name: str, module: Any, _: Any, y: Tensor) -> None:
    if module.bias is not None:
        axes = y.ndim - 2 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 0
        y = y - module.bias.reshape(-1, *[1] * axes)
    found[name] += float(y.double().square().sum())


def _places(values: Sequence[float]) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])
