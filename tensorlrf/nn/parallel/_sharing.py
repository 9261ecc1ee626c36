"""How a linear layer on factors is shared out over the ranks of a mesh, and its tensors with it.

Of `y = A (B x)` with B (r, n) and A (m, r), a layer that shares out its outputs cuts the rows of A,
one that shares out its inputs the columns of B; the factor on the other side is whole on every
rank, or cut as well. What passes between ranks is then r numbers a row of x. Other formats are cut
into parts of the same format, and exchange inputs or outputs as a dense layer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError, unknown
from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.ops.forms import form_of

INNER = ("whole", "sharded")
SHARED_AS = "_shared_as"
"""On a parameter of the whole: what it has become, so that layers on one factor stay so."""

Layouts = tuple[Placement]


@dataclass(frozen=True, eq=False)
class Sharing:
    """What is shared out, and how.

    mesh      of one dimension
    axis      0: the outputs; 1: the inputs
    inner     of two matrices, whether the one on the other side is "whole" or "sharded" too
    matrices  names of two matrices, the first to be multiplied by first; None of other formats
    along     tensor -> its axis that is shared out; None where tensors are packed, a part a row
    format, context, sizes  of the factors of this rank's part, and the sizes of its tensors
    """

    mesh: DeviceMesh
    axis: int
    inner: str
    matrices: tuple[str, str] | None
    along: Mapping[str, int] | None
    format: type[Factors]
    context: dict[str, Any]
    sizes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, factors: Factors, mesh: DeviceMesh, axis: int, inner: str) -> Sharing:
        """Of factors, which need no numbers. Raises what `check` does."""
        form, ranks = form_of(factors), mesh.size()
        part = form.part(factors, axis, ranks, mesh.get_local_rank())
        matrices, along = _matrices(factors), form.along(factors, axis)
        sizes = {name: tuple(t.shape) for name, t in part.tensors().items()}
        if matrices is not None and along is not None and inner == "sharded":
            other = matrices[axis]
            size = factors.tensors()[other].shape[0]
            if axis == 1 and size % ranks:  # a rank need not be divided
                raise ShapeError(
                    f"{other} of {factors!r} has {size} outputs, which {ranks} ranks do not divide"
                )
            along = {**along, other: 0}
        return cls(mesh, axis, inner, matrices, along, type(part), part._context(), sizes)

    def __deepcopy__(self, _: Any) -> Sharing:
        return self  # a copy of a layer meets the same ranks

    @property
    def is_split(self) -> bool:
        """Whether ranks meet between the two matrices in every forward."""
        return self.matrices is not None and (self.axis == 1 or self.inner == "sharded")

    @property
    def bias(self) -> Placement:
        """Outputs are shared out where the matrix that makes them is."""
        cut = self.axis == 0 or (self.matrices is not None and self.inner == "sharded")
        return Shard(0) if cut else Replicate()

    def placement(self, name: str) -> Placement:
        """Of a tensor of the factors."""
        if self.along is None:
            return Shard(0)
        return Shard(self.along[name]) if name in self.along else Replicate()

    def shared_as(self, name: str) -> tuple[Any, ...]:
        """What has to agree for two layers to have one parameter."""
        packed = (self.axis, self.context) if self.along is None else ()
        return self.placement(name), *packed

    def blank(self, dtype: torch.dtype, device: torch.device) -> Factors:
        """The factors of this rank's part without their numbers."""
        one = torch.empty((), dtype=dtype, device=device)
        tensors = {name: one.expand(size) for name, size in self.sizes.items()}
        return self.format._assemble(tensors, self.context)

    def words(self) -> str:
        """As a layer prints it."""
        what = ("outputs", "inputs")[self.axis]
        inner = f", inner={self.inner!r}" if self.matrices is not None else ""
        return f"{what} over {self.mesh.size()} ranks{inner}"


def _matrices(factors: Factors) -> tuple[str, str] | None:
    """Names of the tensors (r, n) and (m, r), of factors that are these two."""
    sides = two_matrices(factors)
    names = {id(tensor): name for name, tensor in factors.tensors().items()}
    return None if sides is None else (names[id(sides[1])], names[id(sides[0])])


def check(layer: nn.Module, mesh: DeviceMesh, axis: int, inner: str) -> Sharing:
    """How the layer would be shared out.

    Raises ArgumentError, ShapeError or UnsupportedError where it cannot be; nothing is changed.
    """
    style = ("FactoredColwise", "FactoredRowwise")[axis]
    if inner not in INNER:
        raise unknown("inner", inner, INNER)
    if mesh.ndim != 1:
        raise ArgumentError(
            f"mesh has the dimensions {mesh.mesh_dim_names or mesh.ndim}; a layer is shared out "
            "over one of them, such as mesh['tp']"
        )
    if type(layer) is not FactoredLinear:
        remedy = (
            "use ColwiseParallel or RowwiseParallel of torch"
            if _is_torchs(layer)
            else ("leave it out of the plan: it is whole on every rank then")
        )
        raise UnsupportedError(
            f"{style} is for a FactoredLinear that is not shared out yet; this is a "
            f"{type(layer).__name__}: {remedy}"
        )
    _check_plain(layer, style)
    factors = layer._assembled()
    try:
        sharing = Sharing.of(factors.to("meta"), mesh, axis, inner)
    except ShapeError as error:
        raise ShapeError(
            f"{layer}: {error}; take a mesh whose size divides that"
            f"{', or inner=' + repr(INNER[0]) if inner != INNER[0] else ''}, factors of sizes that "
            "are divided, or leave the layer out of the plan"
        ) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{layer}: {error}; leave the layer out of the plan") from None
    _check_ties(layer, sharing, style)
    return sharing


def _is_torchs(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Embedding))


def _check_plain(layer: FactoredLinear, style: str) -> None:
    held = {**layer._parameters, **layer._buffers}
    computed = [name for name in layer._names.values() if name not in held]
    if computed:
        raise UnsupportedError(
            f"{style}: {', '.join(computed)} of {layer} are computed, as parametrize and prune do; "
            "remove that first"
        )
    if any(isinstance(t, DTensor) for t in held.values()):
        raise UnsupportedError(
            f"{style}: the parameters of {layer} are DTensors already; share layers out before "
            "fully_shard is applied"
        )
    if layer._rank is not None:
        raise UnsupportedError(
            f"{style}: {layer} runs on its leading terms, inside of a rank_scale; share it out "
            "outside of that"
        )


def _check_ties(layer: FactoredLinear, sharing: Sharing, style: str) -> None:
    for name, attribute in layer._names.items():
        became = vars(layer._parameters.get(attribute, layer)).get(SHARED_AS)
        if became is not None and became[0] != (sharing.mesh, sharing.shared_as(name)):
            raise ArgumentError(
                f"{style}: {attribute} of {layer} is also that of a layer which was shared out in "
                "another way; give both the same style and mesh"
            )


def shared_parameters(
    layer: FactoredLinear, sharing: Sharing, source: int | None
) -> dict[str, nn.Parameter]:
    """Attribute -> the parameter that takes its place, of the values that rank `source` has; of
    each rank's own for None."""
    whole = layer._assembled()
    tensors: dict[str, Tensor] = whole.tensors()
    if sharing.along is None:
        tensors = packed(whole, sharing)
    made: dict[str, nn.Parameter] = {}
    for name, attribute in layer._names.items():
        own = layer._parameters.get(attribute)
        if own is None:  # without elements
            continue
        became = vars(own).get(SHARED_AS)
        if became is None:
            given = tensors[name], sharing.mesh, sharing.placement(name), source
            became = (sharing.mesh, sharing.shared_as(name)), _distributed(own, *given)
            vars(own)[SHARED_AS] = became
        made[attribute] = became[1]
    if layer.bias is not None:
        made["bias"] = _distributed(layer.bias, layer.bias, sharing.mesh, sharing.bias, source)
    return made


def _distributed(
    own: nn.Parameter, value: Tensor, mesh: DeviceMesh, placement: Placement, source: int | None
) -> nn.Parameter:
    spread = distribute_tensor(value.detach(), mesh, [placement], src_data_rank=source)
    return nn.Parameter(spread, requires_grad=own.requires_grad)


# ---- packed -------------------------------------------------------------------------------------


def packed(whole: Factors, sharing: Sharing) -> dict[str, Tensor]:
    """The tensors of all parts, (ranks, numbers of the largest part) each, zeros behind."""
    form, ranks = form_of(whole), sharing.mesh.size()
    parts = [form.part(whole, sharing.axis, ranks, k).tensors() for k in range(ranks)]
    return {name: _rows([part[name].detach().reshape(-1) for part in parts]) for name in parts[0]}


def _rows(tensors: list[Tensor]) -> Tensor:
    longest = max(t.numel() for t in tensors)
    return torch.stack([nn.functional.pad(t, (0, longest - t.numel())) for t in tensors])


def unpacked(tensors: Mapping[str, Tensor], blank: Factors, sharing: Sharing) -> dict[str, Tensor]:
    """The tensors of the whole, of which `blank` has the sizes, from what `packed` gave."""
    form, ranks = form_of(blank), sharing.mesh.size()
    parts = []
    for k in range(ranks):
        part = form.part(blank, sharing.axis, ranks, k)
        sizes = {name: tuple(t.shape) for name, t in part.tensors().items()}
        own = {
            name: tensors[name][k][: torch.Size(size).numel()].reshape(size)
            for name, size in sizes.items()
        }
        parts.append(type(part)._assemble(own, part._context()))
    whole: Factors = form.joined(parts, sharing.axis)
    return whole.tensors()
