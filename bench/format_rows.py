"""One row of `bench/formats.py`: a weight in one format, judged by its entries and its outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bench.format_layers import Layer
from tensorlrf import ops
from tensorlrf.decomposition.methods import registered
from tensorlrf.factors import BlockLowRank, Factors, KroneckerSum

SECONDS = 0.6  # of timing, all paths in turn

Fitted = tuple[Factors, float]
"""Factors, and the seconds that they took."""

PLAIN: dict[str, dict[str, Any]] = {
    "svd": {},
    "tucker": {"modes": (0, 1)},
    "cp": {"n_iter_max": 50, "tol": 1e-4, "random_state": 0},
    "kron": {"random_state": 0},
    "tt": {},
    "tr": {"n_iter_max": 2, "tol": 1e-3, "random_state": 0},
    "blr": {},
    # The rows and columns of a trained weight are in no order, so every block may be low-rank.
    "hierarchical": {"admissible": "all", "random_state": 0},
    "monarch": {},
    "blast": {"n_iter_max": 10, "tol": 1e-3, "random_state": 0},
}
"""Options of the fit of the weight itself; sweeps are bounded so that the table stays short."""

AWARE: dict[str, dict[str, Any]] = {
    "tucker": {"n_iter_max": 3},
    "cp": {"n_iter_max": 3},
    "kron": {"n_iter_max": 2},
    "tt": {"n_iter_max": 1},
    "blr": {"n_iter_max": 4},
    "hierarchical": {"n_iter_max": 4},
    "monarch": {"n_iter_max": 5},
}
"""What the data-aware fit has beside `gram`, and in place of the options above."""


def options_of(format: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Of the plain fit of a weight of this shape.

    A linear layer's train has two cores: the least squares of the middle one of three have r n r'
    unknowns, 17,000 to 53,000 on these layers, and their normal matrix takes up to 22 GB.
    """
    options = PLAIN[format]
    return {**options, "order": 2} if format == "tt" and len(shape) == 2 else dict(options)


def taken_over(format: str, plain: Factors) -> dict[str, Any]:
    """What the data-aware fit need not search for again: the sides of the Kronecker factors, the
    blocks of the grid."""
    if isinstance(plain, KroneckerSum):
        return {"shapes": (tuple(plain.a.shape[1:3]), tuple(plain.b.shape[1:3]))}
    if format == "blr" and isinstance(plain, BlockLowRank):
        first = plain.blocks[0]
        return {"block": (first.rows, first.columns)}
    return {}


@dataclass(frozen=True)
class FormatRow:
    """A layer in one format at one share.

    kept              parameters over those of the weight
    weight_error      relative Frobenius error of the plain fit
    plain, aware      relative error of the outputs on held-out inputs, of the plain fit and of the
                      data-aware one
    calibrated        the same of the data-aware fit on its calibration inputs
    flops             of the chain over those of the dense layer
    path              the fastest but for "dense"
    dense_s, path_s   median seconds of the dense layer and of that path, in turn
    plain_s, aware_s  seconds of the two fits
    """

    model: str
    layer: str
    shape: tuple[int, ...]
    format: str
    share: float
    kept: float
    weight_error: float
    plain: float
    aware: float
    calibrated: float
    flops: float
    path: str
    dense_s: float
    path_s: float
    plain_s: float
    aware_s: float

    @property
    def key(self) -> str:
        return key(self.model, self.layer, self.format, self.share)

    @property
    def speedup(self) -> float:
        return self.dense_s / self.path_s

    @property
    def holds(self) -> bool:
        """The data-aware fit is better on inputs that it has not seen."""
        return self.aware < self.plain

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FormatRow:
        return cls(**{**values, "shape": tuple(values["shape"])})


def key(model: str, layer: str, format: str, share: float) -> str:
    """The name of a row, as `--rows` takes it."""
    return f"{model}:{layer}:{format}:{share:g}"


def measure(
    model: str, name: str, layer: Layer, format: str, share: float, *, seconds: float = SECONDS
) -> FormatRow:
    """Both fits, their errors, what the data-aware one costs, and how long it takes."""
    options = options_of(format, tuple(layer.weight.shape))
    plain, plain_s = _clocked(format, layer.weight, share, options)
    options |= AWARE.get(format, {}) | taken_over(format, plain) | {"gram": layer.gram}
    aware, aware_s = _clocked(format, layer.weight, share, options)
    rows = rows_of(layer)
    stride = layer.options.get("stride")
    chain, dense = (
        ops.path_cost(aware, path, rows, stride=stride, rebuild=False).flops
        for path in ("chain", "dense")
    )
    timings = ops.time_paths(
        aware, layer.x, layer.bias, **layer.options, rebuild=False, seconds=seconds
    )
    path = min((p for p in timings.samples if p != "dense"), key=timings.median)
    return FormatRow(
        model=model,
        layer=name,
        shape=tuple(layer.weight.shape),
        format=format,
        share=share,
        kept=aware.n_params / layer.weight.numel(),
        weight_error=plain.rel_error(layer.weight),
        plain=output_error(layer.weight, plain, layer.held),
        aware=output_error(layer.weight, aware, layer.held),
        calibrated=output_error(layer.weight, aware, layer.gram),
        flops=chain / dense,
        path=path,
        dense_s=timings.median("dense"),
        path_s=timings.median(path),
        plain_s=plain_s,
        aware_s=aware_s,
    )


def output_error(weight: Tensor, factors: Factors, gram: Tensor) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T)) with D = W - A, in float64."""
    wide = weight.flatten(1).double()
    off = wide - factors.to_dense().flatten(1).double()
    lost, whole = (float(((m @ gram) * m).sum()) for m in (off, wide))
    return math.sqrt(max(0.0, lost) / whole)


def rows_of(layer: Layer) -> int:
    """M: tokens, or images times output positions."""
    if layer.weight.ndim == 2:
        return layer.x.numel() // layer.x.shape[-1]
    with torch.inference_mode():
        # One output channel has all positions.
        out = torch.nn.functional.conv2d(layer.x, layer.weight[:1], **layer.options)
    return out.numel()


def _clocked(format: str, weight: Tensor, share: float, options: Mapping[str, Any]) -> Fitted:
    start = time.perf_counter()
    factors = registered(format).for_layers(weight, share, **options)
    return factors, time.perf_counter() - start
