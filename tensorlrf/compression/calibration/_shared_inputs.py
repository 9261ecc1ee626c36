"""Layers that are fed the very same tensor, as the query, key and value projections of attention.

All that is known of their inputs is then one thing, summed up and taken apart once. The first pass
tells which layers follow one another on the same tensor; whether it is so in the other passes is
seen in each, by what tells one tensor from another: its memory, its place in it, and how often it
has been written to. Only layers called one after the other count, so that nothing is kept for long.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tensorlrf.compression.calibration._dense_layer import dense_layer_at


@dataclass(frozen=True)
class Identity:
    """Of a tensor whose memory it does not keep.

    storage  goes stale with the memory, which no other is then mistaken for
    place    what the tensor makes of it: offset, sizes, strides, dtype and version
    """

    storage: StorageWeakRef
    place: tuple[object, ...]

    @classmethod
    def of(cls, x: Tensor | None) -> Identity | None:
        """None where one of the same values cannot be told: of no tensor, of subclasses, and of
        those that count no writes."""
        if x is None or type(x) is not Tensor or x.is_inference():
            return None
        try:
            storage = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError):  # of layouts without a storage
            return None
        place = (x.storage_offset(), x.shape, x.stride(), x.dtype, x._version)
        return cls(storage, place)


def leaders(
    model: nn.Module, names: list[str], after: Mapping[str, str], *, lags: bool
) -> dict[str, str]:
    """Layer -> the first of those that are fed what it is fed, and alike: what is known of that
    one's inputs, lags included, holds for it.

    after  layer -> the one called just before it, on the very same tensor
    """
    found: dict[str, str] = {}
    for name, before in after.items():
        first = found.get(before, before)
        if name not in names or first not in names:
            continue
        one, other = dense_layer_at(model, name), dense_layer_at(model, first)
        by_inputs = other.taps is None and other.columns <= other.shape[0]
        alike = (one.taps, one.columns, one.device) == (other.taps, other.columns, other.device)
        if alike and (by_inputs or not lags):
            found[name] = first
    return found


@dataclass
class SharedInputs:
    """What the passes make of `leaders`.

    diverged  layers that were fed something else after all
    """

    leaders: Mapping[str, str]
    diverged: set[str] = field(default_factory=set)
    passes: list[PassInputs] = field(default_factory=list)

    def of_pass(self) -> PassInputs:
        """Of one more pass."""
        self.passes.append(PassInputs(self))
        return self.passes[-1]

    def leads(self, name: str) -> bool:
        """Whether others follow this one."""
        return name in self.leaders.values()

    def waiting(self, name: str, done: Container[str]) -> bool:
        """Whether a layer leads or follows others that are still to come."""
        first = self.leaders.get(name, name)
        return any(one == first and other not in done for other, one in self.leaders.items())

    def holds(self, name: str) -> bool:
        """Whether each pass fed a layer what it fed the leader, and called none without the
        other."""
        first = self.leaders[name]
        both = all((name in one.met) == (first in one.met) for one in self.passes)
        return both and name not in self.diverged


class PassInputs:
    """One pass, call by call."""

    def __init__(self, shared: SharedInputs) -> None:
        self.met: set[str] = set()
        self._shared = shared
        self._last: tuple[object, ...] = ()

    def follows(self, name: str, x: Tensor, x0: Tensor | None = None) -> bool:
        """Whether the layer that is called now is one that follows another: then its input is not
        to be added to anything. x0 is that of the given model, if it runs as well."""
        first = self._shared.leaders.get(name)
        if first is None:
            if self._shared.leads(name):
                self._last = (name, Identity.of(x), Identity.of(x0), x0 is None)
                self.met.add(name)
            return False
        identities = (Identity.of(x), Identity.of(x0))
        known = identities[0] is not None and (x0 is None or identities[1] is not None)
        if known and self._last == (first, *identities, x0 is None):
            self.met.add(name)
        else:
            self._shared.diverged.add(name)
        return True
