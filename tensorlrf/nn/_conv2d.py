"""The two-dimensional convolution on factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import unknown
from tensorlrf.factors import Factors, LowRank, TuckerFactors
from tensorlrf.nn._layer import FactoredLayer, is_channels_last, like_layer, take_over
from tensorlrf.nn._like import check_layer
from tensorlrf.ops import PathTable, conv2d_paths, run_conv2d
from tensorlrf.ops._geometry import output_size, pair, resolve_padding

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class FactoredConv2d(FactoredLayer):
    """y = conv2d(x, K) + bias for a K (out_channels, in_channels, kh, kw) held as factors.

    factors  LowRank, CPFactors or TuckerFactors of shape (out_channels, in_channels, kh, kw)
    bias     (out_channels,) or None, of the dtype and on the device of the factors
    stride, padding, dilation, padding_mode  as torch.nn.Conv2d, "same" and "valid" included

    There is one group. Factors and bias are copied.
    Raises ShapeError, ArgumentError or UnsupportedError where these do not fit together.
    """

    kind = nn.Conv2d
    groups = 1

    def __init__(
        self,
        factors: Factors,
        bias: Tensor | None = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(factors, bias, conv2d_paths(factors))
        if padding_mode not in PADDING_MODES:
            raise unknown("padding_mode", padding_mode, PADDING_MODES)
        self.out_channels, self.in_channels, kh, kw = factors.shape
        self.kernel_size = (kh, kw)
        self.stride, self.dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
        sides = resolve_padding(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else sides.each_side
        self.padding_mode = padding_mode
        (top, left), (below, right) = sides
        self._padded_by = (2 * top + below, 2 * left + right)  # what each axis grows by
        # What is not the same number of zeros on both sides is put there before the convolution.
        ahead = padding_mode != "zeros" or sides.excess != (0, 0)
        self._pad_ahead = (left, left + right, top, top + below) if ahead else None
        self._pad_mode = "constant" if padding_mode == "zeros" else padding_mode
        self._conv_padding = (0, 0) if ahead else sides.each_side
        self.path_table = self._default_path_table()

    @classmethod
    def from_factors(cls, factors: Factors, like: nn.Conv2d) -> Self:
        """A layer that runs on `factors` in place of `like`.

        Stride, padding, dilation, padding mode, bias (or none), dtype, device, memory format,
        training flag and requires_grad are those of `like`, which stays as it is. Raises
        ShapeError where the factors do not stand for a tensor of the weight's shape,
        UnsupportedError where `like` is not a plain torch.nn.Conv2d or has groups.
        """
        check_layer(like, cls.kind, "like")
        factors, bias = like_layer(factors, like)
        layer = cls(
            factors,
            bias,
            stride=like.stride,
            padding=like.padding,
            dilation=like.dilation,
            padding_mode=like.padding_mode,
        )
        if is_channels_last(like.weight):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        take_over(layer, like)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W'), or both without B."""
        x = input
        path = self._path(x)
        if self._pad_ahead is not None:
            x = F.pad(x, self._pad_ahead, self._pad_mode)
        options: tuple[Any, ...] = (
            self._tensor("bias"),
            self.stride,
            self._conv_padding,
            self.dilation,
        )
        if path == "dense":
            return F.conv2d(x, self._rebuilt(x), *options)
        return run_conv2d(path, self._running(), x, *options)

    # The right factor of a LowRank kernel is kept as what it is when it runs, a kernel (r, I, kh,
    # kw): it can then lie in channels_last, and no call has to reorder it.

    def _stored(self, factors: Factors) -> dict[str, Tensor]:
        tensors = factors.tensors()
        if isinstance(factors, LowRank):
            tensors["right"] = tensors["right"].reshape(-1, *factors.shape[1:])
        return tensors

    def _assembled(self) -> Factors:
        if self._format is not LowRank:
            return super()._assembled()
        return LowRank._assemble(
            {"left": self._tensor("left"), "right": self._tensor("right").flatten(1)}, self._meta
        )

    def _running(self) -> Factors:
        """The factors in the form in which the paths run them."""
        if self._format is not LowRank:
            return self.factors
        core, left = self._tensor("right"), self._tensor("left")
        return TuckerFactors._assemble({"core": core, "factors.0": left}, {"modes": (0,)})

    def _rows(self, x: Tensor) -> int:
        rows = x.shape[0] if x.ndim == 4 else 1
        for k in (0, 1):
            rows *= output_size(
                x.shape[k - 2],
                self.kernel_size[k],
                self.stride[k],
                self._padded_by[k],
                self.dilation[k],
            )
        return rows

    def _default_path_table(self) -> PathTable:
        return PathTable.from_cost(self.factors, stride=self.stride)

    def _options_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}, padding={self.padding!r}",
        ]
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)
