"""What a path costs: FLOPs, bytes moved and launches. The one place where they are counted."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tensorlrf.factors import (
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tensorlrf.factors.algebra import product_order
from tensorlrf.ops._check import check_path
from tensorlrf.ops._conv import conv_paths
from tensorlrf.ops._convnd import kron_b_first
from tensorlrf.ops._counter import Cost, Counter
from tensorlrf.ops._embedding import (
    EMBEDDING_PATHS,
    best_cut,
    embedding_paths,
    fuses_embedding,
    half_sizes,
    merges,
    table_matrices,
)
from tensorlrf.ops._fused import fused_launch, fuses, linear_rank
from tensorlrf.ops._linear import LINEAR_PATHS, linear_paths
from tensorlrf.ops.geometry import (
    Axes,
    IntOrAxes,
    PaddingArgument,
    output_sizes,
    per_axis,
    resolve_padding,
)
from tensorlrf.ops.structured import form_of
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.lowrank_embedding.launch import forward as lookup_launch
from tensorlrf_kernels.tt_embedding.launch import forward as train_lookup_launch


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
    def from_rows(cls, rows: int, stride: Axes) -> Positions:
        """Estimated from the rows M alone: as many input positions as strides skip."""
        stages = [rows]
        for s in reversed(stride):
            stages.append(stages[-1] * s)
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
    form, paths = form_of(factors), linear_paths(factors)  # refuses what is no linear layer
    own = LINEAR_PATHS if form is None else paths
    check_path(path, (*own, "fused") if fuses(factors) else own)
    counter = Counter(factors.dtype.itemsize)
    m, n = factors.shape
    if form is None and path == "fused" and fused_launch(factors, rows, H200) is not None:
        if isinstance(factors, CPFactors):
            counter.merge(n * linear_rank(factors))
        elif isinstance(factors, TuckerFactors) and len(factors.modes) == 2:
            r_out, r_in = factors.core.shape
            counter.matmul(r_in, r_out, m if r_in <= r_out else n)
        counter.fused(rows, n, linear_rank(factors), m)
    elif path == "dense":
        if rebuild:
            rebuild_cost(counter, factors)
        counter.matmul(rows, n, m)
    elif form is not None:
        form.cost(counter, path, factors, rows)
    elif isinstance(factors, TuckerFactors):
        r_out, r_in = factors.core.shape
        if 1 in factors.modes:
            counter.matmul(rows, n, r_in)
        counter.matmul(rows, r_in, r_out)
        if 0 in factors.modes:
            counter.matmul(rows, r_out, m)
    else:
        rank = factors.rank
        assert isinstance(rank, int)
        if isinstance(factors, CPFactors):
            counter.merge(n * rank)
        counter.matmul(rows, n, rank)
        counter.matmul(rows, rank, m)
    return counter.cost()


def conv_cost(factors: Factors, path: str, positions: Positions, *, rebuild: bool = True) -> Cost:
    """Cost of `ops.conv1d`, `conv2d` or `conv3d` by a path.

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
    paths = conv_paths(factors, len(positions) - 1)
    check_path(path, tuple(dict.fromkeys((*paths, *(("fused",) if fuses(factors) else ())))))
    counter = Counter(factors.dtype.itemsize)
    groups, one = 1, factors
    if isinstance(factors, Grouped):
        groups, one = factors.groups, factors.group(0)
    O, I, *kernel = one.shape
    taps = math.prod(kernel)
    if path == "dense":
        if rebuild:
            rebuild_cost(counter, factors)
        counter.conv(positions.input, positions.output, I, O, taps, groups)
    elif path == "fused" and _fused_conv_cost(counter, one, positions):
        pass
    elif isinstance(one, CPFactors):
        _cp_conv_cost(counter, one, path, positions, groups)
    elif isinstance(one, KroneckerSum):
        for _ in range(groups):
            _kron_conv_cost(counter, one, positions)
    elif isinstance(one, TTFactors):
        last, *cores, first = one.cores[::-1]
        counter.pointwise(positions.input, I, last.shape[0], groups)
        for k, core in enumerate(cores):
            r, n, before = core.shape
            counter.conv(positions[k], positions[k + 1], before, r, n, groups)
        counter.pointwise(positions.output, first.shape[2], O, groups)
    elif isinstance(one, LowRank):
        counter.conv(positions.input, positions.output, I, one.rank, taps, groups)
        counter.pointwise(positions.output, one.rank, O, groups)
    else:
        assert isinstance(one, TuckerFactors)
        r_out, r_in = one.core.shape[:2]
        size = list(one.core.shape)
        for k in one.modes:
            if k >= 2:
                size[k] = one.shape[k]
                others = groups * math.prod(size) // size[k]
                counter.matmul(others, one.core.shape[k], size[k])
        if 1 in one.modes:
            counter.pointwise(positions.input, I, r_in, groups)
        counter.conv(positions.input, positions.output, r_in, r_out, taps, groups)
        if 0 in one.modes:
            counter.pointwise(positions.output, r_out, O, groups)
    return counter.cost()


conv2d_cost = conv_cost


def _fused_conv_cost(counter: Counter, one: Factors, positions: Positions) -> bool:
    """Counts what the kernel does; False, and nothing, where it does not serve."""
    read, written = positions.input, positions.output
    config = fused_launch(one, written, H200)
    if config is None:
        return False
    O, I, kh, kw = one.shape
    if isinstance(one, CPFactors):
        # The first product is made anew for every vertical tap.
        r, taps = one.rank, kh * I + kw
        if config.blocks["EXPAND"]:
            counter.fused_conv(read, written, I, r, O, taps)
        else:
            counter.fused_conv(read, written, I, r, 0, taps)
            counter.matmul(written, r, O)
        return True
    if isinstance(one, LowRank):
        r, inner = one.rank, I
    else:
        assert isinstance(one, TuckerFactors)
        r, inner = one.core.shape[:2]
        if 1 in one.modes:
            counter.pointwise(read, I, inner, 1)
    counter.fused_conv(read, written, inner, r, O, inner * kh * kw)
    return True


def _kron_conv_cost(counter: Counter, one: KroneckerSum, positions: Positions) -> None:
    s, O1, I1 = one.a.shape
    _, O2, I2, *kernel = one.b.shape
    taps, read, written = math.prod(kernel), positions.input, positions.output
    if kron_b_first(s, (O1, I1), (O2, I2, *kernel)):
        counter.conv(read * I1, written * I1, I2, s * O2, taps)
        counter.matmul(written * O2, I1 * s, O1)
    else:
        counter.matmul(read * I2, I1, O1 * s)
        counter.conv(read * O1, written * O1, s * I2, O2, taps)


def _cp_conv_cost(
    counter: Counter, one: CPFactors, path: str, positions: Positions, groups: int
) -> None:
    O, I, *kernel = one.shape
    r = one.rank
    if path == "fold":
        kh, kw = kernel
        counter.merge(I * r * kh)
        counter.merge(O * r * kw)
        counter.conv(positions.input, positions.vertical, I, r, kh)
        counter.conv(positions.vertical, positions.output, r, O, kw)
        return
    counter.merge(math.prod(kernel if path == "fold_depthwise" else kernel[:1]) * groups * r)
    counter.pointwise(positions.input, I, r, groups)
    if path == "fold_depthwise":
        counter.depthwise(positions.input, positions.output, r, math.prod(kernel))
    else:
        for k, taps in enumerate(kernel):
            counter.depthwise(positions[k], positions[k + 1], groups * r, taps)
    counter.pointwise(positions.output, r, O, groups)


def rebuild_cost(counter: Counter, factors: Factors) -> None:
    """Of `dense_weight(factors)`."""
    form = form_of(factors)
    if form is not None:
        form.rebuild(counter, factors)
    elif isinstance(factors, Grouped):
        for k in range(factors.groups):
            rebuild_cost(counter, factors.group(k))
    elif isinstance(factors, TTFactors):
        for rows, inner, columns in product_order([tuple(c.shape) for c in factors.cores]):
            counter.matmul(rows, inner, columns)
    elif isinstance(factors, LowRank):
        counter.matmul(factors.left.shape[0], factors.rank, factors.right.shape[1])
    elif isinstance(factors, CPFactors):
        others = math.prod(factors.shape[1:])
        counter.merge(others * factors.rank)
        counter.matmul(factors.shape[0], factors.rank, others)
    elif isinstance(factors, TuckerFactors):
        size = list(factors.core.shape)
        for k, f in zip(reversed(factors.modes), reversed(factors.factors), strict=True):
            size[k] = int(f.shape[0])
            counter.matmul(math.prod(size[:k] + size[k + 1 :]), int(f.shape[1]), size[k])


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
    embedding_paths(factors)  # refuses what is no table
    check_path(path, EMBEDDING_PATHS if fuses_embedding(factors) else EMBEDDING_PATHS[:2])
    counter = Counter(factors.dtype.itemsize)
    if path == "dense":
        if rebuild:
            rebuild_cost(counter, factors)
        counter.gather(rows, factors.shape[1])
    elif isinstance(factors, TTMatrix):
        _train_embedding_cost(counter, factors, rows, fused=path == "fused")
    else:
        _matrix_embedding_cost(counter, factors, rows, fused=path == "fused")
    return counter.cost()


def _matrix_embedding_cost(counter: Counter, factors: Factors, rows: int, *, fused: bool) -> None:
    first, *others = (m.shape for m in table_matrices(factors))
    n, d = factors.shape
    if isinstance(factors, CPFactors):
        counter.merge(d * factors.rank)
    rank = first[1]
    if fused and lookup_launch(Problem(rows, d, n, rank, factors.dtype), H200) is not None:
        for matrix in others[1:]:
            counter.matmul(rank, *matrix)
        counter.fused_gather(rows, rows * rank, rank * d, 2 * rows * rank * d, d)
        return
    counter.gather(rows, rank)
    for matrix in others:
        counter.matmul(rows, *matrix)


def _train_embedding_cost(counter: Counter, factors: TTMatrix, rows: int, *, fused: bool) -> None:
    n, d = factors.shape
    cut = best_cut(factors)
    sizes = [tuple(core.shape) for core in factors.cores]
    if fused and cut is not None and merges(factors, cut, rows):
        rank = factors.rank[cut]
        problem = Problem(rows, d, n, rank, factors.dtype)
        if train_lookup_launch(problem, H200) is not None:
            for half in (sizes[:cut], sizes[cut:]):
                r, m, k, _ = half[0]
                for inner, more_m, more_k, after in half[1:]:
                    counter.matmul(r * m * k, inner, more_m * more_k * after)
                    m, k = m * more_m, k * more_k
            # Slices of the halves are read from memory once, and then from a cache.
            wide = [math.prod(factors.column_sizes[:cut]), math.prod(factors.column_sizes[cut:])]
            whole = half_sizes(factors, cut)
            gathered = sum(min(rows * k * rank, size) for k, size in zip(wide, whole, strict=True))
            counter.fused_gather(rows, gathered, 0, 2 * rows * rank * wide[0] * wide[1], d)
            return
    # The digits of the indices: a remainder and a quotient for each but the first, and the check.
    for _ in range(2 * (len(sizes) - 1) + 4):
        counter.merge(rows)
    done = 1
    for k, (r, _, width, after) in enumerate(sizes):
        counter.gather(rows, r * width * after)
        if k:
            counter.products(rows, done, r, width * after)
        done *= width
