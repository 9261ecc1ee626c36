"""What the public convolutions of both kinds check of their input, and how they choose a path."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors
from tensorlrf.ops._paths import nominal_path
from tensorlrf.ops.buckets import bucket
from tensorlrf.ops.checks import check_bias, check_input
from tensorlrf.ops.forms._form import form_of
from tensorlrf.ops.forms.lowering import CONV_TRANSPOSE, Layer
from tensorlrf.ops.fused import check_layer_path, paths_here
from tensorlrf.ops.geometry import Axes, rows_of

_SIZE = {1: "L", 2: "H, W", 3: "D, H, W"}


def check_image(x: Tensor, factors: Factors, bias: Tensor | None) -> None:
    """x is (B, g I, ...) or (g I, ...), and the bias (O,) or None, for a kernel (O, I, ...)."""
    out_channels, in_channels, *kernel = factors.shape
    axes, groups = len(kernel), form_of(factors).groups(factors)
    channels = groups * in_channels
    check_input(x, factors)
    if x.ndim not in (axes + 1, axes + 2):
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; it must be (B, {channels}, {_SIZE[axes]}) or "
            f"({channels}, {_SIZE[axes]})"
        )
    if x.shape[-axes - 1] != channels:
        of = f" ({groups} groups of {in_channels})" if groups > 1 else ""
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and so {x.shape[-axes - 1]} channels; the kernel "
            f"takes {channels}{of} (the factors of a convolution with groups are a Grouped)"
        )
    check_bias(bias, out_channels, factors)


def fitting_path(
    layer: Layer, path: str | None, factors: Factors, x: Tensor, sizes: Axes, stride: Axes
) -> str:
    """The path that is asked for, which must be one of the layer's; where none is, the one that the
    cost model expects to be fastest for x, of which outputs of these sizes are made."""
    paths = paths_here(layer, factors)
    if path is not None:
        check_layer_path(path, paths, factors, layer)
        return path
    rows, transposed = bucket(rows_of(x, sizes)), layer.kind == CONV_TRANSPOSE.kind
    return nominal_path(factors, paths, rows, stride, x.device.type, transposed)
