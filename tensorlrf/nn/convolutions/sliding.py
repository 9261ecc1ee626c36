"""What the convolutions of both kinds on factors, plain and transposed, have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from types import SimpleNamespace
from typing import Any, ClassVar, Self

from torch import Tensor

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.nn._fresh import Fresh, kernel_shape
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.ops import PathTable, conv_paths
from tensorlrf.ops.forms import form_of
from tensorlrf.ops.forms.lowering import CONV, CONV_TRANSPOSE, Layer
from tensorlrf.ops.fused import check_layer_path
from tensorlrf.ops.geometry import Axes, IntOrAxes, Sliding, per_axis, rows_of

_RESTING = {
    "dilation": 1,
    "output_padding": 0,
    "groups": 1,
    "padding_mode": "zeros",
}
"""Options that are told where they are others."""


class FactoredSlidingNd(FactoredLayer):
    """A convolution. A tuple among the options has one entry an axis."""

    n_axes: ClassVar[int]
    transposed: ClassVar[bool]
    stride: Axes
    dilation: Axes
    padding: Any
    _geometry: Sliding

    def __init__(self, factors: Factors, bias: Tensor | None) -> None:
        super().__init__(factors, bias, self._find_paths(factors))
        self.groups = form_of(factors).groups(factors)
        self.out_channels, of_a_group, *kernel = factors.shape
        self.in_channels = self.groups * of_a_group
        self.kernel_size = tuple(kernel)

    def _slide(self, geometry: Sliding) -> None:
        """Run so from here on."""
        self._geometry = geometry
        self._layer = Layer.sliding(geometry)
        self._choose()

    @abstractmethod
    def _output_sizes(self, size: Axes) -> Axes:
        """Of the output, along every axis, for an input of this size."""

    @classmethod
    def from_factors(cls, factors: Factors, like: Any) -> Self:
        """A layer that runs on `factors`, outputs first, in place of `like`.

        Parameters
        ----------
        factors : Factors
            Of the shape (out_channels, in_channels / groups, ...). That is the weight's; a
            transposed convolution has the channels of each group the other way round.
        like : Module
            The layer of torch that this one stands for. It stays as it is.

        Returns
        -------
        FactoredLayer
            Its stride, padding, dilation, groups, bias (or none), dtype, device, memory format,
            training flag and requires_grad are those of `like`, and so are its padding mode or
            output padding.

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
        if cls.transposed and isinstance(factors, Factors) and factors.shape != shape:
            raise ShapeError(
                f"factors stand for a tensor of shape {factors.shape}, but like takes {shape}, "
                "(out, in / groups, ...): decompose its weight with outputs and inputs of every "
                "group swapped, like.weight.transpose(0, 1) where there is one group"
            )
        outputs_first = plain.outputs_first(like.weight)
        held = SimpleNamespace(weight=outputs_first, bias=like.bias)
        factors, bias = like_layer(factors, held)
        groups = form_of(factors).groups(factors)
        if groups != plain.groups:
            raise ArgumentError(
                f"factors have {groups} group{'s' * (groups > 1)}, like has groups={plain.groups}; "
                "factor each group apart and pass Grouped.stack of the results"
            )
        make: Any = cls  # each kind has options of its own
        layer: Self = make(factors, bias, **plain.conv_options)
        if is_channels_last(like.weight):
            # torch annotates the format together with a dtype alone.
            layer.to(memory_format=CHANNELS_LAST[like.weight.ndim])  # type: ignore[call-overload]
        take_over(layer, like)
        return layer

    @classmethod
    def _drawn(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrAxes,
        groups: int,
        bias: bool,
        rank: Rank,
        method: str,
        options: dict[str, Any],
        *,
        std: float | None,
        **drawing: Any,
    ) -> tuple[Factors, Tensor | None]:
        """Factors and a bias to be trained from the start; `drawing` are arguments of `Fresh`."""
        kernel = per_axis("kernel_size", kernel_size, 1, cls.n_axes)
        shape = kernel_shape(in_channels, out_channels, kernel, groups)
        # That of torch: of the columns of its weight, whatever they are.
        fan_in = (out_channels // groups if cls.transposed else shape[1]) * math.prod(kernel)
        std = 1 / math.sqrt(3 * fan_in) if std is None else std
        fresh = Fresh(std=std, **drawing)
        factors = fresh.factors(shape, "conv", method, rank, options, groups)
        return factors, fresh.bias(out_channels, fan_in) if bias else None

    def _by_path(self, path: str, x: Tensor) -> Tensor:
        """x, padded as far as the convolution does not do it, by a path."""
        bias = self._tensor("bias")
        if path == "dense":
            return self._geometry.by_weight(x, self._dense_weight(), bias, self.groups)
        if x.ndim == self.n_axes + 1:
            return self._runs[path].run(x[None], *self._held(), bias)[0]
        return self._runs[path].run(x, *self._held(), bias)

    @classmethod
    def _kind_of_layer(cls) -> Layer:
        return CONV_TRANSPOSE if cls.transposed else CONV

    def _find_paths(self, factors: Factors) -> tuple[str, ...]:
        return conv_paths(factors, self.n_axes, transposed=self.transposed)

    def _check_fused(self) -> None:
        check_layer_path("fused", self.paths, self.factors, self._kind_of_layer())

    def _kept_as(self, factors: Factors) -> dict[str, tuple[int, ...]]:
        if self._rank is not None and self.groups > 1:
            return {}  # leading terms are cut out of each group
        # A kernel can then lie in channels_last, and no call reorders it.
        return form_of(factors).kernels(factors, self._kind_of_layer().conv(factors))

    def _rows(self, x: Tensor) -> int:
        return rows_of(x, self._output_sizes(tuple(x.shape[-self.n_axes :])))

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        return PathTable.from_cost(
            self.factors, stride=self.stride, rebuild=not frozen, transposed=self.transposed
        )

    def _options_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}, padding={self.padding!r}",
        ]
        for name, rest in _RESTING.items():
            value = getattr(self, name, rest)
            if value not in (rest, (rest,) * self.n_axes):
                parts.append(f"{name}={value}")
        return ", ".join(parts)
