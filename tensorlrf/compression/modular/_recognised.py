"""What of a model is a perceptron, a bottleneck or an attention: by what its layers are called
with, and by what it does.

Nothing is taken by the name of a class. The order of calls and the sizes of layers suggest what
something may be; it is that where the module around it, on the inputs of the first batch, goes on
to give the same with a part of the channels or heads cut out as with that part made zero, and with
heads in another basis. Perceptrons and attentions alike are asked once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.modular._bottlenecks import Bottlenecks
from tensorlrf.compression.modular._calls import (
    Call,
    arguments_of,
    called_with_tensors,
    linear_calls,
)
from tensorlrf.compression.modular._proof import Proof, acts_on_each, few_of
from tensorlrf.compression.modular._structures import (
    HALVES,
    NEIGHBOURS,
    Channels,
    Heads,
    Structure,
    common,
)


def recognised(
    model: nn.Module, names: Collection[str], batch: Batch, left: Collection[str] = ()
) -> tuple[list[Structure], dict[str, str]]:
    """The structures made of the named layers, each layer in one of them; and of the others why
    they are in none. Modules that are `left` stay as they are."""
    calls = linear_calls(model, list(names), batch)
    order = called_with_tensors(model, batch)
    bottlenecks = Bottlenecks(model, set(names), order, set(left))
    asked = _Asked.of(model, _guesses(model, calls), bottlenecks.guesses(), batch)
    found: list[Structure] = []
    taken: set[str] = set()
    for groups, ask in (
        (asked.attentions, asked.alike),
        (asked.bottlenecks, asked.alone),
        (asked.perceptrons, asked.alike),
    ):
        for group in groups:
            free = [one for one in group if taken.isdisjoint(one.layers)]
            made = ask(free) if free else None
            if made is not None:
                found.append(made)
                taken.update(made.layers)
    called = {*order, *(one.name for one in calls)}
    reasons = {
        name: bottlenecks.reasons.get(name, UNKNOWN) if name in called else UNREACHED
        for name in names
        if name not in taken
    }
    return found, reasons


UNKNOWN = (
    "is part of no perceptron, attention or bottleneck whose structure is known: cut down or in "
    "another basis, the module around it gives something else"
)
UNREACHED = "no calibration input reaches it"

Group = list[Structure]
"""What some layers may be, all of one kind."""


# ---- what may be ------------------------------------------------------------------------------


def _guesses(model: nn.Module, calls: Sequence[Call]) -> list[Group]:
    """What each linear layer may be the last one of."""
    groups: dict[tuple[str, ...], Group] = {}
    for t, last in enumerate(calls):
        before = calls[max(0, t - 3) : t]
        for group in (_attentions(model, before, last), _perceptrons(model, before, last)):
            if group:
                groups.setdefault((group[0].kind, *sorted(group[0].layers)), group)
    return list(groups.values())


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


@dataclass
class _Asked:
    """What a model may have, and a model that is asked whether it has.

    arguments  of a call of each module around one of these
    known      what modules alike were seen to be
    """

    model: nn.Module
    attentions: list[Group]
    perceptrons: list[Group]
    bottlenecks: list[Group]
    arguments: Mapping[str, Batch]
    known: dict[object, Structure | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        guesses: Sequence[Group],
        bottlenecks: Sequence[Sequence[Channels]],
        batch: Batch,
    ) -> _Asked:
        """With one pass for the arguments."""
        owners = {owner for group in guesses for owner in (group[0].owner, *_sizes(group))}
        for one in itertools.chain(*bottlenecks):
            owners.update(one.norms, _around(one.owner))
        attentions, perceptrons = (
            [group for group in guesses if isinstance(group[0], kind)] for kind in (Heads, Channels)
        )
        groups: list[Group] = [list(group) for group in bottlenecks]
        return cls(
            model, attentions, perceptrons, groups, arguments_of(model, owners, batch)
        )  # fmt: skip

    def alike(self, group: Group) -> Structure | None:
        """What these layers are; modules alike are asked once."""
        signature = _signature(self.model, group)
        if signature not in self.known:
            self.known[signature] = _proved(self.model, group, self.arguments)
        like = self.known[signature]
        if like is None:
            return None
        own = group[0].owner
        made = next(s for s in group if _alike(s.at(own), like.at(like.owner)))
        if isinstance(made, Heads) and isinstance(like, Heads):
            made = replace(made, pairs=like.pairs, table=like.table, folds=like.folds)
        return made

    def alone(self, group: Group) -> Structure | None:
        """What these layers are, asked of the innermost module around them that is called: blocks
        of one class may add to what they get, or not."""
        for one in group:
            assert isinstance(one, Channels)
            n, norms = one.most(self.model), [module_at(self.model, name) for name in one.norms]
            owner = next((name for name in _around(one.owner) if name in self.arguments), None)
            if owner is None or not all(
                acts_on_each(norm, self.arguments[name], n)
                for norm, name in zip(norms, one.norms, strict=True)
            ):
                continue
            module, batch = module_at(self.model, owner), self.arguments[owner]
            proof = Proof(module, few_of(batch))
            proof = Proof(module, batch) if proof.whole is None else proof
            if proof.of_channels(one.at(owner)):
                return one
        return None


def _around(owner: str) -> list[str]:
    """A module and all that it is in, the innermost first."""
    parts = [] if owner == ROOT else owner.split(".")
    return [".".join(parts[:k]) or ROOT for k in range(len(parts), -1, -1)]


def _signature(model: nn.Module, group: Group) -> object:
    """What modules alike have in common."""
    first = group[0]
    own = first.owner
    shapes = tuple(dense_layer_at(model, name).shape for name in first.layers)
    biases = tuple(dense_layer_at(model, name).module.bias is None for name in first.layers)
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
    proof = Proof(module_at(model, owner), arguments[owner])
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
