"""Measuring which path is fastest."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.ops._conv import run_sliding
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._functional import conv1d, conv2d, conv3d, linear
from tensorlrf.ops._linear import run_linear
from tensorlrf.ops._paths import paths_of
from tensorlrf.ops._transposed import conv_transpose1d, conv_transpose2d, conv_transpose3d
from tensorlrf.ops.checks import check_defaults, check_is_conv, check_path
from tensorlrf.ops.forms._form import form_of
from tensorlrf.ops.forms.shared._slide import is_channels_last
from tensorlrf.ops.geometry import (
    Geometry,
    IntOrAxes,
    PaddingArgument,
    Sliding,
    per_axis,
    resolve_padding,
    transposed_geometry,
)

LEAST_ROUNDS = 3
MOST_ROUNDS = 1000
SAMPLE_SECONDS = 2e-4  # a sample repeats a short call until it lasts about this long


@dataclass(frozen=True)
class Timings:
    """Measured times.

    Parameters
    ----------
    samples : Mapping
        Path -> one sample a round, in seconds a call.

    Examples
    --------
    >>> times = tensorlrf.ops.Timings({"dense": (2.0, 3.0, 2.5), "chain": (1.0, 1.5, 1.2)})
    >>> times.best, times.median("dense"), times.minimum("chain")
    ('chain', 2.5, 1.0)
    """

    samples: Mapping[str, tuple[float, ...]]

    def median(self, path: str) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.samples[path])

    def minimum(self, path: str) -> float:
        """Least over the rounds, in seconds."""
        return min(self.samples[path])

    @property
    def best(self) -> str:
        """The path of the smallest median."""
        return min(self.samples, key=self.median)

    def table(self) -> str:
        """One line a path: median, minimum, and speed relative to the first path."""
        base = self.median(next(iter(self.samples)))
        width = max(4, *map(len, self.samples))
        lines = [f"{'path':<{width}}  median ms     min ms  speed"]
        for path in self.samples:
            median = self.median(path)
            mark = "  <- best" if path == self.best else ""
            lines.append(
                f"{path:<{width}} {median * 1e3:10.4f} {self.minimum(path) * 1e3:10.4f} "
                f"{base / median:6.2f}{mark}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.5,
    device: torch.device | str = "cpu",
    hopeless: float = math.inf,
    rounds: int = LEAST_ROUNDS,
) -> Timings:
    """Time calls against each other.

    Rounds run forwards and backwards in turn (A B, B A, A B, ...), so that a drift of the machine
    meets all calls alike. On CUDA the clock is that of the device (events), and the host waits for
    each sample.

    Parameters
    ----------
    calls : Mapping
        Name -> what is called.
    seconds : float
        About so long in all.
    device : device or str
    hopeless : float
        A call that takes more than so many times the fastest, in its first two samples, is not
        sampled again.
    rounds : int
        Samples of each at the least, however long they take.

    Returns
    -------
    Timings

    Raises
    ------
    ArgumentError
        Where there is nothing to time.

    Examples
    --------
    >>> x = torch.rand(64, 64)
    >>> times = tensorlrf.ops.time_calls({"sum": x.sum, "product": lambda: x @ x}, seconds=0.01)
    >>> sorted(times.samples)
    ['product', 'sum']
    """
    if not calls:
        raise ArgumentError("calls={} is empty; give one call at least")
    if not seconds > 0:
        raise ArgumentError(f"seconds={seconds!r} must be above zero")
    if not rounds > 0:
        raise ArgumentError(f"rounds={rounds!r} must be at least 1")
    sample = _sample_cuda if torch.device(device).type == "cuda" else _sample_host
    end = time.perf_counter() + seconds
    first, repeats = {}, {}
    for name, call in calls.items():
        call()  # compiles, allocates, and fills the caches of the libraries
        first[name] = sample(call, 1)
        repeats[name] = max(1, min(20, math.ceil(SAMPLE_SECONDS / max(first[name], 1e-9))))
    limit = hopeless * min(first.values())
    # One sample may have been disturbed, two of them hardly are.
    samples = {
        name: [min(first[name], sample(calls[name], repeats[name]))] if first[name] > limit else []
        for name in calls
    }
    alive = [name for name, values in samples.items() if not values or values[0] <= limit]
    for name in alive:
        samples[name].clear()
    for k in range(MOST_ROUNDS):
        for name in alive[:: 1 if k % 2 == 0 else -1]:
            samples[name].append(sample(calls[name], repeats[name]))
        if k + 1 >= rounds and time.perf_counter() > end:
            break
    return Timings({name: tuple(values) for name, values in samples.items()})


def time_paths(
    factors: Factors,
    x: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrAxes = 1,
    padding: PaddingArgument = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    transposed: bool = False,
    paths: Sequence[str] | None = None,
    rebuild: bool = True,
    seconds: float = 0.5,
) -> Timings:
    """Time the paths of a layer on the input `x`, without gradients.

    Parameters
    ----------
    factors : Factors
        Those of order 2 are timed as `ops.linear`, of order 3, 4 and 5 as `ops.conv1d`, `conv2d`
        and `conv3d`, or with `transposed` as `ops.conv_transpose1d` and so on, whose arguments
        these are.
    x : Tensor
    bias : Tensor, optional
    stride, padding, dilation
        Of a convolution.
    output_padding
        Of a transposed one.
    transposed : bool
        Whether the convolution is a transposed one.
    paths : sequence of str, optional
        By default all that the format has, "dense" first.
    rebuild : bool
        "dense" rebuilds the weight in each call; False times it as a frozen layer, which keeps its
        weight, in the memory format of x.
    seconds : float
        About so long in all.

    Returns
    -------
    Timings

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        What the ops raise.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(64, 64), 4)
    >>> times = tensorlrf.ops.time_paths(f, torch.rand(16, 64), seconds=0.01)
    >>> sorted(times.samples)
    ['chain', 'dense']
    """
    known = paths_of(factors, transposed=transposed)
    paths = known if paths is None else tuple(paths)
    for path in paths:
        check_path(path, known)
    check_is_conv(
        factors,
        stride=(stride, 1),
        padding=(padding, 0),
        output_padding=(output_padding, 0),
        dilation=(dilation, 1),
        transposed=(transposed, False),
    )
    if not transposed:
        why = "transposed convolutions alone have it; give transposed=True, or leave it out"
        check_defaults(why, output_padding=(output_padding, 0))
    with torch.no_grad():
        if len(factors.shape) == 2:
            layer = _linear(factors, x, bias)
        elif transposed:
            sliding = (stride, padding, output_padding, dilation)
            layer = _conv_transpose(factors, x, bias, *sliding)
        else:
            layer = _conv(factors, x, bias, stride, padding, dilation)
        for path in paths:
            layer.checked(path)
        calls: dict[str, Callable[[], Tensor]] = {p: partial(layer.run, p) for p in paths}
        if "dense" in calls and not rebuild:
            calls["dense"] = layer.kept(dense_weight(factors))
        return time_calls(calls, seconds=seconds, device=x.device)


class _Timed(NamedTuple):
    """A layer on an input.

    checked  by a path, with the op that checks everything
    run      by a path, as a module calls it
    kept     of a dense weight: the call of a frozen module, which keeps it
    """

    checked: Callable[[str], Tensor]
    run: Callable[[str], Tensor]
    kept: Callable[[Tensor], Callable[[], Tensor]]


def _linear(factors: Factors, x: Tensor, bias: Tensor | None) -> _Timed:
    return _Timed(
        lambda path: linear(x, factors, bias, path=path),
        lambda path: run_linear(path, factors, x, bias),
        lambda weight: partial(F.linear, x, weight, bias),
    )


def _conv(
    factors: Factors,
    x: Tensor,
    bias: Tensor | None,
    stride: IntOrAxes,
    padding: PaddingArgument,
    dilation: IntOrAxes,
) -> _Timed:
    kernel = factors.shape[2:]
    strides = per_axis("stride", stride, 1, len(kernel))
    dilations = per_axis("dilation", dilation, 1, len(kernel))
    zeros = resolve_padding(padding, kernel, strides, dilations)
    ahead = zeros.ahead  # beyond those that the convolution puts there itself
    op = {1: conv1d, 2: conv2d, 3: conv3d}[len(kernel)]
    return _Timed(
        lambda path: op(x, factors, bias, stride, padding, dilation, path=path),
        *_sliding(factors, x, bias, Geometry(strides, zeros.shared, dilations), ahead),
    )


def _conv_transpose(
    factors: Factors,
    x: Tensor,
    bias: Tensor | None,
    stride: IntOrAxes,
    padding: Any,  # a word or pairs are refused
    output_padding: IntOrAxes,
    dilation: IntOrAxes,
) -> _Timed:
    given = (stride, padding, output_padding, dilation)
    axes = len(factors.shape) - 2
    op = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}[axes]
    return _Timed(
        lambda path: op(x, factors, bias, *given, path=path),
        *_sliding(factors, x, bias, transposed_geometry(axes, *given)),
    )


def _sliding(
    factors: Factors,
    x: Tensor,
    bias: Tensor | None,
    geometry: Sliding,
    ahead: Sequence[int] = (),
) -> tuple[Callable[[str], Tensor], Callable[[Tensor], Callable[[], Tensor]]]:
    """How a convolution of either kind runs by a path, and on a weight that is kept."""
    groups = form_of(factors).groups(factors)

    def padded() -> Tensor:
        return F.pad(x, ahead) if ahead else x

    def kept(weight: Tensor) -> Callable[[], Tensor]:
        own = geometry.as_torch_has(weight, groups).contiguous()
        if is_channels_last(x):
            own = own.movedim(1, -1).contiguous().movedim(-1, 1)
        return lambda: geometry.by_weight(padded(), own, bias, groups)

    return lambda path: run_sliding(path, factors, padded(), bias, geometry), kept


def _sample_host(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _sample_cuda(call: Callable[[], object], repeats: int) -> float:
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    stop: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1e-3 / repeats
