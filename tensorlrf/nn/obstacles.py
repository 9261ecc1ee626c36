"""Which torch layers a factored one can stand in for, and why not the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.behaviour.lookups import scale_of
from tensorlrf.nn.behaviour.mismatch import mismatch
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.plain import TABLES, Plain, base_of, is_told
from tensorlrf.nn.tensors import is_known

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_REGISTER = "; leave it dense, or tell by tensorlrf.nn.register_plain what it computes"
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


class Obstacle(NamedTuple):
    """Why a layer cannot be replaced, and what can be done about it where `why` does not say so.

    `of_form`: it is plain and might have another weight, and only a factored form there is none.
    `of_forward`: its forward does something else, or takes more than weight and bias.
    """

    why: str
    remedy: str = "; leave it dense"
    of_form: bool = False
    of_forward: bool = False


def why_not(module: nn.Module, *, values: bool = True) -> str:
    """Why no factored layer can stand in for `module`, looking at nothing but the module itself.

    Empty where one can. Rank, savings and what other modules do with it are not looked at. Without
    `values` a weight on the meta device will do.
    """
    return next((one.why for one in _obstacles(module, values=values)), "")


def why_not_rewritten(module: nn.Module) -> str:
    """Why `module` is no plain layer whose weight may be another; empty where it is one."""
    return next((one.why for one in _obstacles(module) if not one.of_form), "")


def why_not_looked_at(module: nn.Module) -> str:
    """Why `module` must stay, whatever its forward computes."""
    found = _obstacles(module, values=False)
    return next((one.why for one in found if not one.of_form and not one.of_forward), "")


def plain_layer(module: nn.Module) -> Plain | None:
    """What `module` computes, where a factored layer can stand in for it; it may be on meta."""
    if next(_obstacles(module, values=False), None) is not None:
        return None
    plain = plain_of(module)
    return plain if isinstance(plain, Plain) else None


def check_layer(layer: Any, kind: type[nn.Module] | str, argument: str) -> Plain:
    """What `layer` computes: a `kind`, such as torch.nn.Linear, on which nothing hangs.

    kind  the torch layer, or "Conv1D" for the one of transformers

    Whoever makes a layer like it goes by what is returned: the attributes of a known subclass do
    not tell its padding. A layer on the meta device will do. Raises ArgumentError where it is no
    module and UnsupportedError, with the remedy, where the factored `kind` cannot replace it.
    """
    name = kind if isinstance(kind, str) else kind.__name__
    wanted = f"transformers.pytorch_utils.{name}" if name == "Conv1D" else f"torch.nn.{name}"
    if not isinstance(layer, nn.Module):
        raise ArgumentError(f"{argument} is a {type(layer).__name__}; pass a {wanted}")
    obstacle = next(_obstacles(layer, values=False), None)
    if obstacle is not None:
        # A layer of another kind is told what is wanted, others what can be done about them.
        foreign = obstacle.why.startswith("neither")
        told = f"pass a {wanted}" if foreign else obstacle.why + obstacle.remedy
        raise UnsupportedError(f"{argument} is a {_type_name(layer)}; {told}")
    plain = plain_of(layer)
    if isinstance(plain, str) or plain.kind != name:
        raise UnsupportedError(f"{argument} is a {_type_name(layer)}; pass a {wanted}")
    return plain


def check_embedding(layer: Any, argument: str, kind: type[nn.Module] = nn.Embedding) -> None:
    """`layer` is a torch.nn.Embedding, a subclass that scales what it looks up, or exactly another
    `kind` of table, on which nothing hangs, and no option of it is one that factors do not have. It
    may be on the meta device.

    Raises ArgumentError where it is no module and UnsupportedError, with the remedy, where no
    factored embedding can replace it.
    """
    wanted = f"torch.nn.{kind.__name__}"
    if not isinstance(layer, nn.Module):
        raise ArgumentError(f"{argument} is a {type(layer).__name__}; pass a {wanted}")
    obstacle = next(_embedding_obstacles(layer, kind), None)
    if obstacle is not None:
        raise UnsupportedError(
            f"{argument} is a {_type_name(layer)}; {obstacle.why}{obstacle.remedy}"
        )


def _embedding_obstacles(module: nn.Module, kind: type[nn.Module]) -> Iterator[Obstacle]:
    if isinstance(module, FactoredLayer):
        yield Obstacle("runs on factors already", "; decompose its .weight and give a dense layer")
        return
    if parametrize.is_parametrized(module):
        yield Obstacle(
            "parametrised; remove_parametrizations first", " (torch.nn.utils.parametrize)"
        )
        return
    if type(module) is not kind and (kind is not nn.Embedding or not isinstance(module, kind)):
        yield Obstacle(f"only exactly a torch.nn.{kind.__name__} is replaced")
        return
    if getattr(module, "mode", "") == "max":
        yield Obstacle(
            "mode='max' takes the largest of rows, which does not commute with the product of "
            "factors as a sum does"
        )
    yield from _own(module, ("weight",))
    yield from _weight(module._parameters.get("weight"))
    yield from _more(module)
    assert isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if module.max_norm is not None:
        yield Obstacle(
            f"max_norm={module.max_norm} rescales single rows of the weight in every call, and "
            "rows that share a factor cannot be rescaled alone",
            "; set layer.max_norm = None if the rows have their norms already",
        )
    if module.scale_grad_by_freq:
        yield Obstacle(
            "scale_grad_by_freq divides the gradient of every row by how often it was looked up, "
            "and the gradient of a factor that all rows share belongs to none of them",
            "; set layer.scale_grad_by_freq = False",
        )
    if module.sparse:
        yield Obstacle(
            "sparse gradients name the rows that were looked up, and every lookup changes the "
            "factor that all rows share",
            "; set layer.sparse = False",
        )
    if isinstance(module, nn.Embedding) and module._parameters.get("weight") is not None:
        scale = scale_of(module)
        if isinstance(scale, str):
            yield Obstacle(scale, of_forward=True)
        elif math.isnan(scale) and not module.weight.is_meta:
            yield Obstacle("scales by a buffer on the meta device, which has no value")


def hooks_of(module: nn.Module) -> list[str]:
    """The kinds of hooks that are registered on it, but for those that do nothing there."""
    return [
        name[1:]
        for name in _HOOKS
        if any(not _is_leftover(module, name, h) for h in getattr(module, name, {}).values())
    ]


def _is_leftover(module: nn.Module, kind: str, hook: Any) -> bool:
    """Whether it is one that weight_norm or spectral_norm of torch.nn.utils leaves behind when they
    are removed: it only reads state dicts of the time before."""
    if kind != "_load_state_dict_pre_hooks" or "weight" not in module._parameters:
        return False
    inner = getattr(hook, "hook", hook)  # torch wraps those that want the module
    home = getattr(inner, "__module__", "")
    return home.startswith("torch.nn.utils.") and not parametrize.is_parametrized(module)


def _type_name(module: nn.Module) -> str:
    # parametrize puts a class of its own in front.
    cls = type(module)
    return (cls.__bases__[0] if parametrize.is_parametrized(module) else cls).__name__


def _obstacles(module: nn.Module, *, values: bool = True) -> Iterator[Obstacle]:
    """The reasons against it, the first one the one to tell; `values`: it must hold some."""
    if isinstance(module, FactoredLayer):
        yield Obstacle("runs on factors already", "; decompose its .weight and give a dense layer")
        return
    if type(module).__module__.startswith(_QUANTISED):
        yield Obstacle("quantised; compress the float model, then quantise it", "")
        return
    if any(is_lazy(p) for p in module.parameters(recurse=False)):
        yield Obstacle("lazy: run the model once, then compress it", "")
        return
    if parametrize.is_parametrized(module):
        yield Obstacle(
            "parametrised; remove_parametrizations first", " (torch.nn.utils.parametrize)"
        )
        return
    table = next((base for base in TABLES.values() if isinstance(module, base)), None)
    if table is not None:
        yield from _embedding_obstacles(module, table)
        weight = module._parameters.get("weight")
        if weight is not None and weight.is_meta and values:
            yield Obstacle("its weight is on the meta device and has no values")
        return
    plain = plain_of(module)
    if base_of(module) is None and isinstance(plain, str):
        yield Obstacle(plain)
        return
    yield from _own(module)
    weight = module._parameters.get("weight")
    yield from _weight(weight)
    bias = module._parameters.get("bias")
    if bias is not None and type(bias) not in (nn.Parameter, Tensor):
        yield Obstacle(f"its bias is a {type(bias).__name__}, no ordinary tensor")
    if isinstance(plain, str):
        yield Obstacle(plain, _REGISTER if plain.startswith("subclass") else "; leave it dense")
        return
    yield from _more(module)
    assert weight is not None
    if plain.groups > 1 and plain.shape_of(weight)[1] == 1:
        yield Obstacle(
            f"depthwise convolution (groups={plain.groups}): every channel has one filter, of rank "
            "one already, so there is nothing to factor",
            of_form=True,
        )
    if weight.is_meta and values:
        yield Obstacle("its weight is on the meta device and has no values")
    differs = mismatch(module, plain)
    if differs:
        remedy = _REGISTER if differs.startswith("subclass") else "; leave it dense"
        yield Obstacle(differs, remedy, of_forward=True)


def _own(module: nn.Module, names: tuple[str, ...] = ("weight", "bias")) -> Iterator[Obstacle]:
    """What hangs on the module and a new layer would not have."""
    hooks = hooks_of(module)
    for name in names:
        if name not in module._parameters:
            by_hook = "is computed by a hook (weight_norm, spectral_norm or prune); remove it first"
            what = by_hook if hooks else "is no parameter of its own"
            yield Obstacle(f"its {name} {what}", "" if hooks else "; leave it dense")
    if hooks:
        yield Obstacle(
            f"has hooks ({', '.join(hooks)}), which a new layer would not have",
            "; remove them first and register them on the new layer",
        )
    if "forward" in vars(module):
        yield Obstacle(
            "its forward is replaced on the instance", "; restore it first (del layer.forward)"
        )


def _more(module: nn.Module) -> Iterator[Obstacle]:
    """Tensors and modules that somebody hung on it."""
    # The modules of a known subclass, such as its padding, are part of what is known of it.
    exact = type(module).__module__.startswith("torch.nn.")
    inside = [
        name
        for name, child in ({} if is_told(module) else module._modules).items()
        if exact or (child is not None and any(True for _ in _tensors_of(child)))
    ]
    held = [*module._parameters, *_lasting(module), *inside]
    more = sorted(set(held) - {"weight", "bias"})
    if more:
        yield Obstacle(
            f"holds more than weight and bias ({', '.join(more)}), which a new layer would not "
            "have",
            of_forward=True,
        )


def _lasting(module: nn.Module) -> Iterator[str]:
    """Its buffers, but for single numbers of an embedding that no file has: by one it scales what
    it looks up, if by any, and that is seen by running it."""
    for name, buffer in module._buffers.items():
        single = buffer is not None and buffer.numel() == 1
        passing = single and name in module._non_persistent_buffers_set
        if not (passing and isinstance(module, nn.Embedding)):
            yield name


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _subclass(tensor: Tensor) -> Iterator[Obstacle]:
    if not is_known(tensor):
        yield Obstacle(
            f"its weight is a {type(tensor).__name__}, no ordinary tensor",
            "; compress the model before it is sharded, quantised or wrapped, or tell by "
            "tensorlrf.nn.register_tensor how its values are read",
        )


def _weight(weight: Tensor | None) -> Iterator[Obstacle]:
    """What factors can be made of: floating point, dense, an ordinary tensor."""
    if weight is None:
        yield Obstacle("has no weight")
        return
    wrapped = list(_subclass(weight))
    if wrapped:
        yield from wrapped
        return
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.layout != torch.strided:
        yield Obstacle(f"its weight is {str(weight.layout).removeprefix('torch.')}, not dense")
    if not weight.is_floating_point():
        yield Obstacle(f"its weight is {dtype}, not floating point")
    if weight.dtype.itemsize == 1:
        yield Obstacle(f"its weight is {dtype}, in which torch multiplies no factors")
    if weight.numel() == 0:
        yield Obstacle("its weight is empty")
