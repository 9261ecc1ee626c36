"""The transposed convolutions on factors, in one, two and three axes.

The factors stand for the kernel with its outputs first, (out, in / groups, *kernel), as those of
every other layer: the transposed convolution by a product of matrices is the product of one that is
pointwise and one that is transposed, and by a kernel that is an outer product along the axes, one
after the other along each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.nn.convolutions.sliding import FactoredSlidingNd
from tensorlrf.ops import conv_transpose1d, conv_transpose2d, conv_transpose3d
from tensorlrf.ops.geometry import (
    Axes,
    IntOrAxes,
    TransposedGeometry,
    adjoint,
    transposed_geometry,
    transposed_sizes,
)

_OPS = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}


class FactoredConvTransposeNd(FactoredSlidingNd):
    """What the transposed convolutions share. A tuple among the options has one entry an axis."""

    transposed = True
    padding_mode: ClassVar[str] = "zeros"  # torch has no other
    _geometry: TransposedGeometry

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
        super().__init__(factors, bias)
        geometry = transposed_geometry(self.n_axes, stride, padding, output_padding, dilation)
        self.stride, self.padding, self.output_padding, self.dilation = geometry
        self._slide(geometry)

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
        factors, drawn = cls._drawn(
            in_channels, out_channels, kernel_size, groups, bias, rank, method, options,
            std=std, init=init, random_state=random_state, device=device, dtype=dtype,
        )  # fmt: skip
        return cls(
            factors,
            drawn,
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
        return self._by_path(self._path(input), input)

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

    def _output_sizes(self, size: Axes) -> Axes:
        return transposed_sizes(size, self.kernel_size, *self._geometry)


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
