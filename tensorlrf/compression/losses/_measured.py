"""Losses that are measured: the outputs of the model with one layer cut at a time.

Between the ranks at which it is cut, a layer's loss follows its own spectrum: a power of the share
of its outputs' energy that is left out, of which two cuts tell the exponent and the height
(after LEMS, 2026, which has one cut and the exponent 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.losses._bases import Basis
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.nn.copies import copy_of, replica

SHARES = (0.5, 0.2)
"""Of a layer's parameters that its cuts keep."""

EXPONENTS = (0.5, 2.0)
"""Least and largest: what two noisy losses say beyond that is noise."""


class Wanted(Sequence[Any]):
    """What the given model puts out on batches, made when it is asked for, and kept as far as there
    is room: logits of a language model may be larger than it."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], room: float) -> None:
        self._model, self._batches, self._left = model, batches, room
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: Any) -> Any:
        if k in self._kept:
            return self._kept[k]
        found = call(replica(self._model), self._batches[k])
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(found))
        if size <= self._left:
            self._kept[k] = found
            self._left -= size
        return found


def measured_losses(
    model: nn.Module,
    bases: Mapping[str, Basis],
    energies: Mapping[str, Sequence[float]],
    wanted: Sequence[Any],
    batches: Sequence[Batch],
    loss: OutputLoss,
    group: Alone = ALONE,
) -> Iterator[tuple[str, list[float]]]:
    """(name, the loss at every rank from 0 on to the full), by what the model is wanted to put out.

    energies  of each layer the share of its outputs' energy that lies beyond each rank
    """
    working = copy_of(model)
    for name, basis in bases.items():
        site = dense_layer_at(working, name)
        whole = site.weight.clone()
        a_rank = site.shape[0] + site.groups * site.columns
        ranks = {min(basis.full, max(1, round(s * whole.numel() / a_rank))) for s in SHARES}
        cuts = []
        for rank in sorted(ranks, reverse=True):
            site.write(basis.truncated(site, rank))
            cuts.append((energies[name][rank], loss_of(working, wanted, batches, loss, group)))
        site.write(whole)
        yield name, along(energies[name], cuts)


def loss_of(
    model: nn.Module,
    wanted: Sequence[Any],
    batches: Sequence[Batch],
    loss: OutputLoss,
    group: Alone = ALONE,
) -> float:
    """The loss of a model beside the outputs that are wanted, on the batches of all ranks; infinite
    where it has NaN or Inf."""
    lost = whole = 0.0
    for batch, one in zip(batches, wanted, strict=True):
        part, weight = loss.between(one, call(replica(model), batch), batch)
        lost, whole = lost + part, whole + weight
    lost, whole = group.totals([lost, whole])
    if not math.isfinite(lost):
        return math.inf
    return max(0.0, lost) / whole if whole > 0 else 0.0


def along(energies: Sequence[float], cuts: Sequence[tuple[float, float]]) -> list[float]:
    """Losses at all ranks by the energy left out there, from (energy left out, loss) of one or two
    cuts, the smaller one first. At no loss, or no energy, the exponent is 1."""
    known = [(e, v) for e, v in cuts if e > 0 and 0 < v < math.inf]
    if not known:
        height = max((v for _, v in cuts if v < math.inf), default=0.0)
        return [height * e for e in energies]
    energy, height = known[-1]
    power = 1.0
    if len(known) > 1 and known[0][0] < energy:
        slope = math.log(height / known[0][1]) / math.log(energy / known[0][0])
        power = min(max(slope, EXPONENTS[0]), EXPONENTS[1])
    return [height * (e / energy) ** power if e > 0 else 0.0 for e in energies]
