"""The convolutions on factors, in one, two and three axes."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors import Factors
from tensorlrf.nn._fresh import Fresh, kernel_shape
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.ops import PathTable, conv_paths
from tensorlrf.ops.forms import form_of
from tensorlrf.ops.forms.lowering import CONV, Layer
from tensorlrf.ops.geometry import (
    CONVOLUTION,
    Geometry,
    IntOrAxes,
    PaddingArgument,
    flat,
    output_sizes,
    per_axis,
    resolve_padding,
)

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class FactoredConvNd(FactoredLayer):
    """What the convolutions share. A tuple among the options has one entry an axis."""

    n_axes: ClassVar[int]

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
        super().__init__(factors, bias, conv_paths(factors, self.n_axes))
        if padding_mode not in PADDING_MODES:
            raise unknown("padding_mode", padding_mode, PADDING_MODES)
        self.groups = form_of(factors).groups(factors)
        self.out_channels, of_a_group, *kernel = factors.shape
        self.in_channels = self.groups * of_a_group
        self.kernel_size = tuple(kernel)
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
        self._conv_padding = (0,) * self.n_axes if ahead else zeros.each_side
        self._geometry = Geometry(self.stride, self._conv_padding, self.dilation)
        self._layer = Layer("conv", self._geometry)
        self._choose()

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
    def from_factors(cls, factors: Factors, like: Any) -> Self:
        """A layer that runs on `factors` in place of `like`.

        Parameters
        ----------
        factors : Factors
        like : Conv1d, Conv2d or Conv3d
            It stays as it is.

        Returns
        -------
        FactoredConvNd
            Its stride, padding, dilation, padding mode, groups, bias (or none), dtype, device,
            memory format, training flag and requires_grad are those of `like`.

        Raises
        ------
        ShapeError
            Where the factors do not stand for a tensor of the weight's shape.
        ArgumentError
            Where they are not a Grouped of as many groups as `like` has.
        UnsupportedError
            Where `like` is not a plain layer of the kind that this one replaces, or is depthwise.
        """
        plain = check_layer(like, cls.kind, "like")
        factors, bias = like_layer(factors, like)
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
        kernel = per_axis("kernel_size", kernel_size, 1, cls.n_axes)
        shape = kernel_shape(in_channels, out_channels, kernel, groups)
        fan_in = math.prod(shape[1:])
        std = 1 / math.sqrt(3 * fan_in) if std is None else std
        fresh = Fresh(std=std, init=init, random_state=random_state, device=device, dtype=dtype)
        return cls(
            fresh.factors(shape, "conv", method, rank, options, groups),
            fresh.bias(out_channels, fan_in) if bias else None,
            stride=stride,
            padding=padding,
            dilation=dilation,
            padding_mode=padding_mode,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Inputs `(B, in_channels, *size)` to `(B, out_channels, *size')`, or both without B."""
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        x = input
        path = self._path(x)
        if self._pad_ahead is not None:
            x = F.pad(x, self._pad_ahead, self._pad_mode)
        bias = self._tensor("bias")
        if path == "dense":
            conv = CONVOLUTION[self.n_axes]
            return conv(x, self._dense_weight(), bias, *self._geometry, self.groups)
        if x.ndim == self.n_axes + 1:
            return self._runs[path].run(x[None], *self._held(), bias)[0]
        return self._runs[path].run(x, *self._held(), bias)

    def _kept_as(self, factors: Factors) -> dict[str, tuple[int, ...]]:
        if self._rank is not None and self.groups > 1:
            return {}  # leading terms are cut out of each group
        # A kernel can then lie in channels_last, and no call reorders it.
        return form_of(factors).kernels(factors, CONV.conv(factors))

    def _rows(self, x: Tensor) -> int:
        rows = x.shape[0] if x.ndim == self.n_axes + 2 else 1
        size = tuple(x.shape[-self.n_axes :])
        for n in output_sizes(size, self.kernel_size, self.stride, self._padded_by, self.dilation):
            rows *= n
        return rows

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        return PathTable.from_cost(self.factors, stride=self.stride, rebuild=not frozen)

    def _options_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}, padding={self.padding!r}",
        ]
        if any(n != 1 for n in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


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
