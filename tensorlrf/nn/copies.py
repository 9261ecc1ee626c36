"""Copies of modules: of all that a forward pass may change, on parameters that are shared."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError


def replica(model: nn.Module) -> nn.Module:
    """The same module tree in eval mode, on the same memory of the parameters.

    Whatever a forward pass keeps on the model (a count, running statistics, a recurrent state, a
    cache), in buffers or in attributes, stays with the replica: these are copies. Its parameters
    are objects of its own on the memory of the given ones, so that values written into them are
    seen by all replicas, and grads, flags and `p.data = other` are not; where their own forward
    writes values, as embeddings with max_norm do, they are copies too. What hooks and functions
    keep outside of the model is out of reach.

    Only the flags of eval mode are set: a train() of the user's own may do more, such as merging
    adapters into weights. Raises ArgumentError where torch cannot copy the model.
    """
    twin = copy_of(model, _shared(model))
    for module in twin.modules():
        module.training = False
    return twin


def copy_of(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, with what is in `memo` (id -> copy) as it is there.

    Raises ArgumentError where torch cannot make one.
    """
    try:
        return copy.deepcopy(model, {**computed_tensors(model), **(memo or {})})
    except Exception as error:
        raise ArgumentError(
            f"model cannot be copied ({type(error).__name__}: {error}); remove what deepcopy "
            "cannot take, such as tensors with a graph kept as attributes"
        ) from error


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy: tensors with a graph that a hook computes anew before every forward, as
    the weights of `weight_norm` and `prune`, and buffers that the last forward has put one on, as
    recurrent states, become copies without one."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in (
            *module._buffers.values(),
            *(vars(module).values() if module._forward_pre_hooks else ()),
        )
        if isinstance(value, Tensor) and not value.is_leaf
    }


def _shared(model: nn.Module) -> dict[Any, Any]:
    """A memo for deepcopy that keeps the memory of the parameters, for views of it as well."""
    memo: dict[Any, Any] = {}
    storages: dict[int, Any] = {}
    whole = renormalised(model)
    for p in model.parameters():
        if id(p) in whole:
            continue
        memo[id(p)] = p
        if hasattr(p, "parts"):  # which the ranks of a group have
            memo[id(p)] = _again(p)
        # Other subclasses have ways of their own, and of an inference tensor no parameter can be
        # made.
        if type(p) is nn.Parameter and not p.is_inference():
            memo[id(p)] = _again(p)
            if p.layout == torch.strided:
                storage = p.untyped_storage()
                storages[storage._cdata] = storage
    memo["torch"] = storages  # where the deepcopy of a storage looks
    return memo


def _again(p: nn.Parameter) -> nn.Parameter:
    own = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    vars(own).update(vars(p))
    return own


def renormalised(model: nn.Module) -> set[int]:
    """Tables whose rows every lookup scales down to `max_norm`, in place and in eval mode too."""
    return {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None
    }
