"""What errors of the outputs of modules, and of keys, cost the model: second moments of the
gradients there, all in one unit, so that one structure can be weighed against another.

With g_t the gradient at position t of what a random cotangent sees of the outputs, an error e of
independent positions costs 1/2 E <e, R e> with R = sum of g_t g_t^T over what the squares of the
cotangent are divided by (Martens & Grosse 2015). Of gradients that the positions of a sample share,
as where outputs are pooled, errors add up before they are squared (Eschenhagen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.calibration.moments._sums import mirrored
from tensorlrf.compression.losses._curvature import (
    SHRINKAGE,
    GradientMoments,
    with_room,
)
from tensorlrf.compression.losses._enough import scattered, told
from tensorlrf.compression.losses._gradients import differentiate
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.modular._moments import by_sample
from tensorlrf.compression.modular._outlook import Cost, Costs
from tensorlrf.compression.modular._structures import Channels, Structure
from tensorlrf.decomposition.shrinkage import shrunk
from tensorlrf.factors.autocast import without_autocast


def felt(structures: Sequence[Structure]) -> list[str]:
    """The layers whose errors are told."""
    names: list[str] = []
    for one in structures:
        names += [one.down] if isinstance(one, Channels) else [one.key, one.out]
    return names


def costs_of(
    model: nn.Module,
    names: Sequence[str],
    data: Calibration,
    loss: OutputLoss,
    draws: torch.Generator,
    advance: Callable[[], None],
) -> Costs:
    """Of all these layers; none where some find no room or are reached by no gradient. One
    pass forth and back a batch, of as many as it takes.

    Raises what the model does where it cannot be differentiated.
    """
    if len(with_room(model, names, data.room)) < len(names):
        return {}
    sums = {name: _Felt(GradientMoments.of(dense_layer_at(model, name))) for name in names}
    samples = 0
    for n, batch in enumerate(scattered(data.fitted)):
        known = told(n, samples)
        open_ = {k: one for k, one in sums.items() if not (known and one.moments.settled)}
        if not open_:
            break
        weight = differentiate(model, open_, batch, loss, draws)
        samples += batch.samples
        for one in open_.values():
            one.divided += weight
        advance()
    found = {}
    for name, one in sums.items():
        whole = mirrored(one.moments.products[0]).double() / max(one.divided, 1e-30)
        diagonal = whole.diagonal()
        if not (torch.isfinite(diagonal).all() and diagonal.sum() > 0):
            return {}
        found[name] = Cost(shrunk(whole, SHRINKAGE), one.shared)
    return found


@dataclass
class _Felt:
    """Gradients at the outputs of a layer.

    moments         sums of g g^T
    energy, pooled  sums of |g_t|^2, and over samples of |sum g_t|^2 over how many there are
    divided         what the squares of the cotangent are divided by
    """

    moments: GradientMoments
    energy: float = 0.0
    pooled: float = 0.0
    divided: float = 0.0

    @property
    def shared(self) -> float:
        """The part of the energy that is in the means over samples."""
        return min(1.0, self.pooled / self.energy) if self.energy > 0 else 0.0

    def forward(
        self, site: DenseLayer, batch: Batch, x: Any, y: Tensor
    ) -> Callable[[Tensor], None]:
        """After a call of the layer."""
        return partial(self._add, site, batch)

    def _add(self, site: DenseLayer, batch: Batch, g: Tensor) -> None:
        self.moments.add(site, g)
        with torch.no_grad(), without_autocast():
            sums, lengths = by_sample(batch, g.detach().movedim(site.channel_dim, -1))
            if sums is None or lengths is None:
                return
            self.energy += float(g.detach().float().square().sum())
            parts = sums.square().sum(1) / lengths.to(sums.device).clamp(min=1)
            self.pooled += float(parts.sum())
