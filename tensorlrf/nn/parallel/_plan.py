"""A plan of words or of torch's styles as one of styles that fit a model's layers, all checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfError, UnsupportedError, unknown
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.parallel._sharing import Sharing, check
from tensorlrf.nn.parallel._styles import FactoredColwise, FactoredRowwise
from tensorlrf.nn.parallel._words import TABLES, WORDS, style_of


def styles(
    model: nn.Module,
    plan: Mapping[str, str | ParallelStyle],
    mesh: DeviceMesh,
    *,
    inner: str = "whole",
) -> dict[str, ParallelStyle]:
    """A plan for `parallelize_module`, in which layers on factors have their own styles.

    All is looked at before a layer is changed, and compared over the ranks.

    Parameters
    ----------
    model : Module
        Compressed or not; stays as it is.
    plan : Mapping
        Name of a module, `*` for any part between dots -> a style of torch, a style of this
        package, or one of the words of transformers, whose `model._tp_plan` is such a plan:
        "colwise", "rowwise", "colwise_gather_output", "rowwise_split_input", "embedding_rowwise",
        "embedding_colwise" and "replicated_with_grad_allreduce". By the two of embeddings a table
        on factors is left whole on every rank.
    mesh : DeviceMesh
        Of one dimension, on which `parallelize_module` will be called.
    inner : {"whole", "sharded"}
        Of the layers on LowRank, as `FactoredColwise` and `FactoredRowwise` take it.

    Returns
    -------
    dict
        Name of a layer -> its style, without patterns: ColwiseParallel and RowwiseParallel of
        dense layers, FactoredColwise and FactoredRowwise with the same layouts of a
        `FactoredLinear`, others as they were given. What stays whole is not in it.

    Raises
    ------
    ArgumentError
        For a name that no module has, a word that is none, layers whose parameters are tied to
        others that the plan does not share out alike, and ranks that have different models.
    ShapeError
        Where the ranks do not divide what is shared out, heads of an attention included (a module
        with a `head_dim`), with the layer's name.
    UnsupportedError
        For a layer that no style serves.

    Examples
    --------
    >>> from torch.distributed.tensor.parallel import parallelize_module  # doctest: +SKIP
    >>> small, report = tensorlrf.compress(llama, keep_params=0.5)  # doctest: +SKIP
    >>> plan = tensorlrf.nn.parallel.styles(small, llama._tp_plan, mesh)  # doctest: +SKIP
    >>> parallelize_module(small, mesh, plan)  # doctest: +SKIP
    """
    found: dict[str, ParallelStyle] = {}
    modules = dict(model.named_modules())
    for pattern, wanted in plan.items():
        names = [name for name in modules if name and _matches(name, pattern)]
        if not names:
            raise ArgumentError(f"plan: {pattern!r} is no module of the model")
        for name in names:
            if not (wanted in TABLES and isinstance(modules[name], FactoredLayer)):
                found[name] = _style(name, modules[name], wanted, inner)
    sharings: dict[str, Sharing] = {}
    for name, style in found.items():
        _check_heads(name, modules, style, mesh.size())
        if isinstance(style, (FactoredColwise, FactoredRowwise)):
            sharings[name] = _checked(name, modules[name], style, mesh)
        else:
            _check_dense(name, modules[name], style, mesh.size())
    _check_ties(modules, found, sharings)
    _check_agreed(modules, found, mesh)
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _style(name: str, module: nn.Module, wanted: Any, inner: str) -> ParallelStyle:
    """The style of one module."""
    if isinstance(wanted, str):
        if wanted not in WORDS:
            raise unknown(f"plan: {name}", wanted, WORDS)
        wanted = style_of(wanted)
    if not isinstance(wanted, ParallelStyle):
        raise ArgumentError(
            f"plan: {name} has {wanted!r}, a {type(wanted).__name__}; give a ParallelStyle or one "
            f"of {', '.join(WORDS)}"
        )
    if isinstance(module, FactoredLayer) and not isinstance(module, FactoredLinear):
        raise UnsupportedError(
            f"plan: {name} is a {type(module).__name__}, which no style shares out; leave it out "
            "of the plan, and it is whole on every rank"
        )
    if not isinstance(module, FactoredLinear):
        return wanted
    kind: Any = {ColwiseParallel: FactoredColwise, RowwiseParallel: FactoredRowwise}.get(
        type(wanted)
    )
    if kind is None:
        return wanted
    given: Any = wanted
    return kind(  # type: ignore[no-any-return]  # one of the two styles
        input_layouts=given.input_layouts[0],
        output_layouts=given.output_layouts[0],
        use_local_output=given.use_local_output,
        inner=inner,
    )


def _checked(
    name: str, module: nn.Module, style: FactoredColwise | FactoredRowwise, mesh: DeviceMesh
) -> Sharing:
    try:
        return check(module, mesh, style.axis, style.inner)
    except TensorlrfError as error:
        raise type(error)(f"plan: {name}: {error}") from None


def _check_dense(name: str, module: nn.Module, style: ParallelStyle, ranks: int) -> None:
    if not isinstance(module, nn.Linear):
        return
    for kind, axis in ((ColwiseParallel, 0), (RowwiseParallel, 1)):
        size = (module.out_features, module.in_features)[axis]
        if isinstance(style, kind) and size % ranks:
            raise ShapeError(
                f"plan: {name} has {size} {('outputs', 'inputs')[axis]}, which {ranks} ranks do "
                "not divide; take a mesh whose size does, or leave it out of the plan"
            )


def _check_heads(
    name: str, modules: Mapping[str, nn.Module], style: ParallelStyle, ranks: int
) -> None:
    """Each rank has whole heads of an attention."""
    head = getattr(modules[name.rpartition(".")[0]], "head_dim", None)
    module: Any = modules[name]
    if not isinstance(head, int) or not isinstance(module, (nn.Linear, FactoredLinear)):
        return
    for kinds, size in (
        ((ColwiseParallel, FactoredColwise), module.out_features),
        ((RowwiseParallel, FactoredRowwise), module.in_features),
    ):
        if isinstance(style, kinds) and size % head == 0 and size // head % ranks:
            raise ShapeError(
                f"plan: {name} has {size // head} heads of {head}, which {ranks} ranks do not "
                "divide; take a mesh whose size does, or leave the layers of that attention out of "
                "the plan"
            )


def _check_ties(
    modules: Mapping[str, nn.Module],
    found: Mapping[str, ParallelStyle],
    sharings: Mapping[str, Sharing],
) -> None:
    """A parameter of several modules stays one."""
    held: dict[int, list[tuple[str, str]]] = {}
    for name, module in modules.items():
        for own, p in module._parameters.items():
            if p is not None:
                held.setdefault(id(p), []).append((name, own))
    for places in held.values():
        names = [name for name, _ in places]
        if len(places) == 1 or not any(name in found for name in names):
            continue
        ways = {_way(name, own, modules, sharings) for name, own in places}
        if len(ways) > 1 or None in ways:
            shown = ", ".join(f"{name}.{own}" for name, own in places)
            raise ArgumentError(
                f"plan: {shown} are one parameter, and would no longer be: share all of these "
                "layers on factors out alike, or leave them out of the plan"
            )


def _way(
    name: str, own: str, modules: Mapping[str, nn.Module], sharings: Mapping[str, Sharing]
) -> str | None:
    sharing, module = sharings.get(name), modules[name]
    if sharing is None or not isinstance(module, FactoredLinear) or own == "bias":
        return None
    part = next(part for part, attribute in module._names.items() if attribute == own)
    return repr(sharing.shared_as(part))


def _check_agreed(
    modules: Mapping[str, nn.Module], found: Mapping[str, ParallelStyle], mesh: DeviceMesh
) -> None:
    """Every rank has the same plan for layers of the same sizes."""
    words = []
    for name, style in found.items():
        sizes = [(own, tuple(p.shape), str(p.dtype)) for own, p in modules[name].named_parameters()]
        words.append(f"{name} {type(style).__name__} {vars(style)} {sizes}")
    own = hashlib.sha256("\n".join(words).encode()).hexdigest()
    told: list[Any] = [None] * mesh.size()
    dist.all_gather_object(told, own, group=mesh.get_group())
    others = [rank for rank, one in enumerate(told) if one != told[0]]
    if others:
        raise ArgumentError(
            f"plan: ranks {', '.join(map(str, others))} of the mesh have another plan or other "
            "sizes of layers than rank 0; build the same compressed model on every rank"
        )
