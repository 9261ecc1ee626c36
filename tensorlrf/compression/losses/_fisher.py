"""Predicted losses of all truncations of all layers, from one backward pass a batch.

A cut at rank r leaves out the parts of a layer's outputs y along u_k, k > r, which v_k measures
(of orthonormal directions u_k itself). To second order it costs

    L(r) = 1/2 sum over k > r of E c_k^2,   c_k = sum over positions of (g . u_k)(y . v_k),

with g the gradient at y of what a random cotangent sees of the outputs: the quadratic form of the
Gauss-Newton matrix, in which what the positions of one sample lose adds up before it is squared.
Mixed terms of two directions are left out. They have no mean where gradients do not depend on
outputs, whose parts along the u_k are uncorrelated; what a few samples say of them is noise, for a
sum over many k has but one square a sample. Where one position is a sample this is the curvature
in Kronecker factors, without its factorisation (Martens & Grosse 2015); where outputs are pooled
over positions, errors that agree are not lost in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.losses._bases import Basis, OutputMoments, rows_of
from tensorlrf.compression.losses._curvature import GradientMoments, over_ranks, unsettled
from tensorlrf.compression.losses._enough import LEAST, told, turns
from tensorlrf.compression.losses._gradients import (
    OwnCotangents,
    Together,
    Watcher,
    differentiate,
)
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica

Advance = Callable[[], None]


def bases_of(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    advance: Advance,
    *,
    every: bool = False,
    group: Alone = ALONE,
) -> dict[str, Basis]:
    """The directions of the outputs of each layer that the batches reach, one pass a batch, of as
    many as they need, or of every one; of all ranks of a group together.

    Raises ArgumentError, naming the layer, for outputs with NaN or Inf.
    """
    moments = {name: OutputMoments(dense_layer_at(model, name)) for name in names}
    for n, turn in enumerate(turns(batches, group), 1):
        if turn.batch is not None:
            _look(model, moments, turn.batch)
        advance()
        if not every and not n % LEAST and _settled(moments, group):
            break
    for sums in moments.values():
        sums.over(group)
    found = {}
    for name in names:
        if moments[name].count:
            try:
                found[name] = moments.pop(name).basis()
            except FloatingPointError:
                raise ArgumentError(
                    f"calibration: the outputs of {name} contain NaN or Inf; look at the batches, "
                    f"and at the layers before it, or leave it out with skip=[{name!r}]"
                ) from None
    return found


def _look(model: nn.Module, moments: Mapping[str, OutputMoments], batch: Batch) -> None:
    """One pass, of which these take what their layers put out."""
    own = replica(model)
    handles = [_watched(dense_layer_at(own, name), one, batch) for name, one in moments.items()]
    try:
        call(own, batch)
    finally:
        for handle in handles:
            handle.remove()


def _settled(moments: Mapping[str, OutputMoments], group: Alone) -> bool:
    """Whether more rows would tell little more of any."""
    rows = group.totals([one.count for one in moments.values()])
    return all(one.is_enough(n) for one, n in zip(moments.values(), rows, strict=True))


def _watched(site: DenseLayer, moments: OutputMoments, batch: Batch) -> Any:
    """A hook on a layer that adds what it puts out, or takes in, to its moments."""
    hook = partial(_add_call, site, moments, batch)
    return site.module.register_forward_hook(hook, with_kwargs=True)


def _add_call(
    site: DenseLayer,
    moments: OutputMoments,
    batch: Batch,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    y: Any,
) -> None:
    x = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not site.fits(x):
        return
    with without_autocast():
        if moments.of_inputs:
            rows = batch.tokens_of(x).reshape(-1, 1, x.shape[-1])
        else:
            y = without_bias(site, y)
            y = batch.tokens_of(y) if site.taps is None else y
            found = rows_of(site, y, 1)
            assert found is not None
            rows = found[0]
        moments.add(rows)


def without_bias(site: DenseLayer, y: Tensor) -> Tensor:
    """Outputs as the weight alone makes them, in float32 at the least."""
    y = y.detach()
    y = y if y.dtype == torch.float64 else y.float()
    bias = None if site.is_table else site.module.bias
    if bias is None:
        return y
    axes = 0 if site.taps is None else site.taps.axes
    unbiased: Tensor = y - bias.detach().to(y.dtype).reshape(-1, *[1] * axes)
    return unbiased


def fisher_losses(
    model: nn.Module,
    bases: Mapping[str, Basis],
    batches: Sequence[Batch],
    loss: OutputLoss,
    draws: torch.Generator,
    advance: Advance,
    gradients: Mapping[str, GradientMoments] = MappingProxyType({}),
    tied: Mapping[str, str] = MappingProxyType({}),
    group: Alone = ALONE,
) -> dict[str, list[float]]:
    """Name -> the loss at every rank from 0 on to the full, of the layers that gradients reach, by
    as many of the batches as that needs; `gradients` are added up in the same passes.

    tied  what else runs on the weight of one of the layers, an embedding -> that one

    Raises what the model does where it cannot be differentiated.
    """
    sums: dict[str, Tensor] = {}
    whole, samples, failed = 0.0, 0, None
    open_, own = gradients, OwnCotangents(draws, group)
    for n, turn in enumerate(turns(batches, group)):
        known, batch = told(n, samples), turn.batch
        if known and (not n % LEAST or not gradients):
            open_ = unsettled(gradients, group)
        if known and not open_:
            break
        samples += turn.samples
        if batch is None or failed is not None:
            continue
        parts: dict[str, Tensor] = {}
        watchers: dict[str, Watcher] = dict(open_)
        for name, basis in () if known else bases.items():
            felt = _Felt(name, basis, batch.samples, parts)
            watchers[name] = Together(felt, open_[name]) if name in open_ else felt
        for other, name in () if known else tied.items():
            if name in bases:
                watchers[other] = _FeltByTied(name, bases[name], batch.samples, parts)
        try:
            count = differentiate(model, watchers, batch, loss, own.of(batch))
        except (RuntimeError, ArgumentError) as error:
            failed = error
            if group.size == 1:
                break
            continue
        whole += 0 if known else count
        for name, c in parts.items():  # (samples, k)
            squares = c.double().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares
        advance()
    group.fail_together(failed)
    over_ranks(gradients, group)
    sums, whole = _over_ranks(sums, whole, bases, group)
    tails = {name: c.flip(-1).cumsum(-1).flip(-1) for name, c in sums.items()}
    return {
        name: [*(0.5 * c / max(whole, math.ulp(0.0))).tolist(), 0.0] for name, c in tails.items()
    }


def _over_ranks(
    sums: dict[str, Tensor], whole: float, bases: Mapping[str, Basis], group: Alone
) -> tuple[dict[str, Tensor], float]:
    """The sums of all ranks, of the layers that gradients reach on any of them."""
    *reached, whole = group.totals([*(float(name in sums) for name in bases), whole])
    found: dict[str, Tensor] = {}
    for (name, basis), n in zip(bases.items(), reached, strict=True):
        if n:
            found[name] = sums.get(name, torch.zeros_like(basis.energies[0]))
    group.total(list(found.values()))
    return found, whole


@dataclass(frozen=True)
class _Felt:
    """What the cotangent feels of one layer's outputs, along each direction.

    found  name -> c_k of every sample, to which this one adds its own
    """

    name: str
    basis: Basis
    samples: int
    found: dict[str, Tensor]

    def forward(
        self, site: DenseLayer, batch: Batch, x: Any, y: Tensor
    ) -> Callable[[Tensor], None]:
        """After a call of the layer."""
        seen = self._along(site, without_bias(site, y), self.basis.measures)
        return partial(self.backward, site, seen)

    def backward(self, site: DenseLayer, seen: Tensor, g: Tensor) -> None:
        """With the gradient at its output."""
        c = (seen * self._along(site, g.detach(), self.basis.vectors)).sum((1, 2))
        self.found[self.name] = self.found[self.name] + c if self.name in self.found else c

    def _along(self, site: DenseLayer, y: Tensor, directions: Tensor) -> Tensor:
        """Of outputs the products with directions: (samples, positions, groups, k)."""
        y = y.to(directions.dtype)
        rows = rows_of(site, y, self.samples)
        if rows is None:  # as one sample
            rows = rows_of(site, y, 1)
        assert rows is not None
        return torch.einsum("stgm,gmk->stgk", rows, directions)


@dataclass(frozen=True)
class _FeltByTied(_Felt):
    """The same of what is cut with the layer: another embedding, or a head y = W h. That leaves out
    the parts of h along u_k, and what it feels of them is W^T g."""

    def forward(
        self, site: DenseLayer, batch: Batch, x: Any, y: Tensor
    ) -> Callable[[Tensor], None]:
        if site.is_table:
            return super().forward(site, batch, x, y)
        h = x.detach()
        seen = self._along(site, h if h.dtype == torch.float64 else h.float(), self.basis.measures)
        return partial(self.backward, site, seen)

    def backward(self, site: DenseLayer, seen: Tensor, g: Tensor) -> None:
        super().backward(site, seen, g if site.is_table else g.detach() @ site.weight.to(g.dtype))
