"""The convolutions on factors, in one, two and three axes."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import unknown
from tensorlrf.factors import Factors
from tensorlrf.nn.convolutions.sliding import FactoredSlidingNd
from tensorlrf.ops.geometry import (
    Axes,
    Geometry,
    IntOrAxes,
    PaddingArgument,
    flat,
    output_sizes,
    per_axis,
    resolve_padding,
)

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class FactoredConvNd(FactoredSlidingNd):
    """What the plain convolutions share. A tuple among the options has one entry an axis."""

    transposed = False

    def __init__(
        self,
        factors: Factors,
        bias: Tensor | None = None,
        *,
        stride: IntOrAxes = 1,
        padding: PaddingArgument = 0,
        dilation: IntOrAxes = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(factors, bias)
        if padding_mode not in PADDING_MODES:
            raise unknown("padding_mode", padding_mode, PADDING_MODES)
        self.stride = per_axis("stride", stride, 1, self.n_axes)
        self.dilation = per_axis("dilation", dilation, 1, self.n_axes)
        zeros = resolve_padding(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = self._padding_attribute(padding, zeros.sides)
        self.padding_mode = padding_mode
        self._padded_by = zeros.total
        # What is not the same number of zeros on both sides is put there before the convolution.
        ahead = padding_mode != "zeros" or any(zeros.excess)
        self._pad_ahead = tuple(flat(zeros.sides)) if ahead else None
        self._pad_mode = "constant" if padding_mode == "zeros" else padding_mode
        inside = (0,) * self.n_axes if ahead else zeros.each_side
        self._slide(Geometry(self.stride, inside, self.dilation))

    @staticmethod
    def _padding_attribute(
        padding: PaddingArgument, sides: tuple[tuple[int, int], ...]
    ) -> str | tuple[int, ...] | tuple[tuple[int, int], ...]:
        """The word, or ints, or pairs where the two sides of an axis differ."""
        if isinstance(padding, str):
            return padding
        if all(before == after for before, after in sides):
            return tuple(before for before, _ in sides)
        return sides

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
        padding: PaddingArgument = 0,
        dilation: IntOrAxes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
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
            As torch's convolution.
        rank : int, tuple, float or str
            As the decomposition takes it: a share counts parameters, an upper bound; of a
            convolution with groups, of each group.
        method : str
            The word of a decomposition that serves such a layer; its form is what is trained. Sizes
            that a fit would choose by a weight are those that cost least, unless options say
            otherwise (`shapes=`, `row_sizes=`, `blocks=`).
        stride, padding, dilation, groups, padding_mode
            As torch's convolution; padding may be (before, after) of each axis too.
        bias : bool
            Drawn as torch draws it.
        std : float, optional
            Standard deviation of the entries of the weight that the factors stand for, by default
            that of torch's layer, 1 / sqrt(3 fan_in); sqrt(2 / fan_in) is He's for ReLU.
        init : {"normal", "spectral"}
            Normal numbers in every tensor, all tensors of one norm, and no dense weight is made; or
            the factors of a random dense weight, brought back to its norm (Khodak et al. 2021).
        random_state : int or Generator, optional
            Torch's global generator is left alone.
        device, dtype
            As torch's layers take them.
        **options
            Of the method.

        Returns
        -------
        FactoredConvNd

        Raises
        ------
        RankError, ShapeError, ArgumentError
            For what cannot be.
        UnsupportedError
            For a method whose sizes follow from a weight, such as "blr", unless by "spectral".

        References
        ----------
        He et al. 2015 (variance); Khodak et al. 2021, "Initialization and regularization of
        factorized neural layers".

        Examples
        --------
        >>> new = tensorlrf.nn.FactoredConv2d.new
        >>> layer = new(64, 64, 3, rank=0.25, method="cp", padding=1, random_state=0)
        >>> layer(torch.randn(1, 64, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
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
            dilation=dilation,
            padding_mode=padding_mode,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Inputs `(B, in_channels, *size)` to `(B, out_channels, *size')`, or both without B."""
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        x, path = input, self._path(input)
        if self._pad_ahead is not None:
            x = F.pad(x, self._pad_ahead, self._pad_mode)
        return self._by_path(path, x)

    def _output_sizes(self, size: Axes) -> Axes:
        return output_sizes(size, self.kernel_size, self.stride, self._padded_by, self.dilation)


class FactoredConv1d(FactoredConvNd):
    """A convolution in one axis whose kernel is held as factors.

    y = conv1d(x, K) + bias for a K (out_channels, in_channels / groups, k). Factors and bias are
    copied.

    Parameters
    ----------
    factors : LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors or Grouped
        Of the shape of K; a Grouped of one of the others gives the number of groups.
    bias : Tensor of shape (out_channels,), optional
        Of the dtype and on the device of the factors.
    stride, padding, dilation, padding_mode
        As torch.nn.Conv1d, "same" and "valid" included; padding may be ((before, after),) too.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = tensorlrf.nn.factorize(torch.nn.Conv1d(8, 8, 5, padding=2), "cp", 4)
    >>> layer(torch.rand(2, 8, 20)).shape
    torch.Size([2, 8, 20])
    """

    kind = nn.Conv1d
    n_axes = 1


class FactoredConv2d(FactoredConvNd):
    """A convolution in two axes whose kernel is held as factors.

    y = conv2d(x, K) + bias for a K (out_channels, in_channels / groups, kh, kw). Factors and bias
    are copied.

    Parameters
    ----------
    factors : LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors or Grouped
        Of the shape of K; a Grouped of one of the others gives the number of groups.
    bias : Tensor of shape (out_channels,), optional
        Of the dtype and on the device of the factors.
    stride, padding, dilation, padding_mode
        As torch.nn.Conv2d, "same" and "valid" included; padding may be (before, after) for each
        axis too.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 4, 3, 3), 2)
    >>> layer = tensorlrf.nn.FactoredConv2d(f, stride=2, padding="valid")
    >>> layer(torch.rand(1, 4, 9, 9)).shape
    torch.Size([1, 8, 4, 4])
    """

    kind = nn.Conv2d
    n_axes = 2


class FactoredConv3d(FactoredConvNd):
    """A convolution in three axes whose kernel is held as factors.

    y = conv3d(x, K) + bias for a K (out_channels, in_channels / groups, kd, kh, kw). The arguments
    are as for FactoredConv2d, with three axes (depth, height, width). Factors and bias are copied.

    Parameters
    ----------
    factors : LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors or Grouped
        Of the shape of K; a Grouped of one of the others gives the number of groups.
    bias : Tensor of shape (out_channels,), optional
        Of the dtype and on the device of the factors.
    stride, padding, dilation, padding_mode
        As torch.nn.Conv3d; padding may be (before, after) for each axis too.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = tensorlrf.nn.factorize(torch.nn.Conv3d(4, 4, 3), "svd", 2)
    >>> layer(torch.rand(1, 4, 5, 6, 7)).shape
    torch.Size([1, 4, 3, 4, 5])
    """

    kind = nn.Conv3d
    n_axes = 3
