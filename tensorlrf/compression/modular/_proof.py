"""Whether a module is what its calls suggest: by what it gives on the inputs of a call when parts
of it are cut out, made zero, or written in another basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration._beside import first_input
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.modular._channels import Kept, narrow
from tensorlrf.compression.modular._heads import HeadMaps, narrow_heads, selection
from tensorlrf.compression.modular._structures import Channels, Heads, pair_entries
from tensorlrf.nn.copies import copy_of

SAME = 1e-4
"""By which outputs that are the same may differ, relative: sums in float32 in another order, which
some modules insist on."""

FAR, EPS = 100, torch.finfo(torch.float64).eps
"""How many times larger an effect is to be than what it is not told from."""

FEW = 2
"""Samples that tell as much as all of them."""


class Proof:
    """Asks a module what it gives on the arguments of a call when parts of it are changed."""

    def __init__(self, owner: nn.Module, batch: Batch) -> None:
        self.owner = copy_of(owner).double().eval()
        args, kwargs = pytree.tree_map(_doubled, (batch.args, dict(batch.kwargs)))
        self.batch = Batch(args, kwargs, 0)
        self.draws = torch.Generator().manual_seed(0)

    @cached_property
    def whole(self) -> list[Tensor] | None:
        """What it gives as it is."""
        return self._given(self.owner)

    def of_channels(self, channels: Channels) -> bool:
        """Whether channels left out are channels made zero."""
        n = channels.most(self.owner)
        if n < 2:
            return False
        drawn = torch.randperm(n, device="cpu", generator=self.draws)
        left = drawn[: n - n // 4 - 1].sort().values
        small, zeroed = copy_of(self.owner), copy_of(self.owner)
        readers = {}
        for name in channels.readers:
            layer = dense_layer_at(zeroed, name)
            readers[name] = Kept(layer.weight[:, left.to(layer.device)], None, 0.0)
            layer.write(_only(layer.weight, left))
        try:
            narrow(small, channels, left, readers)
        except (AttributeError, IndexError, RuntimeError):  # sizes that do not fit
            return False
        return self._as(small, zeroed)

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
        return self._as(small, zeroed) and self._as(turned)

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

    def _as(self, changed: nn.Module, other: nn.Module | None = None) -> bool:
        """Whether it gives what another one does, and that is far from what the module itself
        gives; without another one whether it gives what the module does."""
        given = self._given(changed)
        if given is None or self.whole is None:
            return False
        if other is None:
            return _near(given, self.whole)
        wanted = self._given(other)
        return wanted is not None and _near(given, wanted) and _tells(given, wanted, self.whole)


def few_of(batch: Batch) -> Batch:
    """The first samples of the arguments of a call, where these lie along the first dimension of
    all tensors."""
    values, spec = pytree.tree_flatten((batch.args, dict(batch.kwargs)))
    tensors = [value for value in values if isinstance(value, Tensor)]
    if any(t.ndim == 0 or t.shape[0] != batch.samples for t in tensors):
        return batch
    args, kwargs = pytree.tree_unflatten(
        [value[:FEW] if isinstance(value, Tensor) else value for value in values], spec
    )
    return Batch(args, kwargs, batch.index)


def _near(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether all tensors are the same up to rounding."""
    if not given or [t.shape for t in given] != [t.shape for t in wanted]:
        return False
    return all(
        bool((a - b).abs().max() <= SAME * b.abs().max())
        for a, b in zip(given, wanted, strict=True)
        if b.numel()
    )


def _tells(given: Sequence[Tensor], wanted: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
    """Whether two changes of a module differ by far less than each does from the module, in any of
    its outputs: a block may have little to say beside what it adds to."""
    return any(
        bool((b - c).abs().max() > FAR * max((a - b).abs().max(), EPS * c.abs().max()))
        for a, b, c in zip(given, wanted, whole, strict=True)
        if b.shape == c.shape and b.numel()
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


def acts_on_each(module: nn.Module, batch: Batch, n: int) -> bool:
    """Whether what a module makes of each of n channels has nothing of the others in it, on the
    arguments of a call: where half of them are zero the other half stays what it was."""
    x = first_input(batch.args, batch.kwargs)
    if x is None or len(batch.args) + len(batch.kwargs) != 1:
        return False
    own, half = copy_of(module).double().eval(), n // 2
    x = x[:FEW].double()
    y = _called(own, x)
    for dim in (dim for dim, size in enumerate(x.shape) if size == n):
        other = x.clone()
        other.narrow(dim, half, n - half).zero_()
        z = _called(own, other)
        if y is not None and z is not None and y.shape == z.shape == x.shape:
            left = [t.narrow(dim, 0, half) for t in (y, z)]
            if torch.equal(*left):
                return True
    return False


def _called(module: nn.Module, x: Tensor) -> Tensor | None:
    try:
        return next(tensors_of(call(module, Batch((x,), {}, 0))), None)
    except ValueError:  # ours of any error inside
        return None
