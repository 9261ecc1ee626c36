"""The transposed convolutions on factors, in one, two and three axes.

The factors stand for the kernel with its outputs first, (out, in / groups, *kernel), as those of
every other layer: the transposed convolution by a product of matrices is the product of one that is
pointwise and one that is transposed, and by a kernel that is an outer product along the axes, one
after the other along each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.nn._fresh import Fresh, kernel_shape
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.ops import (
    PathTable,
    conv_paths,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from tensorlrf.ops.forms import form_of
from tensorlrf.ops.forms.lowering import CONV_TRANSPOSE, Layer
from tensorlrf.ops.fused import check_layer_path
from tensorlrf.ops.geometry import (
    TRANSPOSED,
    IntOrAxes,
    adjoint,
    per_axis,
    transposed_geometry,
    transposed_sizes,
)

_OPS = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}


class FactoredConvTransposeNd(FactoredLayer):
    """What the transposed convolutions share. A tuple among the options has one entry an axis."""

    n_axes: ClassVar[int]
    padding_mode: ClassVar[str] = "zeros"  # torch has no other

    def __init__(
        self,
        factors: Factors,
        bias: Tensor | None = None,
        *,
        stride: IntOrAxes = 1,
        padding: IntOrAxes = 0,
        output_padding: IntOrAxes = 0,
        dilation: IntOrAxes = 1,
    ) -> None:
        super().__init__(factors, bias, conv_paths(factors, self.n_axes, transposed=True))
        self.groups = form_of(factors).groups(factors)
        self.out_channels, of_a_group, *kernel = factors.shape
        self.in_channels = self.groups * of_a_group
        self.kernel_size = tuple(kernel)
        geometry = transposed_geometry(self.n_axes, stride, padding, output_padding, dilation)
        self.stride, self.padding, self.output_padding, self.dilation = geometry
        self._layer = Layer("conv_transpose", geometry)
        self._geometry = geometry
        self._choose()

    @classmethod
    def from_factors(cls, factors: Factors, like: Any) -> Self:
        """A layer that runs on `factors`, outputs first, in place of `like`.

        Parameters
        ----------
        factors : Factors
            Of the shape (out_channels, in_channels / groups, ...); the weight of `like` has the
            channels of each group the other way round.
        like : ConvTranspose1d, ConvTranspose2d or ConvTranspose3d
            It stays as it is.

        Returns
        -------
        FactoredConvTransposeNd
            Its stride, padding, output padding, dilation, groups, bias (or none), dtype, device,
            memory format, training flag and requires_grad are those of `like`.

        Raises
        ------
        ShapeError
            Where the factors do not stand for a tensor of that shape.
        ArgumentError
            Where they are not a Grouped of as many groups as `like` has.
        UnsupportedError
            Where `like` is not a plain layer of the kind that this one replaces, or is depthwise.
        """
        plain = check_layer(like, cls.kind, "like")
        shape = plain.shape_of(like.weight)
        if isinstance(factors, Factors) and factors.shape != shape:
            raise ShapeError(
                f"factors stand for a tensor of shape {factors.shape}, but like takes {shape}, "
                "(out, in / groups, ...): decompose its weight with outputs and inputs of every "
                "group swapped, like.weight.transpose(0, 1) where there is one group"
            )
        outputs_first = plain.outputs_first(like.weight)
        factors, bias = like_layer(
            factors, SimpleNamespace(weight=outputs_first.contiguous(), bias=like.bias)
        )
        groups = form_of(factors).groups(factors)
        if groups != plain.groups:
            raise ArgumentError(
                f"factors have {groups} group{'s' * (groups > 1)}, like has groups={plain.groups}; "
                "factor each group apart and pass Grouped.stack of the results"
            )
        layer = cls(factors, bias, **plain.conv_options)
        if is_channels_last(like.weight):
            layer.to(memory_format=CHANNELS_LAST[like.weight.ndim])  # type: ignore[call-overload]
        take_over(layer, like)
        return layer

    @classmethod
    def new(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrAxes,
        *,
        rank: Rank,
        method: str = "svd",
        stride: IntOrAxes = 1,
        padding: IntOrAxes = 0,
        output_padding: IntOrAxes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrAxes = 1,
        std: float | None = None,
        init: str = "normal",
        random_state: int | torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """A layer to be trained from the start.

        Parameters
        ----------
        in_channels, out_channels, kernel_size
            As torch's transposed convolution.
        rank, method, std, init, random_state, device, dtype, **options
            As of `FactoredConv2d.new`; the fan_in of torch's default is out_channels / groups times
            the taps.
        stride, padding, output_padding, groups, dilation
            As torch's transposed convolution.
        bias : bool
            Drawn as torch draws it.

        Returns
        -------
        FactoredConvTransposeNd

        Raises
        ------
        RankError, ShapeError, ArgumentError, UnsupportedError
            As `FactoredConv2d.new`.

        Examples
        --------
        >>> new = tensorlrf.nn.FactoredConvTranspose2d.new
        >>> new(16, 8, 4, rank=4, stride=2, padding=1)(torch.rand(1, 16, 5, 5)).shape
        torch.Size([1, 8, 10, 10])
        """
        kernel = per_axis("kernel_size", kernel_size, 1, cls.n_axes)
        shape = kernel_shape(in_channels, out_channels, kernel, groups)
        fan_in = out_channels // groups * math.prod(kernel)
        std = 1 / math.sqrt(3 * fan_in) if std is None else std
        fresh = Fresh(std=std, init=init, random_state=random_state, device=device, dtype=dtype)
        return cls(
            fresh.factors(shape, "conv", method, rank, options, groups),
            fresh.bias(out_channels, fan_in) if bias else None,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
        )

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Inputs `(B, in_channels, *size)` to `(B, out_channels, *size')`, or both without B.

        With an output_size, of the axes or of the whole, the output padding is the one that gives
        it, as in torch.
        """
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        if output_size is not None:
            return self._of_size(input, output_size)
        x = input
        path = self._path(x)
        bias = self._tensor("bias")
        if path == "dense":
            stride, padding, more, dilation = self._geometry
            conv, weight = TRANSPOSED[self.n_axes], self._dense_weight()
            return conv(x, weight, bias, stride, padding, more, self.groups, dilation)
        if x.ndim == self.n_axes + 1:
            return self._runs[path].run(x[None], *self._held(), bias)[0]
        return self._runs[path].run(x, *self._held(), bias)

    def _of_size(self, x: Tensor, output_size: Sequence[int]) -> Tensor:
        """The same with the output padding that gives `output_size`."""
        n = self.n_axes
        none = self._geometry._replace(output_padding=(0,) * n)
        least = transposed_sizes(tuple(x.shape[-n:]), self.kernel_size, *none)
        more = tuple([int(a) - b for a, b in zip(output_size[-n:], least, strict=False)])
        told = len(output_size) in (n, x.ndim)
        if not told or any(not 0 <= o < s for o, s in zip(more, self.stride, strict=True)):
            most = tuple([a + s - 1 for a, s in zip(least, self.stride, strict=True)])
            raise ArgumentError(
                f"output_size={tuple(output_size)} must have {n} entries from {least} to {most} "
                f"for an input of shape {tuple(x.shape)}"
            )
        stride, padding, _, dilation = self._geometry
        bias, path = self._tensor("bias"), self._path(x)
        return _OPS[n](x, self.factors, bias, stride, padding, more, dilation, path=path)

    def _rebuilt(self) -> Tensor:
        return adjoint(super()._rebuilt(), self.groups)

    def _made_weight(self) -> Tensor:
        return adjoint(self.factors.to_dense(), self.groups).contiguous()

    def _blank_weight(self) -> Tensor:
        factors = self.factors
        sizes = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return torch.empty(sizes, dtype=factors.dtype, device="meta")

    def _find_paths(self, factors: Factors) -> tuple[str, ...]:
        return conv_paths(factors, self.n_axes, transposed=True)

    def _check_fused(self) -> None:
        check_layer_path("fused", self.paths, self.factors, CONV_TRANSPOSE)

    def _kept_as(self, factors: Factors) -> dict[str, tuple[int, ...]]:
        if self._rank is not None and self.groups > 1:
            return {}  # leading terms are cut out of each group
        return form_of(factors).kernels(factors, CONV_TRANSPOSE.conv(factors))

    def _rows(self, x: Tensor) -> int:
        rows = x.shape[0] if x.ndim == self.n_axes + 2 else 1
        size = tuple(x.shape[-self.n_axes :])
        for n in transposed_sizes(size, self.kernel_size, *self._geometry):
            rows *= n
        return rows

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        return PathTable.from_cost(
            self.factors, stride=self.stride, rebuild=not frozen, transposed=True
        )

    def _options_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}, padding={self.padding}",
        ]
        if any(n != 1 for n in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if any(self.output_padding):
            parts.append(f"output_padding={self.output_padding}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        return ", ".join(parts)


class FactoredConvTranspose1d(FactoredConvTransposeNd):
    """A transposed convolution in one axis whose kernel is held as factors.

    Factors and bias are copied. `weight` is in the layout of torch, (in_channels, out_channels /
    groups, k).

    Parameters
    ----------
    factors : LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors or Grouped
        Of the shape (out_channels, in_channels / groups, k), outputs first;
        a Grouped of one of the others gives the number of groups.
    bias : Tensor of shape (out_channels,), optional
        Of the dtype and on the device of the factors.
    stride, padding, output_padding, dilation
        As torch.nn.ConvTranspose1d.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = torch.nn.ConvTranspose1d(8, 4, 5, stride=2)
    >>> small = tensorlrf.nn.factorize(layer, "cp", 4)
    >>> small(torch.rand(2, 8, 20)).shape == layer(torch.rand(2, 8, 20)).shape
    True
    """

    kind = nn.ConvTranspose1d
    n_axes = 1


class FactoredConvTranspose2d(FactoredConvTransposeNd):
    """A transposed convolution in two axes whose kernel is held as factors.

    Factors and bias are copied. `weight` is in the layout of torch, (in_channels, out_channels /
    groups, kh, kw).

    Parameters
    ----------
    factors : LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors or Grouped
        Of the shape (out_channels, in_channels / groups, kh, kw), outputs first;
        a Grouped of one of the others gives the number of groups.
    bias : Tensor of shape (out_channels,), optional
        Of the dtype and on the device of the factors.
    stride, padding, output_padding, dilation
        As torch.nn.ConvTranspose2d.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = torch.nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
    >>> small = tensorlrf.nn.factorize(layer, "svd", 4)
    >>> small(torch.rand(1, 16, 5, 5)).shape
    torch.Size([1, 8, 10, 10])
    """

    kind = nn.ConvTranspose2d
    n_axes = 2


class FactoredConvTranspose3d(FactoredConvTransposeNd):
    """A transposed convolution in three axes whose kernel is held as factors.

    Factors and bias are copied. `weight` is in the layout of torch, (in_channels, out_channels /
    groups, kd, kh, kw).

    Parameters
    ----------
    factors : LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors or Grouped
        Of the shape (out_channels, in_channels / groups, kd, kh, kw), outputs first;
        a Grouped of one of the others gives the number of groups.
    bias : Tensor of shape (out_channels,), optional
        Of the dtype and on the device of the factors.
    stride, padding, output_padding, dilation
        As torch.nn.ConvTranspose3d.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = torch.nn.ConvTranspose3d(4, 4, 2, stride=2)
    >>> tensorlrf.nn.factorize(layer, "tucker", 2)(torch.rand(1, 4, 5, 6, 7)).shape
    torch.Size([1, 4, 10, 12, 14])
    """

    kind = nn.ConvTranspose3d
    n_axes = 3
