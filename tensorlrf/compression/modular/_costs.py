"""What errors of the outputs of perceptrons and attentions, and of keys, cost the model: second
moments of the gradients there, all in one unit, so that one structure can be weighed against
another.

With g_t the gradient at position t of what a random cotangent sees of the outputs, an error e of
independent positions costs 1/2 E <e, R e> with R = sum of g_t g_t^T over what the squares of the
cotangent are divided by (Martens & Grosse 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.moments._sums import mirrored
from tensorlrf.compression.losses._curvature import (
    SHRINKAGE,
    GradientMoments,
    unsettled,
    with_room,
)
from tensorlrf.compression.losses._enough import scattered, told
from tensorlrf.compression.losses._gradients import differentiate
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.modular._outlook import Costs
from tensorlrf.compression.modular._structures import Channels, Structure
from tensorlrf.decomposition.shrinkage import shrunk


def felt(structures: Sequence[Structure]) -> list[str]:
    """The layers whose errors are told."""
    names: list[str] = []
    for one in structures:
        names += [one.down] if isinstance(one, Channels) else [one.key, one.out]
    return names


def costs_of(
    model: nn.Module,
    structures: Sequence[Structure],
    data: Calibration,
    loss: OutputLoss,
    draws: torch.Generator,
    advance: Callable[[], None],
) -> Costs:
    """Of all these layers; none where some find no room or are reached by no gradient. One pass
    forth and back a batch, of as many as it takes.

    Raises what the model does where it cannot be differentiated.
    """
    names = felt(structures)
    if len(with_room(model, names, data.room)) < len(names):
        return {}
    sums = {name: GradientMoments.of(dense_layer_at(model, name)) for name in names}
    divided = dict.fromkeys(names, 0.0)
    samples = 0
    for n, batch in enumerate(scattered(data.fitted)):
        open_ = unsettled(sums) if told(n, samples) else sums
        if not open_:
            break
        weight = differentiate(model, open_, batch, loss, draws)
        samples += batch.samples
        for name in open_:
            divided[name] += weight
        advance()
    found = {}
    for name, moments in sums.items():
        whole = mirrored(moments.products[0]).double() / max(divided[name], 1e-30)
        diagonal = whole.diagonal()
        if not (torch.isfinite(diagonal).all() and diagonal.sum() > 0):
            return {}
        found[name] = shrunk(whole, SHRINKAGE)
    return found
