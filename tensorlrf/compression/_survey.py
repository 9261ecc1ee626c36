"""Which layers of a model can be replaced, and why the others stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer

ROOT = "(model)"
"""The name of the model itself, where it is one layer."""

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Found:
    """A module that owns parameters.

    name    qualified name of its first place in the model
    places  all its qualified names; a module used twice has two
    module  the module
    reason  why it stays as it is; empty where it can be replaced
    """

    name: str
    places: tuple[str, ...]
    module: nn.Module
    reason: str

    @property
    def eligible(self) -> bool:
        return not self.reason

    def left(self, reason: str) -> Found:
        """The same, staying as it is."""
        return replace(self, reason=reason)


def survey(model: nn.Module, skip: Sequence[str] = ()) -> list[Found]:
    """Every module with parameters of its own, once, in the order of `named_modules`.

    A glob of `skip` is matched against qualified names and covers all that the module holds.
    Raises ArgumentError where a glob of `skip` matches no module.
    """
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name or ROOT)
    _check_globs(skip, [name for names in places.values() for name in names])
    owners = {
        m: n for m, n in places.items() if next(m.parameters(recurse=False), None) is not None
    }
    tied = _tied(owners)
    read = dict(_read_by_parents(places))
    held = _held_elsewhere(places)
    found = []
    for module, names in owners.items():
        glob = next((g for g in skip for n in names if _covers(g, n)), None)
        reason = _reason(module)
        if not reason and glob is not None:
            reason = f"skipped by {glob!r}"
        if not reason and module in tied:
            reason = f"shares its storage with {', '.join(tied[module])}"
        if not reason and module in read:
            reason = read[module]
        if not reason and module in held:
            reason = f"is also held by {held[module]}, outside the tree of modules"
        found.append(Found(names[0], tuple(names), module, reason))
    return found


def layer_at(model: nn.Module, name: str) -> Layer:
    """The layer of that qualified name, which is known to be a Linear or Conv2d."""
    layer = model if name == ROOT else model.get_submodule(name)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    return layer


def own_numbers(module: nn.Module) -> tuple[int, int]:
    """(numbers, bytes) of the parameters that `module` itself owns; lazy ones count as none."""
    own = [p for p in module.parameters(recurse=False) if not is_lazy(p)]
    return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)


def kind_of(module: nn.Module) -> str:
    """The name of its type, as the user wrote it."""
    cls = type(module)
    return cls.__bases__[0].__name__ if is_parametrized(module) else cls.__name__


def _reason(module: nn.Module) -> str:
    """Why the module cannot be replaced, looking at nothing but itself; empty if it can."""
    if isinstance(module, FactoredLayer):
        return "runs on factors already"
    if any(is_lazy(p) for p in module.parameters(recurse=False)):
        return "lazy: run the model once, then compress it"
    if is_parametrized(module):
        return "parametrised; remove_parametrizations first"
    if type(module) not in (nn.Linear, nn.Conv2d):
        return _foreign(module)
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    if "weight" not in module._parameters:
        return "its weight is computed by a hook (weight_norm or spectral_norm); remove it first"
    if _has_hooks(module):
        return "has hooks, which a new layer would not have"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    weight = module.weight
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    if weight.is_meta:
        return "its weight is on the meta device and has no values"
    if weight.numel() == 0:
        return "its weight is empty"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"grouped convolution (groups={module.groups})"
        if module.kernel_size == (1, 1):
            return "1 x 1 convolution"
    return ""


def _foreign(module: nn.Module) -> str:
    """The reason for a type that is neither Linear nor Conv2d."""
    for base in (nn.Linear, nn.Conv2d):
        if isinstance(module, base):
            return f"subclass of {base.__name__}; only the exact type is replaced"
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed convolution"
    if isinstance(module, (nn.Conv1d, nn.Conv3d)):
        return "only convolutions in two dimensions are replaced"
    return "neither Linear nor Conv2d"


def _has_hooks(module: nn.Module) -> bool:
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    )
    return any(getattr(module, name, None) for name in hooks)


def _read_by_parents(places: dict[nn.Module, list[str]]) -> Iterator[tuple[nn.Module, str]]:
    """Layers whose parent computes with their weights instead of calling them."""
    for parent in places:
        if isinstance(parent, nn.TransformerEncoderLayer):
            reason = "its weight is read by the fast path of TransformerEncoderLayer"
            yield parent.linear1, reason
            yield parent.linear2, reason


def _held_elsewhere(places: dict[nn.Module, list[str]]) -> dict[nn.Module, str]:
    """Modules in plain attributes, lists and dicts of others, which would keep the old one."""
    held: dict[nn.Module, str] = {}
    for owner, names in places.items():
        for attribute, value in vars(owner).items():
            if attribute == "_modules":
                continue
            if isinstance(value, dict):
                values = list(value.values())
            else:
                values = list(value) if isinstance(value, (list, tuple, set)) else [value]
            for one in values:
                if isinstance(one, nn.Module) and one in places:
                    held[one] = attribute if names[0] == ROOT else f"{names[0]}.{attribute}"
    return held


def _tied(owners: dict[nn.Module, list[str]]) -> dict[nn.Module, list[str]]:
    """Modules whose parameters overlap in memory with those of other modules, with their names."""
    spans: dict[object, list[tuple[int, int, nn.Module, str]]] = {}
    for module, names in owners.items():
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if is_lazy(parameter) or parameter.is_meta or parameter.numel() == 0:
                continue
            key = (parameter.device, parameter.untyped_storage().data_ptr())
            spans.setdefault(key, []).append((*_span(parameter), module, f"{names[0]}.{own}"))
    tied: dict[nn.Module, list[str]] = {}
    for group in spans.values():
        for k, (start, end, module, _) in enumerate(group):
            for j, (other_start, other_end, other, name) in enumerate(group):
                if k != j and start < other_end and other_start < end and other is not module:
                    names = tied.setdefault(module, [])
                    if name not in names:
                        names.append(name)
    return tied


def _span(t: Tensor) -> tuple[int, int]:
    """First and last + 1 element of the storage that the tensor touches, in bytes."""
    size, first = t.element_size(), int(t.storage_offset())
    last = first + sum(int((n - 1) * s) for n, s in zip(t.shape, t.stride(), strict=True))
    return first * size, (last + 1) * size


def _covers(glob: str, name: str) -> bool:
    """The glob matches the module itself or one that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: k + 1]), glob) for k in range(len(parts)))


def _check_globs(skip: Sequence[str], names: list[str]) -> None:
    for glob in skip:
        if not any(fnmatchcase(name, glob) for name in names):
            some = ", ".join(n for n in names if n != ROOT) or ROOT
            shown = some if len(some) <= 300 else some[:300] + ", ..."
            raise ArgumentError(
                f"skip: {glob!r} matches no module; globs are matched against qualified names such "
                f"as {shown}"
            )


def check_values(name: str, weight: Tensor) -> None:
    """Raise ArgumentError, naming the layer, where a weight has NaN or Inf."""
    if not torch.isfinite(weight.detach()).all():
        kind = "NaN" if torch.isnan(weight.detach()).any() else "Inf"
        raise ArgumentError(
            f"model: the weight of {name} contains {kind}; repair it, or leave the layer out with "
            f"skip=[{name!r}]"
        )
