"""A model on the leading terms of its factors, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Self

from torch import nn

from tensorlrf.compression._render import Table
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.ranks.leading import Rank, ask, has_terms, share_of, take_back, whole_rank
from tensorlrf.nn.whole import check_whole

Scale = float | int | tuple[int, ...]
"""A share of the rank in (0, 1], or a rank."""


@dataclass(frozen=True)
class ScaledLayer:
    """places  all its qualified names
    rank       at which it runs
    whole      the rank of all its factors
    """

    places: tuple[str, ...]
    layer: FactoredLayer
    rank: Rank
    whole: Rank


class RankScale:
    """What `rank_scale` gives: a context in which layers run on leading terms, and what it does.

    Parameters
    ----------
    layers : sequence of ScaledLayer
        Those that it scales.
    left : mapping
        Name of another factored layer -> why it runs on all its factors.

    Attributes
    ----------
    ranks : dict
        Name of a layer -> the rank at which it runs.
    left : dict

    Examples
    --------
    >>> model = torch.nn.Sequential(tensorlrf.nn.factorize(torch.nn.Linear(32, 32), "svd", 8))
    >>> tensorlrf.rank_scale(model, 0.5).ranks
    {'0': 4}
    """

    def __init__(self, layers: Iterable[ScaledLayer], left: Mapping[str, str]) -> None:
        self._layers = tuple(layers)
        self.left = dict(left)

    @property
    def ranks(self) -> dict[str, Rank]:
        """Name of a layer -> the rank at which it runs."""
        return {one.places[0]: one.rank for one in self._layers}

    def __enter__(self) -> Self:
        for k, one in enumerate(self._layers):
            if ask(one.layer, self, None if one.rank == one.whole else one.rank):
                continue
            for done in self._layers[:k]:
                take_back(done.layer, self)
            raise UnsupportedError(
                f"model: {one.places[0]} runs at a rank that another thread has set, and a setting "
                "is the model's, not the thread's; give each thread a copy of its own "
                "(copy.deepcopy(model)), or enter rank_scale in one"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in self._layers:
            take_back(one.layer, self)

    def __str__(self) -> str:
        rows = [(one.places[0], str(one.rank), str(one.whole)) for one in self._layers]
        header = (("layer", "left"), ("rank", "right"), ("of", "right"))
        left = [f"{name} is left: {why}" for name, why in self.left.items()]
        return str(Table("ranks", header, rows, [left]))


def rank_scale(model: nn.Module, scale: Scale | Mapping[str, Scale]) -> RankScale:
    """A context in which factored layers run on the leading terms of their factors.

    No tensor is copied: a layer runs on views of its parameters, by the path that is fastest at
    that rank, and gradients reach the terms that ran. At the end, by an error too, all is as it
    was. What comes first should say most: `order_by_energy` brings it there.

    Scales refer to the whole rank, within another `rank_scale` too; a layer that an inner one does
    not name stays as the outer one has it. The setting is the model's, so that every thread that
    runs it sees it, and a second thread cannot set another (UnsupportedError). A copy that is made
    inside stays at its ranks; `densify` and `export` give the smaller layers, `save` writes all
    terms. torch.compile makes code once for each setting that it meets.

    Parameters
    ----------
    model : Module
        With layers on LowRank, CPFactors, TuckerFactors, KroneckerSum or a Grouped of these.
    scale : float, int, tuple or mapping
        A share of each rank in (0, 1], rounded down, one at least; or the rank that layers have at
        most; for a Tucker a tuple with one rank a mode. A mapping has one of these for each name or
        glob of layers: an exact name comes before globs, an earlier glob before a later one, and
        what it does not name runs on all its terms.

    Returns
    -------
    RankScale
        The context; it prints the ranks, and the layers that are left.

    Raises
    ------
    ArgumentError, RankError
        For a share or rank out of range, an exact name with more terms than it has, and a name or
        glob of no factored layer.
    UnsupportedError
        Where a layer that is asked for by its exact name has no leading terms.

    References
    ----------
    Yu et al. 2019, "Slimmable neural networks", for a width that is chosen when a network runs.

    Examples
    --------
    >>> layer = tensorlrf.nn.factorize(torch.nn.Linear(32, 32), "svd", 8)
    >>> with tensorlrf.rank_scale(layer, 0.5):
    ...     print(layer.factors.rank)
    4
    >>> layer.factors.rank
    8
    """
    check_whole(model, "a rank that is scaled")
    model = own_model(model)
    owners = _layers(model)
    table = scale if isinstance(scale, Mapping) else {"*": scale}
    for key, value in table.items():
        _check(key, value)
        if key != "*" and not any(_is(key, places) for places in owners.values()):
            some = ", ".join(places[0] for places in owners.values())[:300] or "no factored layer"
            raise ArgumentError(f"scale: {key!r} matches no factored layer; there are {some}")
    scaled, left = [], {}
    for layer, places in owners.items():
        named = [name for name in places if name in table]
        keys = named or [glob for glob in table if _is(glob, places)]
        if not keys:
            continue
        if not has_terms(layer):
            left[places[0]] = f"{format_of(layer.factors)} has no leading terms"
            if named:
                raise UnsupportedError(
                    f"scale: {places[0]} runs on {format_of(layer.factors)} factors, of which no "
                    "first few stand for the whole; leave it out"
                )
            continue
        scaled.append(_scaled(tuple(places), layer, table[keys[0]], bool(named)))
    return RankScale(scaled, left)


def _scaled(
    places: tuple[str, ...], layer: FactoredLayer, value: Scale, exact: bool
) -> ScaledLayer:
    whole = whole_rank(layer)
    if isinstance(value, float):
        return ScaledLayer(places, layer, share_of(whole, value), whole)
    most = whole if isinstance(whole, tuple) else (whole,)
    asked = value if isinstance(value, tuple) else (value,) * len(most)
    if len(asked) != len(most):
        raise RankError(f"scale: rank {value} of {places[0]} must be as its rank {whole}")
    if exact and any(r > n for r, n in zip(asked, most, strict=True)):
        raise RankError(f"scale: rank {value} of {places[0]} is above its rank {whole}")
    ranks = tuple(min(r, n) for r, n in zip(asked, most, strict=True))
    return ScaledLayer(places, layer, ranks if isinstance(whole, tuple) else ranks[0], whole)


def _layers(model: nn.Module) -> dict[FactoredLayer, list[str]]:
    """Factored layers that have terms at all, with their places."""
    owners: dict[FactoredLayer, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactoredLayer) and module.factors.n_params:
            owners.setdefault(module, []).append(name or ROOT)
    return owners


def _is(glob: str, places: list[str]) -> bool:
    return any(name == glob or fnmatchcase(name, glob) for name in places)


def _check(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise ArgumentError(f"scale: {key!r} must be the name of a layer or a glob")
    ranks = value if isinstance(value, tuple) else (value,)
    if isinstance(value, float):
        fits = 0 < value <= 1
    else:
        fits = bool(ranks) and all(type(r) is int and r >= 1 for r in ranks)
    if not fits:
        raise ArgumentError(
            f"scale={value!r} must be a share of the rank in (0, 1] such as 0.5, or a rank such as "
            "16; of several ranks a tuple of ints"
        )
