"""Styles of `parallelize_module` for linear layers on factors."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.parallel._layer import share
from tensorlrf.nn.parallel._sharing import check


class _Factored(ParallelStyle):
    axis: int
    before: Placement
    after: Placement

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
        inner: str = "whole",
    ) -> None:
        super().__init__()
        self.input_layouts = (input_layouts or self.before,)
        self.output_layouts = (output_layouts or self.after,)
        self.use_local_output = use_local_output
        self.inner = inner

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        sharing = check(module, device_mesh, self.axis, self.inner)
        assert isinstance(module, FactoredLinear)  # which was checked
        layouts = *self.input_layouts, *self.output_layouts, self.use_local_output
        share(module, sharing, layouts, self.src_data_rank)
        return module

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(input_layouts={self.input_layouts[0]}, "
            f"output_layouts={self.output_layouts[0]}, use_local_output={self.use_local_output}, "
            f"inner={self.inner!r})"
        )


class FactoredColwise(_Factored):
    """Ranks share out the outputs of a `FactoredLinear`, as ColwiseParallel does of a Linear.

    Of `A (B x)`, with A (m, r) and B (r, n), rank k has its rows of A. B is whole on every rank by
    default: a forward exchanges nothing, a backward the r numbers of each row of x in place of n.
    A KroneckerSum is cut in the rows of its `a`, a BlockLowRank between its blocks, into layers of
    the same format; they exchange n numbers in a backward, as a dense layer does.

    Parameters
    ----------
    input_layouts : Placement
        Of x, which is made a DTensor of it where it is none: Replicate() by default. Rows that are
        shared out, Shard(d) of an axis before the last, are multiplied by B first and exchanged as
        r numbers each.
    output_layouts : Placement
        Shard(-1) by default.
    use_local_output : bool
        Whether y is each rank's own tensor, or a DTensor.
    inner : {"whole", "sharded"}
        "sharded" cuts B in its rows too: all parameters and products are shared out, and a row
        costs r numbers more in a forward, r and n in a backward. Of LowRank alone; other formats
        have no such factor.

    Raises
    ------
    ShapeError
        By `parallelize_module`, where the ranks do not divide the outputs, the rows of `a` or the
        blocks. The layer stays as it was.
    UnsupportedError
        For another layer or format, or parameters that are computed or are DTensors already.
    ArgumentError
        For a mesh of several dimensions, another `inner`, or a factor in common with a layer that
        was shared out in another way.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3, of dense layers.

    Examples
    --------
    >>> from torch.distributed.tensor.parallel import parallelize_module  # doctest: +SKIP
    >>> plan = {"up": FactoredColwise(), "down": FactoredRowwise()}  # doctest: +SKIP
    >>> parallelize_module(mlp, mesh, plan)  # doctest: +SKIP
    """

    axis, before, after = 0, Replicate(), Shard(-1)


class FactoredRowwise(_Factored):
    """Ranks share out the inputs of a `FactoredLinear`, as RowwiseParallel does of a Linear.

    Of `A (B x)`, with A (m, r) and B (r, n), rank k has its columns of B, and the r numbers of each
    row of B x are added over the ranks, in place of m. A is whole on every rank by default. A
    KroneckerSum is cut in the columns of its `a`, a BlockLowRank between its blocks; they add up m
    numbers, as a dense layer does. The bias is added once, after that.

    Parameters
    ----------
    input_layouts : Placement
        Of x, which is made a DTensor of it where it is none: Shard(-1) by default, as a
        `FactoredColwise` leaves it.
    output_layouts : Placement
        Replicate() by default. Shard(d) of an axis before the last has each rank multiply its rows
        of B x by A, and half as many numbers exchanged.
    use_local_output : bool
        As of `FactoredColwise`.
    inner : {"whole", "sharded"}
        "sharded" cuts A in its rows too: all parameters and products are shared out, and the m
        numbers of each row are gathered. Of LowRank alone; other formats have no such factor.

    Raises
    ------
    ShapeError
        By `parallelize_module`, where the ranks do not divide the inputs, the columns of `a`, the
        blocks, or for "sharded" the outputs. The layer stays as it was.
    UnsupportedError, ArgumentError
        As `FactoredColwise` does.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3, of dense layers.

    Examples
    --------
    Alone, behind inputs that every rank has whole:

    >>> style = FactoredRowwise(input_layouts=Replicate())  # doctest: +SKIP
    >>> parallelize_module(layer, mesh, style)  # doctest: +SKIP
    """

    axis, before, after = 1, Shard(-1), Replicate()
