"""Factored layers that run on the leading terms of their factors for a while."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

from torch import nn

from tensorlrf.factors import Factors
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.ranks._cut import Cut

Rank = int | tuple[int, ...]


def has_terms(layer: FactoredLayer) -> bool:
    """Whether leading terms of its factors stand for the whole."""
    return layer._assembled().has_terms


def whole_rank(layer: FactoredLayer) -> Rank:
    """Of all its factors."""
    return layer._assembled().rank


def share_of(rank: Rank, share: float) -> Rank:
    """That share of each rank, rounded down, one at least."""
    if isinstance(rank, tuple):
        return tuple(_share(r, share) for r in rank)
    return _share(rank, share)


def _share(rank: int, share: float) -> int:
    # 2/3 of 9 is 6, although it is less in floats.
    return max(1, min(rank, math.floor(share * rank * (1 + 1e-12))))


def lead(layer: FactoredLayer, rank: Rank | None) -> None:
    """Run on the first `rank` terms from here on, on all for None.

    The layer keeps no dense weight meanwhile, and takes the paths of the cost model, or those that
    were measured at that rank; a table that was set by hand stays.
    """
    if rank == layer._rank:
        return
    if layer._rank is None:
        layer._whole = _Whole(layer)
    layer._rank, layer._cuts, layer._frozen, layer._runs = rank, None, None, {}
    if rank is None:
        whole, layer._whole = layer._whole, None
        whole.restore(layer)
        return
    layer._cuts = _cuts(layer)
    layer._paths = layer._find_paths(layer.factors)
    settle(layer)


def settle(layer: FactoredLayer) -> None:
    """Have code for the paths of its table, or of the one that it would choose."""
    if layer._own_table or not set(layer._path_table.paths) <= set(layer.paths):
        layer._choose()
    else:
        layer._run_by(layer._path_table)


def set_factors(layer: FactoredLayer, factors: Factors) -> None:
    """Have the layer own other factors of its format, of another rank: its parameters become new
    ones, of the requires_grad of the old."""
    lead(layer, None)
    layer._meta = factors._context()
    kept = layer._kept_as(factors)
    layer._sizes = {name: tuple(factors.tensors()[name].shape) for name in kept}
    for name, tensor in factors.tensors().items():
        own = layer._names[name]
        if own in layer._buffers:  # indices are as they were
            continue
        old = layer._parameters[own]
        assert old is not None
        value = tensor.detach().reshape(kept.get(name, tensor.shape)).clone()
        layer._parameters[own] = nn.Parameter(value, requires_grad=old.requires_grad)
    layer._frozen, layer._runs, layer.measured = None, {}, {}
    layer._paths = layer._find_paths(layer.factors)
    settle(layer)


def _cuts(layer: FactoredLayer) -> tuple[Cut, ...]:
    """From the sizes of all terms and of the leading ones."""
    whole, part = layer._assembled(), layer.factors
    shapes = {name: tuple(t.shape) for name, t in whole.tensors().items()}
    sizes = {name: tuple(t.shape) for name, t in part.tensors().items()}
    shapes.update(layer._kept_as(whole))
    sizes.update(layer._kept_as(part))
    return tuple(Cut(shapes[name], sizes[name]) for name in shapes)


class _Whole:
    """What a layer had when it ran on all terms."""

    def __init__(self, layer: FactoredLayer) -> None:
        self.home = layer._home
        self.kept: dict[str, Any] = {
            name: vars(layer)[name]
            for name in ("_frozen", "_runs", "_paths", "_path_table", "_own_table")
        }

    def __getstate__(self) -> dict[str, Any]:
        # No copy holds a dense weight; see Freezable.
        return {"home": self.home, "kept": {**self.kept, "_frozen": None}}

    def restore(self, layer: FactoredLayer) -> None:
        """The same again, or anew where the layer has been moved, cast or trained meanwhile."""
        vars(layer).update(self.kept)
        if layer._home != self.home or (layer.training and layer.is_frozen):
            layer._frozen = None
            layer._paths = layer._find_paths(layer.factors)
            settle(layer)


# ---- who has asked for it -----------------------------------------------------------------------


class _Asked(NamedTuple):
    """by  who has asked for a rank; None for the layer as it was
    thread  the one that did so
    """

    by: object
    thread: int
    rank: Rank | None


_LOCK = threading.Lock()


def ask(layer: FactoredLayer, by: object, rank: Rank | None) -> bool:
    """Have the layer run at a rank, until `by` takes it back; False where another thread has asked
    for one that it still needs."""
    me = threading.get_ident()
    with _LOCK:
        if any(one.by is not None and one.thread != me for one in layer._asked):
            return False
        if not layer._asked:
            layer._asked.append(_Asked(None, me, layer._rank))
        layer._asked.append(_Asked(by, me, rank))
        lead(layer, rank)
    return True


def take_back(layer: FactoredLayer, by: object) -> None:
    """The layer runs as who asked last, of those that still need it, has asked for."""
    with _LOCK:
        layer._asked[:] = [one for one in layer._asked if one.by is not by]
        if layer._asked:
            lead(layer, layer._asked[-1].rank)
        if len(layer._asked) == 1:
            layer._asked.clear()
