"""A model as it is without what torch.distributed has put around it or into it.

Of a DistributedDataParallel that is the module within. Where parameters are sharded (`fully_shard`,
`parallelize_module`: they are DTensors), it is a plain module tree with whole parameters, each of
which is gathered in its turn: all ranks that hold shards have to ask for it, and each needs room
for the whole. Among the ranks of a group its matrices stay where they are (`_scattered`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tensorlrf.compression._exchange import exchanged
from tensorlrf.compression.group._group import ALONE, Alone, Group
from tensorlrf.compression.group._scattered import AXES, of_given
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import renormalised

_OF_RANKS = ("torch.distributed.", "tensorlrf.nn.parallel.")
_STATE = "__composable_api"
"""How attributes begin by which torch knows what it has made of a module."""


def unsharded(model: nn.Module, group: Alone = ALONE) -> nn.Module:
    """The model, whose parameters and buffers it shares where they are whole already; the given one
    stays as it is. Matrices stay scattered over the ranks of a `group`. Raises ArgumentError for
    what has flattened its parameters."""
    model = exchanged(model, _within)
    if not is_sharded(model):
        return model
    return _Plain(group=group, whole=renormalised(model)).of(model)


def in_whole(module: nn.Module) -> nn.Module:
    """A module of such a model on whole parameters. A call of all ranks."""
    return _Plain().of(module)


def with_buffers_of_first(model: nn.Module, group: Alone) -> nn.Module:
    """The model with the buffers that the first rank has, where they differ, as those of a
    DistributedDataParallel do after a step of each rank."""
    names = [name for name, _ in model.named_buffers()]
    told = group.gathered(names)
    if any(one != names for one in told):  # which is told of models that differ
        return model
    own = {name: b.detach() for name, b in model.named_buffers()}
    first = {name: t.to(own[name].device) for name, t in group.of(0, own).items()}
    if group.every(all(torch.equal(own[name], first[name]) for name in names)):
        return model
    return _Plain({b: first[name] for name, b in model.named_buffers()}).of(model)


def is_wrapped(model: nn.Module) -> bool:
    """Whether torch.distributed has wrapped or sharded it."""
    wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    return wrapped or is_sharded(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether there are parts of parameters elsewhere."""
    # Whoever has sharded one has imported this, and nobody else need.
    modules = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    values = (*model.parameters(), *model.buffers())
    return any(map(is_dtensor, values)) or any(
        isinstance(module, modules) for module in model.modules()
    )


def is_dtensor(value: Any) -> bool:
    """Whether it is one."""
    return isinstance(value, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def _within(module: nn.Module) -> nn.Module | None:
    flat = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", ())
    if isinstance(module, flat):
        raise ArgumentError(
            "model is under FullyShardedDataParallel, whose parameters are flat; take fully_shard, "
            "or load its full state_dict into the plain model"
        )
    inner: Any = module
    return inner.module if isinstance(module, DistributedDataParallel) else None


class _Plain:
    """Makes the twins of modules, each once, and of what they share."""

    def __init__(
        self,
        known: Mapping[Tensor, Tensor] = MappingProxyType({}),
        group: Alone = ALONE,
        whole: Collection[int] = (),
    ) -> None:
        """known  what takes the place of tensors
        group  ranks among which matrices stay scattered, but for some that are `whole`, by id
        """
        self._group = group if isinstance(group, Group) else None
        self._in_whole = whole
        self._modules: dict[nn.Module, nn.Module] = {}
        self._tensors: dict[Tensor, Tensor] = dict(known)

    def of(self, module: nn.Module) -> nn.Module:
        if module in self._modules:
            return self._modules[module]
        shared = getattr(sys.modules.get("tensorlrf.nn.parallel._layer"), "SharedLinear", ())
        if isinstance(module, shared):
            return self._unshared(module)
        kind: Any = type(module)
        kind = kind.__mro__[getattr(kind, "_orig_cls_mro_index", 0)]
        twin: Any = object.__new__(kind)
        self._modules[module] = twin
        for name, value in vars(module).items():
            if name.startswith(_STATE):
                continue
            vars(twin)[name] = _without_ranks(value) if name.endswith("_hooks") else value
        twin._parameters = {k: self._whole(p) for k, p in module._parameters.items()}
        twin._buffers = {k: self._whole(b) for k, b in module._buffers.items()}
        twin._modules = {k: m and self.of(m) for k, m in module._modules.items()}
        made: nn.Module = twin
        return made

    def _unshared(self, layer: Any) -> nn.Module:
        """Of a layer on factors that a style has shared out."""
        plain: nn.Module = layer.unshared()
        self._modules[layer] = plain
        for name, p in layer._parameters.items():
            if p is not None:  # one that another layer has too stays one
                own: Any = self._tensors.setdefault(p, plain.get_parameter(name))
                plain._parameters[name] = own
        return plain

    def _whole(self, value: Any) -> Any:
        if value is None:
            return None
        if value in self._tensors:
            return self._tensors[value]
        stays = is_dtensor(value) and value.ndim >= AXES and isinstance(value, nn.Parameter)
        if self._group is not None and stays and id(value) not in self._in_whole:
            self._tensors[value] = of_given(value, self._group)
            return self._tensors[value]
        sharded, hooks = hasattr(value, "full_tensor"), value._backward_hooks or {}
        # A gradient that is added up over the ranks is, of a model that is whole, of another one.
        if sharded or any(map(_of_ranks, hooks.values())):
            whole = (value.full_tensor() if sharded else value).detach()
            if isinstance(value, nn.Parameter):
                whole = nn.Parameter(whole, value.requires_grad)
            self._tensors[value] = whole
        return self._tensors.get(value, value)


def _without_ranks(hooks: Any) -> Any:
    """Hooks without those by which parameters are gathered, inputs laid out, gradients added up."""
    if not isinstance(hooks, dict):
        return hooks
    return type(hooks)((k, hook) for k, hook in hooks.items() if not _of_ranks(hook))


def _of_ranks(hook: Any) -> bool:
    inner = getattr(hook, "hook", None) or getattr(hook, "func", None) or hook
    return str(getattr(inner, "__module__", "")).startswith(_OF_RANKS)
