"""What of a model is a perceptron or an attention: by what its layers are called with, and by what
it does.

Nothing is taken by the name of a class. The order of calls and the sizes of layers suggest what
something may be; it is that where the module around it, on the inputs of the first batch, goes on
to give the same with a part of the channels or heads cut out as with that part made zero, and with
heads in another basis. Modules alike are asked once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.modular._calls import Call, arguments_of, linear_calls
from tensorlrf.compression.modular._channels import Kept, narrow
from tensorlrf.compression.modular._heads import (
    HeadMaps,
    narrow_heads,
    selection,
)
from tensorlrf.compression.modular._structures import (
    HALVES,
    NEIGHBOURS,
    Channels,
    Heads,
    Structure,
    common,
    pair_entries,
)
from tensorlrf.nn.copies import copy_of

SAME = 1e-4
"""By which outputs that are the same may differ, relative: sums in float32 in another order, which
some modules insist on."""


def recognised(
    model: nn.Module, names: Collection[str], batch: Batch
) -> tuple[list[Structure], dict[str, str]]:
    """The structures made of the named layers, each layer in one of them; and of the others why
    they are in none."""
    calls = linear_calls(model, list(names), batch)
    guesses = _guesses(model, calls)
    owners = {owner for group in guesses for owner in (group[0].owner, *_sizes(group))}
    arguments = arguments_of(model, owners, batch)
    known: dict[object, Structure | None] = {}
    found: list[Structure] = []
    taken: set[str] = set()
    for group in guesses:
        if not taken.isdisjoint(group[0].linears):
            continue
        signature = _signature(model, group)
        if signature not in known:
            known[signature] = _proved(model, group, arguments)
        like = known[signature]
        if like is None:
            continue
        own = group[0].owner
        made = next(s for s in group if _alike(s.at(own), like.at(like.owner)))
        if isinstance(made, Heads) and isinstance(like, Heads):
            made = replace(made, pairs=like.pairs, table=like.table, folds=like.folds)
        found.append(made)
        taken.update(made.linears)
    called = {one.name for one in calls}
    reasons = {
        name: UNKNOWN if name in called else UNREACHED for name in names if name not in taken
    }
    return found, reasons


UNKNOWN = (
    "is part of no perceptron or attention whose structure is known: cut down or in another basis, "
    "the module around it gives something else"
)
UNREACHED = "no calibration input reaches it"

Group = list[Structure]
"""What some layers may be, all of one kind."""


# ---- what may be ------------------------------------------------------------------------------


def _guesses(model: nn.Module, calls: Sequence[Call]) -> list[Group]:
    """What each layer may be the last one of, attentions first."""
    groups: dict[tuple[str, ...], Group] = {}
    for t, last in enumerate(calls):
        before = calls[max(0, t - 3) : t]
        for group in (_attentions(model, before, last), _perceptrons(model, before, last)):
            if group:
                groups.setdefault((group[0].kind, *sorted(group[0].linears)), group)
    ordered = list(groups.values())
    return sorted(ordered, key=lambda group: isinstance(group[0], Channels))


def _perceptrons(model: nn.Module, before: Sequence[Call], last: Call) -> Group:
    """A gate and what it gates, fed the very same; or the one layer before."""
    n = dense_layer_at(model, last.name).shape[1]
    one = before[-1].name if before else last.name
    if one != last.name and dense_layer_at(model, one).shape[0] == 2 * n:
        return [Channels((one,), last.name, halves=True)]
    ups = [call for call in before if call.name != last.name]
    ups = [call for call in ups[-2:] if dense_layer_at(model, call.name).shape[0] == n]
    if not ups or ups[-1] is not before[-1]:
        return []
    if len(ups) == 2 and ups[0].source is not None and ups[0].source == ups[1].source:
        names = tuple(call.name for call in ups)
        return [Channels(names, last.name)] if len(set(names)) == 2 else []
    return [Channels((ups[-1].name,), last.name)]


def _attentions(model: nn.Module, before: Sequence[Call], last: Call) -> Group:
    """Three layers before, or one, whose outputs are queries, keys and values."""
    out = dense_layer_at(model, last.name)
    found: Group = []
    threes = [one.name for one in before]
    if len({*threes, last.name}) == 4:
        for value in reversed(threes):
            q, k = (name for name in threes if name != value)
            for query, key in ((q, k), (k, q)):
                found += _cut_into_heads(model, query, key, value, last.name)
    one = threes[-1] if threes else last.name
    if one != last.name and dense_layer_at(model, one).shape[0] > out.shape[1]:
        found += _cut_into_heads(model, one, one, one, last.name)
    return found


def _cut_into_heads(
    model: nn.Module, query: str, key: str, value: str, out: str
) -> Iterator[Heads]:
    inner = dense_layer_at(model, out).shape[1]
    rows = [dense_layer_at(model, name).shape[0] for name in (query, key, value)]
    if query == key:
        rows = [inner, (rows[0] - inner) // 2, (rows[0] - inner + 1) // 2]
    if rows[0] != inner or rows[1] != rows[2] or not 0 < rows[1] <= inner:
        return
    sizes = common([name.rpartition(".")[0] or ROOT for name in (query, key, value)])
    own = {
        name: n
        for name, n in vars(module_at(model, sizes)).items()
        if type(n) is int and n > 0 and _is_size(name)
    }
    for width in sorted(set(own.values())):
        if width < 2 or rows[0] % width or rows[1] % width:
            continue
        queries, keys = rows[0] // width, rows[1] // width
        if queries % keys:
            continue
        multiples = {width * n: n for n in (queries + 2 * keys, queries, keys, 1)}
        numbers = {name: multiples[n] for name, n in own.items() if n in multiples}
        yield Heads(query, key, value, out, sizes, width, queries, keys, numbers)


def _is_size(name: str) -> bool:
    """Whether an attribute of that name is a size, and not a count."""
    words = name.lower().split("_")
    return not {"num", "n", "max"} & set(words) and any(w in name for w in ("dim", "size"))


# ---- what is ----------------------------------------------------------------------------------


def _signature(model: nn.Module, group: Group) -> object:
    """What modules alike have in common."""
    first = group[0]
    own = first.owner
    shapes = tuple(dense_layer_at(model, name).shape for name in first.linears)
    biases = tuple(dense_layer_at(model, name).module.bias is None for name in first.linears)
    kinds = tuple(type(module_at(model, name)) for name in (own, *_sizes(group)))
    return kinds, shapes, biases, tuple(_key(one.at(own)) for one in group)


def _sizes(group: Group) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.sizes for one in group if isinstance(one, Heads)))


def _key(one: Structure) -> Structure:
    """What can be said of it before it is asked."""
    if isinstance(one, Channels):
        return one
    return replace(one, pairs="", table="", folds=False)


def _alike(one: Structure, other: Structure) -> bool:
    return _key(one) == _key(other)


def _proved(model: nn.Module, group: Group, arguments: Mapping[str, Batch]) -> Structure | None:
    """The first of these that its owner is seen to be."""
    owner = group[0].owner
    if owner not in arguments:
        return None
    proof = _Proof(module_at(model, owner), arguments[owner])
    for one in group:
        own = one.at(owner)
        if isinstance(own, Channels):
            if proof.of_channels(own):
                return one
            continue
        assert isinstance(one, Heads)
        turned = one.sizes in arguments and _has_tables(arguments[one.sizes], one.width)
        for variant in _variants(own, turned=turned):
            if proof.of_heads(variant):
                return replace(one, pairs=variant.pairs, table=variant.table, folds=variant.folds)
    return None


def _has_tables(batch: Batch, width: int) -> bool:
    """Whether among the arguments are tables of a rotary embedding."""
    for value in (*batch.args, *batch.kwargs.values()):
        if isinstance(value, tuple) and len(value) == 2:
            a, b = value
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                return bool(a.shape == b.shape and a.ndim > 1 and a.shape[-1] == width)
    return False


def _variants(heads: Heads, *, turned: bool) -> Iterator[Heads]:
    for folds in (False, True):
        if not turned:
            yield replace(heads, folds=folds)
        elif heads.width % 2 == 0:
            for pairs, table in itertools.product((HALVES, NEIGHBOURS), repeat=2):
                yield replace(heads, pairs=pairs, table=table, folds=folds)


class _Proof:
    """Asks a module what it gives on the arguments of a call when parts of it are changed."""

    def __init__(self, owner: nn.Module, batch: Batch) -> None:
        self.owner = copy_of(owner).double().eval()
        args, kwargs = pytree.tree_map(_doubled, (batch.args, dict(batch.kwargs)))
        self.batch = Batch(args, kwargs, 0)
        self.draws = torch.Generator().manual_seed(0)
        self.whole = self._given(self.owner)

    def of_channels(self, channels: Channels) -> bool:
        """Whether channels left out are channels made zero."""
        down = dense_layer_at(self.owner, channels.down)
        n = down.shape[1]
        if n < 2:
            return False
        drawn = torch.randperm(n, device="cpu", generator=self.draws)
        left = drawn[: n - n // 4 - 1].sort().values
        weight = down.weight[:, left.to(down.device)]
        small, zeroed = copy_of(self.owner), copy_of(self.owner)
        narrow(small, channels, Kept(left, weight, None, 0.0))
        dense_layer_at(zeroed, channels.down).write(_only(down.weight, left))
        return self._same(small, self._given(zeroed), other_than=self.whole)

    def of_heads(self, heads: Heads) -> bool:
        """Whether heads are what these layers make, numbers left out of them are numbers made zero,
        and what queries and keys, or values and the layer behind, make of one another is all that
        counts."""
        try:
            maps, zeros = self._cut(heads)
            small, zeroed = copy_of(self.owner), copy_of(self.owner)
            narrow_heads(small, heads, maps)
            narrow_heads(zeroed, heads, zeros)
            turned = copy_of(self.owner)
            narrow_heads(turned, heads, self._another_basis(heads))
        except (AttributeError, RuntimeError, ValueError):  # sizes that do not fit
            return False
        return self._same(small, self._given(zeroed), other_than=self.whole) and self._same(
            turned, self.whole
        )

    def _cut(self, heads: Heads) -> tuple[HeadMaps, HeadMaps]:
        """Without some numbers of each head, and with them zero."""
        d, like = heads.width, dense_layer_at(self.owner, heads.out).weight
        if heads.pairs:
            pairs: tuple[int, ...] = tuple(p for p in range(d // 2) if p != d // 4)
            inside = pair_entries(pairs, d, heads.pairs)
        else:
            pairs, inside = (), list(range(d - max(1, d // 4)))
        take = selection(inside, heads, like)
        if not len(inside):
            raise ValueError("nothing is left")
        zero = take.mT @ take
        scale = math.sqrt(len(inside) / d) if heads.folds else 1.0
        maps = HeadMaps(scale * take, take, take, take.mT, pairs)
        return maps, HeadMaps(zero, zero, zero, zero)

    def _another_basis(self, heads: Heads) -> HeadMaps:
        d, like = heads.width, dense_layer_at(self.owner, heads.out).weight
        a, b = (self._basis(heads.keys, d).to(like.device) for _ in range(2))
        if not heads.pairs:
            return HeadMaps(torch.linalg.inv(a).mT, a, b, torch.linalg.inv(b))
        pairs = tuple(torch.randperm(d // 2, device="cpu", generator=self.draws).tolist())
        take = selection(pair_entries(pairs, d, heads.pairs), heads, like)
        return HeadMaps(take, take, b, torch.linalg.inv(b), pairs)

    def _basis(self, count: int, d: int) -> Tensor:
        """(count, d, d), well conditioned and far from orthogonal."""
        drawn = torch.randn(2, count, d, d, dtype=torch.float64, device="cpu", generator=self.draws)
        left, right = torch.linalg.qr(drawn)[0]
        sizes = torch.linspace(0.5, 2.0, d, dtype=torch.float64, device="cpu")
        basis: Tensor = (left * sizes) @ right
        return basis

    def _given(self, owner: nn.Module) -> list[Tensor] | None:
        """What it gives; None where it fails."""
        try:
            return list(tensors_of(call(owner, self.batch)))
        except ValueError:  # ours of any error inside
            return None

    def _same(
        self, owner: nn.Module, wanted: list[Tensor] | None, other_than: list[Tensor] | None = None
    ) -> bool:
        if wanted is None or (other_than is not None and _near(wanted, other_than)):
            return False
        given = self._given(owner)
        return given is not None and _near(given, wanted)


def _near(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether all tensors are the same up to rounding."""
    if not given or [t.shape for t in given] != [t.shape for t in wanted]:
        return False
    return all(
        bool((a - b).abs().max() <= SAME * b.abs().max())
        for a, b in zip(given, wanted, strict=True)
        if b.numel()
    )


def _only(weight: Tensor, columns: Tensor) -> Tensor:
    """The weight with zeros in all other columns."""
    kept = torch.zeros_like(weight)
    kept[:, columns] = weight[:, columns]
    return kept


def _doubled(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value
