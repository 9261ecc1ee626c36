"""Which layers of a model can be replaced, and why the others stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tensorlrf.compression._heads import REASON as HEAD
from tensorlrf.compression._heads import heads_of
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.convolutions.baked import origin_of
from tensorlrf.nn.obstacles import why_not
from tensorlrf.nn.packed.unpacked import unpacked_type, why_not_unpacked
from tensorlrf.nn.plain import is_table

EMBEDDINGS, HEADS = "embeddings", "heads"
INCLUDED = (EMBEDDINGS, HEADS)
"""Kinds of layers that stay unless they are asked for."""

EMBEDDING = "an embedding, which stays by default; include=['embeddings'] factors it too"

ROOT = "(model)"
"""The name of the model itself, where it is one layer."""


@dataclass(frozen=True)
class Surveyed:
    """A module that owns parameters.

    name    qualified name of its first place in the model
    places  all its qualified names; a module used twice has two
    module  the module
    reason  why it stays as it is; empty where it can be replaced
    skipped whether it stays only because skip= names it, or for its kind
    tied    names of the modules that run on the table of this one, an embedding, and are replaced
            with it
    table   the name of the embedding whose table it runs on; empty for all others
    """

    name: str
    places: tuple[str, ...]
    module: nn.Module
    reason: str
    skipped: bool = False
    tied: tuple[str, ...] = ()
    table: str = ""

    @property
    def is_table(self) -> bool:
        """Whether rows of its weight are looked up."""
        return is_table(self.module)

    @property
    def eligible(self) -> bool:
        return not self.reason


def survey(model: nn.Module) -> list[Surveyed]:
    """Every module with parameters of its own, once, in the order of `named_modules`; what the user
    wants of them is not asked.

    Quantised modules, which own no parameters, are listed too.
    """
    places = _places(model)
    owners = {
        m: n
        for m, n in places.items()
        if next(m.parameters(recurse=False), None) is not None or _is_quantised(m)
    }
    bound, tied = _bonds(places), _tied(owners)
    # Of a model without any values a plan can be made all the same.
    on_meta = all(p.is_meta for p in model.parameters())
    reasons = {m: _why_not(m, values=not on_meta) or bound.get(m, "") for m in owners}
    tables = _tables(owners, tied, reasons)
    table_of = {module: table for table, others in tables.items() for module in others}
    found = []
    for module, names in owners.items():
        reason, table = reasons[module], table_of.get(module)
        if table is not None:
            reason = f"shares its storage with {owners[table][0]}.weight, and becomes what it does"
        elif not reason and module in tied and module not in tables:
            reason = _sharing(tied[module])
        others = tuple(owners[other][0] for other in tables.get(module, ()))
        at = "" if table is None else owners[table][0]
        found.append(Surveyed(names[0], tuple(names), module, reason, tied=others, table=at))
    return found


def _why_not(module: nn.Module, *, values: bool) -> str:
    packed = unpacked_type(module) is not None
    return why_not_unpacked(module) if packed else why_not(module, values=values)


def bonds_of(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that others of the model go by, for which no other can come in their place, and why:
    their tensors are shared, read, or they are held outside the tree."""
    places = _places(model)
    tied = _tied({m: n for m, n in places.items() if own_numbers(m)[0]})
    return _bonds(places) | {m: _sharing(names) for m, names in tied.items()}


def _bonds(places: dict[nn.Module, list[str]]) -> dict[nn.Module, str]:
    """Those that are read, or held outside the tree."""
    read = dict(_read_by_parents(places)) | dict(_in_adapters(places))
    held = {
        module: f"is also held by {name}, outside the tree of modules"
        for module, name in _held_elsewhere(places).items()
    }
    return held | read


def _sharing(names: Sequence[str]) -> str:
    return f"shares its storage with {', '.join(names)}"


def _tables(
    owners: Mapping[nn.Module, Sequence[str]],
    tied: Mapping[nn.Module, Sequence[str]],
    reasons: Mapping[nn.Module, str],
) -> dict[nn.Module, list[nn.Module]]:
    """Embeddings, each with the others and the linear layers that have the very same weight, where
    all of them can be replaced and nothing else shares its memory. The bias of such a linear layer
    may be that of other modules as well, as of BERT's head: it stays the very parameter."""
    sharing: dict[int, list[nn.Module]] = {}
    for module in owners:
        weight = module._parameters.get("weight")
        if weight is not None:
            sharing.setdefault(id(weight), []).append(module)
    found = {}
    for group in sharing.values():
        first = next((m for m in group if is_table(m)), None)
        if first is None or len(group) < 2:
            continue
        others = {f"{owners[m][0]}.weight" for m in group}
        others |= _places_of((m._parameters.get("bias") for m in group), owners)
        alone = all(others.issuperset(tied.get(m, ())) for m in group)
        plain = all(type(m) is nn.Linear or is_table(m) for m in group)
        if alone and plain and not any(reasons[m] for m in group):
            found[first] = [m for m in group if m is not first]
    return found


def _places_of(
    parameters: Iterable[Tensor | None], owners: Mapping[nn.Module, Sequence[str]]
) -> set[str]:
    """The names of those very parameters, one for each module that has them."""
    wanted = {id(p) for p in parameters if p is not None}
    return {
        f"{names[0]}.{own}"
        for module, names in owners.items()
        for own, p in module._parameters.items()
        if id(p) in wanted
    }


def included(include: Any) -> tuple[str, ...]:
    """Kinds of layers, one or several of `INCLUDED`. Raises ArgumentError for anything else."""
    kinds = (include,) if isinstance(include, str) else () if include is None else include
    if not isinstance(kinds, (list, tuple)) or not all(kind in INCLUDED for kind in kinds):
        raise ArgumentError(
            f"include={include!r} must be of the kinds {' and '.join(INCLUDED)}, such as "
            f"{[EMBEDDINGS]}; a single layer that stays for its kind is left out by skip="
        )
    return tuple(kinds)


def without_skipped(
    found: Sequence[Surveyed],
    model: nn.Module,
    skip: str | Sequence[str] | None,
    include: Sequence[str] = (),
) -> list[Surveyed]:
    """The survey of a model with those left that could be replaced and are not to be.

    A glob of `skip` is matched against qualified names and covers all that the module holds; with
    None heads are skipped unless `include` has them. Embeddings are skipped unless it has these,
    and those that heads are tied to unless it has both. Raises ArgumentError for what is no list of
    globs, and where one matches no module.
    """
    skip = [skip] if isinstance(skip, str) else skip
    heads = heads_of(model) if skip is None and HEADS not in include else set()
    places = {one.name: one.places for one in found}
    _check_globs(
        () if skip is None else skip, [name for names in _places(model).values() for name in names]
    )
    left = []
    for one in found:
        names = [n for name in (one.name, *one.tied) for n in places[name]]
        glob = next((g for g in skip or () for n in names if covers(g, n)), None)
        reason = HEAD if one.module in heads else _of_its_kind(one, model, include)
        reason = reason if glob is None else f"skipped by {glob!r}"
        skipped = one.eligible and bool(reason)
        left.append(replace(one, reason=reason, skipped=True) if skipped else one)
    return left


def _of_its_kind(one: Surveyed, model: nn.Module, include: Sequence[str]) -> str:
    """Why an embedding stays for what it is; empty where it does not."""
    if not one.is_table:
        return ""
    heads = [n for n in one.tied if not is_table(model.get_submodule(n))]
    if EMBEDDINGS in include and (not heads or HEADS in include):
        return ""
    if not heads:
        return EMBEDDING
    return (
        f"shares its weight with {', '.join(heads)}; include={list(INCLUDED)} factors both as one "
        "table"
    )


def _places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Each module with all its qualified names."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name or ROOT)
    return places


def _is_quantised(module: nn.Module) -> bool:
    return any(base.__module__.startswith("torch.ao.nn.") for base in type(module).__mro__) and (
        callable(getattr(module, "weight", None))
    )


def own_numbers(module: nn.Module, table: str = "") -> tuple[int, int]:
    """(numbers, bytes) of the parameters that `module` itself owns; lazy ones count as none, and
    the weight of one that runs on a `table` is that one's."""
    own = [
        p
        for name, p in module.named_parameters(recurse=False)
        if not is_lazy(p) and not (table and name == "weight")
    ]
    return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)


def kind_of(module: nn.Module) -> str:
    """The name of its type, as the user wrote it."""
    cls = type(origin_of(module))
    return cls.__bases__[0].__name__ if is_parametrized(module) else cls.__name__


def _read_by_parents(places: dict[nn.Module, list[str]]) -> Iterator[tuple[nn.Module, str]]:
    """Layers whose parent computes with their weights instead of calling them."""
    for parent in places:
        if isinstance(parent, nn.TransformerEncoderLayer) and isinstance(
            parent.self_attn, nn.MultiheadAttention
        ):
            reason = "its weight is read by the fast path of TransformerEncoderLayer"
            yield parent.linear1, reason
            yield parent.linear2, reason


_LORA = {"lora_a", "lora_b", "lora_down", "lora_up", "lora_embedding_a", "lora_embedding_b"}


def _in_adapters(places: dict[nn.Module, list[str]]) -> Iterator[tuple[nn.Module, str]]:
    """Layers that an adapter wraps, whose weights it adds itself to when it is merged, and those
    that it is made of. Told by what it holds, as peft, torchtune and litgpt name it."""
    for adapter, names in places.items():
        # Every tuner layer of peft lists them.
        own = {*_LORA, *map(str.lower, getattr(type(adapter), "adapter_layer_names", ()))}
        held = (*adapter._parameters, *adapter._modules, *adapter._buffers)
        if own.isdisjoint(map(str.lower, held)):
            continue
        for name, child in adapter.named_children():
            what = "is part of an adapter" if name.lower() in own else "lies under an adapter"
            for module in child.modules():
                yield module, f"{what} ({names[0]}); merge it first (merge_and_unload of peft)"


def _held_elsewhere(places: dict[nn.Module, list[str]]) -> dict[nn.Module, str]:
    """Modules in plain attributes, lists and dicts of others, which would keep the old one."""
    held: dict[nn.Module, str] = {}
    for owner, names in places.items():
        for attribute, value in vars(owner).items():
            if attribute == "_modules":
                continue
            for one in _modules_in(value):
                if one in places and not (one is owner and attribute == "forward"):
                    held[one] = attribute if names[0] == ROOT else f"{names[0]}.{attribute}"
    return held


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """Modules in nested plain containers, and those whose methods are in them."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, MethodType):
        yield from _modules_in(value.__self__)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _modules_in(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from _modules_in(one)


def _tied(owners: dict[nn.Module, list[str]]) -> dict[nn.Module, list[str]]:
    """Modules whose parameters overlap in memory with those of other modules, with their names."""
    spans: dict[object, list[tuple[int, int, nn.Module, str]]] = {}
    for module, names in owners.items():
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if is_lazy(parameter):
                continue
            for part in _plain_parts(parameter):
                if part.numel():
                    # On meta there is no memory to tell by, but one parameter is one.
                    where = id(part) if part.is_meta else part.untyped_storage().data_ptr()
                    key = (part.device, where)
                    spans.setdefault(key, []).append((*_span(part), module, f"{names[0]}.{own}"))
    tied: dict[nn.Module, list[str]] = {}
    for group in spans.values():
        for k, (start, end, module, _) in enumerate(group):
            for j, (other_start, other_end, other, name) in enumerate(group):
                if k != j and start < other_end and other_start < end and other is not module:
                    names = tied.setdefault(module, [])
                    if name not in names:
                        names.append(name)
    return tied


def _plain_parts(t: Tensor) -> Iterator[Tensor]:
    """The tensors with storage that `t` is made of: of a subclass that wraps others, these."""
    if not is_traceable_wrapper_subclass(t):
        yield t
        return
    for name in t.__tensor_flatten__()[0]:
        yield from _plain_parts(getattr(t, name))


def _span(t: Tensor) -> tuple[int, int]:
    """First and last + 1 element of the storage that the tensor touches, in bytes."""
    size, first = t.element_size(), int(t.storage_offset())
    last = first + sum(int((n - 1) * s) for n, s in zip(t.shape, t.stride(), strict=True))
    return first * size, (last + 1) * size


def covers(glob: str, name: str) -> bool:
    """Whether the glob matches the module itself or one that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: k + 1]), glob) for k in range(len(parts)))


def _check_globs(skip: Sequence[str], names: list[str]) -> None:
    if not isinstance(skip, (list, tuple)) or not all(isinstance(glob, str) for glob in skip):
        raise ArgumentError(
            f"skip={skip!r} must be a glob, or several of them, such as ['head*', '*.norm']"
        )
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
