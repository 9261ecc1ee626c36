"""What a path costs: FLOPs, bytes moved and launches. The one place where they are counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tensorlrf.factors import Factors
from tensorlrf.ops._conv import check_conv
from tensorlrf.ops._counter import Cost, Counter
from tensorlrf.ops._embedding import check_table
from tensorlrf.ops._linear import check_linear
from tensorlrf.ops.checks import check_path
from tensorlrf.ops.forms._form import form_of
from tensorlrf.ops.forms.lowering import (
    CONV,
    CONV_TRANSPOSE,
    EMBEDDING,
    LINEAR,
    Layer,
    dense_work,
    symbolic_paths,
)
from tensorlrf.ops.geometry import (
    Axes,
    IntOrAxes,
    PaddingArgument,
    output_sizes,
    per_axis,
    resolve_padding,
    transposed_geometry,
    transposed_sizes,
)


class Positions(tuple[int, ...]):
    """Where a convolution is evaluated: batch x size at each stage of its axes, first to last.

    Entry k is after the taps of the first k axes alone: entry 0 is the input, the last one the
    output, and of a two-dimensional one the entry between is after the vertical taps.

    Parameters
    ----------
    iterable : iterable of int

    Examples
    --------
    >>> tensorlrf.ops.Positions.of((2, 8, 8), (3, 3), stride=2, padding=1)
    (128, 64, 32)
    """

    __slots__ = ()

    @property
    def input(self) -> int:
        """What a pointwise convolution before the kernel sees."""
        return self[0]

    @property
    def vertical(self) -> int:
        """After the taps of the first axis alone."""
        return self[1]

    @property
    def output(self) -> int:
        """The rows M of the layer."""
        return self[-1]

    @classmethod
    def of(
        cls,
        size: Iterable[int],
        kernel: Axes,
        stride: IntOrAxes = 1,
        padding: PaddingArgument = 0,
        dilation: IntOrAxes = 1,
    ) -> Positions:
        """For an input of `size`; the other arguments as in `conv2d`.

        Parameters
        ----------
        size : iterable of int
            (batch, height, width), or (batch, length), or (batch, depth, height, width).
        kernel : tuple of int
            One size an axis.
        stride, padding, dilation
            As in `conv2d`.

        Returns
        -------
        Positions
        """
        batch, *lengths = size
        n_axes = len(kernel)
        strides, dilations = (
            per_axis("stride", stride, 1, n_axes),
            per_axis("dilation", dilation, 1, n_axes),
        )
        zeros = resolve_padding(padding, kernel, strides, dilations)
        # The zeros that the two sides do not share are there before the first stage.
        read = [
            n + more - 2 * shared
            for n, more, shared in zip(lengths, zeros.total, zeros.shared, strict=True)
        ]
        written = output_sizes(tuple(lengths), kernel, strides, zeros.total, dilations)
        return cls(batch * math.prod(written[:k]) * math.prod(read[k:]) for k in range(n_axes + 1))

    @classmethod
    def of_transposed(
        cls,
        size: Iterable[int],
        kernel: Axes,
        stride: IntOrAxes = 1,
        padding: IntOrAxes = 0,
        output_padding: IntOrAxes = 0,
        dilation: IntOrAxes = 1,
    ) -> Positions:
        """For an input of `size`; the other arguments as in `conv_transpose2d`.

        Parameters
        ----------
        size : iterable of int
            (batch, height, width), or (batch, length), or (batch, depth, height, width).
        kernel : tuple of int
            One size an axis.
        stride, padding, output_padding, dilation
            As in `conv_transpose2d`.

        Returns
        -------
        Positions

        Examples
        --------
        >>> tensorlrf.ops.Positions.of_transposed((2, 4, 4), (2, 2), stride=2)
        (32, 64, 128)
        """
        batch, *lengths = size
        geometry = transposed_geometry(len(kernel), stride, padding, output_padding, dilation)
        written = transposed_sizes(tuple(lengths), kernel, *geometry)
        return cls(
            batch * math.prod(written[:k]) * math.prod(lengths[k:]) for k in range(len(kernel) + 1)
        )

    @classmethod
    def from_rows(cls, rows: int, stride: Axes, *, transposed: bool = False) -> Positions:
        """Estimated from the rows M alone.

        As many input positions as strides skip; a `transposed` convolution writes `stride` places
        for each.
        """
        stages = [rows]
        for s in reversed(stride):
            stages.append(-(-stages[-1] // s) if transposed else stages[-1] * s)
        return cls(reversed(stages))


def linear_cost(factors: Factors, path: str, rows: int, *, rebuild: bool = True) -> Cost:
    """Cost of `ops.linear` by a path.

    Parameters
    ----------
    factors : Factors
        Meta tensors serve.
    path : str
        "fused" is counted as on a GPU, wherever the factors are.
    rows : int
        Of the input, M.
    rebuild : bool
        False leaves out what "dense" spends on rebuilding the weight, as in a frozen layer.

    Returns
    -------
    Cost

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> tensorlrf.ops.linear_cost(f, "chain", rows=10).flops  # 2 x 10 x 2 x (6 + 8)
    560
    """
    check_linear(factors)
    counter = _counted(LINEAR, factors, path, (rows,), rebuild)
    if path == "dense":
        m, n = factors.shape
        counter.matmul(rows, n, m)
    return counter.cost()


def conv_cost(
    factors: Factors,
    path: str,
    positions: Positions,
    *,
    rebuild: bool = True,
    transposed: bool = False,
) -> Cost:
    """Cost of `ops.conv1d`, `conv2d` or `conv3d` by a path, or of the transposed ones.

    Parameters
    ----------
    factors : Factors
        Meta tensors serve.
    path : str
        "fused" is counted as on a GPU, wherever the factors are; what no kernel serves is the chain
        there.
    positions : Positions
        Of one entry more than the convolution has axes.
    rebuild : bool
        False leaves out what "dense" spends on rebuilding the kernel.
    transposed : bool
        Whether it is a transposed one.

    Returns
    -------
    Cost

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 4, 3, 3), 2)
    >>> where = tensorlrf.ops.Positions.of((1, 9, 9), (3, 3), padding=1)
    >>> cost = tensorlrf.ops.conv_cost(f, "chain", where)
    >>> cost.flops == 2 * 81 * 2 * (4 * 9 + 8)
    True
    """
    check_conv(factors, len(positions) - 1)
    layer = CONV_TRANSPOSE if transposed else CONV
    counter = _counted(layer, factors, path, positions, rebuild)
    if path == "dense":
        groups = form_of(factors).groups(factors)
        m, n, *kernel = factors.shape
        read, written = positions.input, positions.output
        counter.conv(read, written, n, m // groups, math.prod(kernel), groups, adjoint=transposed)
    return counter.cost()


conv2d_cost = conv_cost


def embedding_cost(factors: Factors, path: str, rows: int, *, rebuild: bool = True) -> Cost:
    """Cost of `ops.embedding` by a path. A gather is bytes and no FLOPs.

    Parameters
    ----------
    factors : Factors
        Meta tensors serve.
    path : str
        "fused" is counted as on a GPU, wherever the factors are; what no kernel serves is the chain
        there.
    rows : int
        How many indices.
    rebuild : bool
        False leaves out what "dense" spends on rebuilding the table.

    Returns
    -------
    Cost

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(100, 16), 4)
    >>> [step.kind for step in tensorlrf.ops.embedding_cost(f, "chain", rows=10).steps]
    ['gather', 'matmul']
    """
    check_table(factors)
    counter = _counted(EMBEDDING, factors, path, (rows,), rebuild)
    if path == "dense":
        counter.gather(rows, factors.shape[1])
    return counter.cost()


def _counted(
    layer: Layer, factors: Factors, path: str, places: Sequence[int], rebuild: bool
) -> Counter:
    """What the form tells of a path, and of "dense" what it takes to rebuild the weight."""
    found = symbolic_paths(layer, factors)
    check_path(path, ("dense", *found.paths))
    counter = Counter(places, factors.dtype)
    if path != "dense":
        found.count(path, counter)
    elif rebuild:
        rebuild_cost(counter, factors)
    return counter


def rebuild_cost(counter: Counter, factors: Factors) -> None:
    """Of `dense_weight(factors)`."""
    if not form_of(factors).count_dense(factors, counter):
        for work in dense_work(factors):
            counter.work(*work)
