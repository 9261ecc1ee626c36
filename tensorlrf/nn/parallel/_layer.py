"""The linear layer on factors of which each rank of a mesh runs a part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.parallel._sharing import Sharing, packed, shared_parameters, unpacked
from tensorlrf.nn.ranks.leading import settle
from tensorlrf.ops import PathTable, dense_weight


class SharedLinear(FactoredLinear):
    """A `FactoredLinear` that a style has shared out, in place.

    Its parameters are DTensors of the names and sizes that they had (of a BlockLowRank, of all
    parts packed), `in_features` and `out_features` are of the whole layer, its paths those of this
    rank's part.
    """

    _sharing: Sharing
    _layouts: tuple[Placement, Placement, bool]  # of inputs and outputs; outputs as local tensors
    _blank: Factors  # the whole, on meta

    # ---- the part of this rank --------------------------------------------------------------

    @property
    def factors(self) -> Factors:
        """Factors of DTensors, as the parameters are now.

        Raises UnsupportedError of a format that is packed.
        """
        if self._sharing.along is None:
            raise UnsupportedError(
                f"the parts of {self} are packed for each rank, and are no "
                f"{self._format.__name__}; its state dict has the tensors of the whole, on every "
                "rank"
            )
        return super().factors

    def _here(self) -> Factors:
        own = self._sources()[0]
        return self._sharing.blank(own.dtype, own.device)

    def _blank_weight(self) -> Tensor:
        return torch.empty(self._blank.shape, dtype=self._sources()[0].dtype, device="meta")

    def _find_paths(self, factors: Factors) -> tuple[str, ...]:
        return ("chain",) if self._sharing.is_split else super()._find_paths(factors)

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        if self._sharing.is_split:
            return PathTable.single("chain")
        return super()._default_path_table(frozen)

    def _run_by(self, table: PathTable) -> None:
        if self._sharing.is_split:  # which is no one call of a path
            self._path_table = table
        else:
            super()._run_by(table)

    def _own(self, name: str, grad: Placement) -> Tensor:
        """This rank's part of a tensor; `grad` is what it gets a gradient as where it is whole."""
        sharing = self._sharing
        held: Tensor = self._tensor(self._names[name])
        if isinstance(held, DTensor):
            held = _local(held, grad)
        if sharing.along is None:
            size = sharing.sizes[name]
            return held.reshape(-1)[: torch.Size(size).numel()].reshape(size)
        return held

    def _own_bias(self, grad: Placement) -> Tensor | None:
        return None if self.bias is None else _local(self.bias, grad)

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., in_features) to (..., out_features), each in the layout of the style."""
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        before, after, as_local = self._layouts
        x = self._taken(input, before)
        y = self._outputs(x, after) if self._sharing.axis == 0 else self._inputs(x, after)
        whole: DTensor = _laid(y, after, later=True)
        return whole.to_local() if as_local else whole

    def _taken(self, x: Tensor, layout: Placement) -> DTensor:
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, self._sharing.mesh, [layout], run_check=False)
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"input is {tuple(x.shape)} over all {self._sharing.mesh.size()} ranks, if each "
                f"has what input_layouts={layout} says; the last must be in_features="
                f"{self.in_features}"
            )
        return x

    def _outputs(self, x: DTensor, after: Placement) -> DTensor:
        """Outputs are shared out."""
        matrices = self._sharing.matrices
        if matrices is None or not (self._sharing.is_split or self._needs_grad(x) or _by_rows(x)):
            x = _laid(x, Replicate())
            y = self._part(x.to_local(grad_placements=[Partial()]), self._own_bias(Partial()))
            return self._made(y, Shard(-1))
        first, second = matrices
        if self._sharing.inner == "sharded":
            x = _laid(x, Replicate())
            t = F.linear(x.to_local(grad_placements=[Partial()]), self._own(first, Partial()))
            z = self._made(t, Shard(-1), self._blank.rank)
        else:  # on the rows that are here, before they are exchanged
            x = x if _by_rows(x) else _laid(x, Replicate())
            t = F.linear(x.to_local(), self._own(first, _grad(x)))
            z = self._made(t, *x.placements)
        t = _laid(z, Replicate()).to_local(grad_placements=[Partial()])  # (..., r)
        return self._made(
            F.linear(t, self._own(second, Partial()), self._own_bias(Partial())), Shard(-1)
        )

    def _inputs(self, x: DTensor, after: Placement) -> DTensor:
        """Inputs are shared out."""
        matrices = self._sharing.matrices
        local = _laid(x, Shard(-1)).to_local()
        if matrices is None:
            whole: DTensor = _laid(self._made(self._part(local, None), Partial()), after)
            if self.bias is None:
                return whole
            biased: DTensor = whole + _laid(self.bias, Replicate()).to(whole.dtype)
            return biased
        first, second = matrices
        z = self._made(F.linear(local, self._own(first, Partial())), Partial())  # (..., r)
        if self._sharing.inner == "sharded":
            t = _laid(z, Replicate()).to_local(grad_placements=[Partial()])
            y = F.linear(t, self._own(second, Partial()), self._own_bias(Partial()))
            return self._made(y, Shard(-1))
        rows = after.is_shard() and after.dim % x.ndim != x.ndim - 1  # type: ignore[attr-defined]  # of a Shard
        z = _laid(z, after if rows else Replicate())
        grad = _grad(z)
        y = F.linear(z.to_local(), self._own(second, grad), self._own_bias(grad))
        return self._made(y, *z.placements)

    def _part(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What this rank's part makes of x, by the path that its table has."""
        path = self._path(x)
        held = [self._own(name, Partial()) for name in self._names]
        if path == "dense":
            tensors = dict(zip(self._names, held, strict=True))
            part = self._sharing.format._assemble(tensors, self._sharing.context)
            y = F.linear(x, dense_weight(part), bias)
        else:
            y = self._runs[path].run(x, *held, bias)
        for own in held:
            if own.requires_grad and not own.numel():
                y = y + own.sum()  # which is 0: every rank has a gradient of every parameter
        return y

    def _made(self, y: Tensor, layout: Placement, columns: Any = None) -> DTensor:
        """A DTensor of this rank's part; of so many columns, where parts may be unequal."""
        mesh = self._sharing.mesh
        if columns is None:
            return DTensor.from_local(y, mesh, [layout], run_check=False)
        shape = torch.Size((*y.shape[:-1], columns))
        stride = torch.empty(shape, dtype=y.dtype, device="meta").stride()
        return DTensor.from_local(y, mesh, [layout], run_check=False, shape=shape, stride=stride)

    def _needs_grad(self, x: Tensor) -> bool:
        own = self._parameters.values()
        return torch.is_grad_enabled() and (
            x.requires_grad or any(p is not None and p.requires_grad for p in own)
        )

    def _rows(self, x: Tensor) -> int:
        return x.numel() // max(1, x.shape[-1])

    # ---- as a module ------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """As it was before; of packed parts, the tensors of the whole on every rank."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        sharing = self._sharing
        if sharing.along is not None:
            return
        at = {name: prefix + own for name, own in self._names.items() if own in self._parameters}
        local = {name: destination[key].detach().full_tensor() for name, key in at.items()}
        some = next(iter(local.values()))
        for name in self._names.keys() - at.keys():
            local[name] = some.new_empty((sharing.mesh.size(), 0))
        whole = unpacked(local, self._blank, sharing)
        for name, key in at.items():
            destination[key] = self._made(whole[name], Replicate())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        sharing = self._sharing
        at = {name: prefix + own for name, own in self._names.items() if own in self._parameters}
        if sharing.along is None and all(key in state_dict for key in at.values()):
            state_dict = {**state_dict, **self._packed_again(state_dict, at)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _packed_again(self, state_dict: Any, at: dict[str, str]) -> dict[str, Tensor]:
        """Tensors of the whole, as a state dict has them, as the parameters are."""
        tensors = {}
        for name, blank in self._blank.tensors().items():
            given = state_dict[at[name]] if name in at else None
            given = given.full_tensor() if isinstance(given, DTensor) else given
            if given is not None and given.shape != blank.shape:
                return {}  # the error is torch's
            tensors[name] = blank.new_empty(0, device="cpu") if given is None else given
        rows = packed(type(self._blank)._assemble(tensors, self._blank._context()), self._sharing)
        made: dict[str, Tensor] = {}
        for name, key in at.items():
            own: Any = self._tensor(self._names[name])  # under FSDP2 of a mesh of two dimensions
            each = [Replicate()] * own.device_mesh.ndim
            whole = DTensor.from_local(rows[name], own.device_mesh, each, run_check=False)
            made[key] = whole.redistribute(placements=own.placements)
        return made

    def unshared(self) -> FactoredLinear:
        """The plain layer, whole on every rank: all of them have to ask for it.

        A factor that is another layer's too becomes one of its own.
        """
        state: dict[str, Any] = {
            name: t.full_tensor() if isinstance(t, DTensor) else t
            for name, t in self.state_dict().items()
        }
        tensors = {name: state[own] for name, own in self._names.items()}
        factors = type(self._blank)._assemble(tensors, self._blank._context())
        layer = FactoredLinear(factors, state.get("bias"))
        layer.stands_for, layer.also_held = self.stands_for, dict(self.also_held)
        layer.recipe = dict(self.recipe)
        for name, p in self._parameters.items():
            if p is not None:
                layer.get_parameter(name).requires_grad_(p.requires_grad)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Without numbers: nothing is exchanged to print a layer."""
        return (
            f"{self._options_repr()}{self._bias_repr()}, format={self._blank.format}, "
            f"rank={self._blank.rank}, {self._sharing.words()}, path={self._path_table}"
        )


def share(
    layer: FactoredLinear,
    sharing: Sharing,
    layouts: tuple[Placement, Placement, bool],
    source: int | None,
) -> None:
    """Have the ranks share the layer out, in place."""
    layer.thaw()
    layer.lie(())
    made = shared_parameters(layer, sharing, source)
    blank = layer._assembled().detach().to("meta")
    layer.__class__ = SharedLinear
    assert isinstance(layer, SharedLinear)
    layer._sharing, layer._layouts, layer._blank = sharing, layouts, blank
    layer._parameters.update(made)
    layer._runs, layer.measured = {}, {}  # which were of the whole layer
    layer._paths = layer._find_paths(layer._here())
    settle(layer)


def _laid(x: Any, layout: Placement, later: bool = False) -> Any:
    """x in that layout, its gradient in its own."""
    if not torch.is_grad_enabled():
        at = Shard(layout.dim % x.ndim) if isinstance(layout, Shard) else layout
        if x.placements == (at,):
            return x
        if x.requires_grad:
            x = x.detach()  # else torch warns of a DTensor of a tensor with grad
    return x.redistribute(placements=[layout], async_op=later)


def _local(held: Any, grad: Placement) -> Tensor:
    if held.placements[0].is_replicate():
        local: Tensor = _laid(held, Replicate()).to_local(grad_placements=[grad])
        return local
    part: Tensor = held.to_local()
    return part


def _by_rows(x: Any) -> bool:
    """Whether rows of x are shared out: any axis but the last."""
    (layout,) = x.placements
    return bool(layout.is_shard()) and layout.dim % x.ndim != x.ndim - 1


def _grad(x: Any) -> Placement:
    """As what a tensor that is whole on every rank gets its gradient from such rows."""
    return Partial() if x.placements[0].is_shard() else Replicate()
