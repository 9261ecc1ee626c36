"""What is left of modules that became smaller, fitted in order to what the given model has there.

All that follows a part which was made smaller sees other inputs than in the given model. With x'
what reaches a layer of the smaller model, and y0 what the given one has in place of its outputs,

    W' = argmin E|y0 - W' x' - b'|^2 = W + E[e x'^T] E[x' x'^T]^-1, e = y0 - W x' - b

about the means where there is a bias. Of a layer behind channels or heads y0 are the outputs that
the layer has in the given model, of all channels or of whole heads; of one that lost some outputs
y0 are those that it kept, from the inputs of the given model. So what the smaller model has lost on
the way is made good where x' still tells of it (Zhang et al. 2016, the asymmetric reconstruction).
Where a block adds r to the outputs of a layer, y0 + r0 - r' takes the place of y0: what the sum is
behind already is made good with the rest.

E[x' x'^T] has a ridge, chosen on inputs held out; where none is better a layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._calibrate import calibrated
from tensorlrf.compression.calibration._correction import RIDGE, corrected
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import (
    Calibration,
    LayerMoments,
    check_statistics,
)
from tensorlrf.compression.calibration._statistics import OutputError
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.modular._residuals import residuals
from tensorlrf.compression.modular._structures import Channels, Structure

RIDGES = (RIDGE / 10, RIDGE, 10 * RIDGE, 100 * RIDGE)
"""Of the mean eigenvalue of E[x' x'^T]; `RIDGE` where no inputs are held out to choose by."""


@dataclass(frozen=True)
class Refitted:
    """Of one layer.

    error    of its outputs, without bias that both models have, relative, root mean square: on
             inputs held out, where there are any
    held     whether there are
    samples  that it was fitted to
    """

    error: float
    held: bool
    samples: int


def refit(
    given: nn.Module,
    small: nn.Module,
    structures: Sequence[Structure],
    data: Calibration,
    advance: Callable[[str], None],
    *,
    rerun: bool = False,
) -> dict[str, Refitted]:
    """Fit the layers of the structures of `small`, a copy of the given model in which some were cut
    down, in place and in order; those that have other weights now.

    Raises ArgumentError where the two models take another course, or inputs have NaN or Inf.
    """
    names = [name for one in structures for name in one.fitted]
    last = [one.down if isinstance(one, Channels) else one.out for one in structures]
    beside = residuals(given, last, data.batches[0])
    wanted = {name: _wanted(given, name, beside) for name in last}
    data = replace(data, wanted=wanted, beside=beside)
    trace = record(small, names, data.batches[0])
    found: dict[str, Refitted] = {}
    with closing(calibrated(small, names, trace, data, rerun=rerun, original=given)) as parts:
        for layers in parts:
            for name, moments in layers:
                done = _refit(given, small, name, moments, wanted)
                found.update({} if done is None else {name: done})
                advance(name)
    return found


def _wanted(given: nn.Module, name: str, beside: Mapping[str, str]) -> Tensor:
    """W of the given model, (m, n); where something is added to its outputs [W I] (m, n + m)."""
    weight = dense_layer_at(given, name).weight.flatten(1)
    if name not in beside:
        return weight
    eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return torch.cat([weight, eye], dim=1)


def _refit(
    given: nn.Module,
    small: nn.Module,
    name: str,
    moments: LayerMoments,
    wanted: Mapping[str, Tensor],
) -> Refitted | None:
    """Of one layer, in place; None where it stays as it is."""
    fit, held = moments.taken()
    for seen in (fit, held):
        if seen is not None:
            check_statistics(name, seen)
    (own,) = fit  # none of these layers has more groups than one
    if own.lag is None or not own.known:
        return None
    layer = dense_layer_at(small, name)
    weight, bias = layer.weight, layer.module.bias
    known, start, shift = own, None, None
    if bias is not None:
        # What y0 has by itself; moments know no bias.
        start = dense_layer_at(given if name in wanted else small, name).module.bias.detach()
        start, shift = start.to(torch.float64), bias.detach() - start
        known = own.centred()
    judge = OutputError([weight], held or [own.shrunk(own.warranted)])
    best, error = None, judge.of([weight], [shift])
    for ridge in RIDGES if held else (RIDGE,):
        assert known.lag is not None
        tried = corrected(weight, known.gram, known.lag, ridge)
        shift = None if bias is None else own.shift(weight - tried)
        lost = judge.of([tried], [shift])
        if lost < error:
            best, error = (tried, shift), lost
    if best is None:
        return None
    layer.write(best[0])
    if start is not None and best[1] is not None:
        with torch.no_grad():
            bias.copy_(start + best[1])
    return Refitted(error, bool(held), own.count)
