"""What errors of each layer's outputs cost the model: second moments of the gradients there.

With g the gradient at a layer's outputs of what a random cotangent sees of the model's, the loss
of an error D of the weight is, to second order, half the mean square of what g makes of D x. Taken
apart into a product of both sides (Martens & Grosse 2015, "Optimizing neural networks with
Kronecker-factored approximate curvature") it is

    1/2 tr(R D G D^T),   R = E[g g^T],   G = E[x x^T].

R over few samples is worse known than G, for a model has fewer outputs than a layer has inputs. It
is drawn towards its mean eigenvalue, and no gradient counts for more than a multiple of the usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import METRIC
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.calibration.moments._sums import add_squares, mirrored
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.losses._bases import rows_of
from tensorlrf.compression.losses._enough import GRADIENT_ROWS, LEAST, told, turns
from tensorlrf.compression.losses._gradients import OwnCotangents, differentiate
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.decomposition.second_moments import OutputMetric
from tensorlrf.decomposition.shrinkage import mean_eigenvalue, shrunk
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast

SHRINKAGE = 0.3
"""How far R is drawn towards its mean eigenvalue."""

CLIP = 10.0
"""Times the median norm of the gradients at one layer in one pass: longer ones are cut to that."""


def output_metrics(
    model: nn.Module,
    names: Sequence[str],
    data: Calibration,
    loss: OutputLoss,
    draws: torch.Generator,
    advance: Callable[[], None],
) -> dict[str, Metrics]:
    """Name -> metrics of the outputs of its groups, of the layers that gradients reach and that
    there is room for, from as many of the batches to fit to as they need. One pass forth and back a
    batch.

    Raises what the model does where it cannot be differentiated.
    """
    weighed = with_room(model, names, data.room)
    sums = {name: GradientMoments.of(dense_layer_at(model, name)) for name in weighed}
    group, own = data.group, OwnCotangents(draws, data.group)
    samples, failed = 0, None
    open_: Mapping[str, GradientMoments] = sums
    for n, turn in enumerate(turns(data.fitted, group)):
        if told(n, samples) and not n % LEAST:
            open_ = unsettled(sums, group)
        if not open_:
            break
        if turn.batch is not None and failed is None:
            try:
                differentiate(model, open_, turn.batch, loss, own.of(turn.batch))
            except (RuntimeError, ArgumentError) as error:
                failed = error
        if failed is not None and group.size == 1:
            break
        samples += turn.samples
        advance()
    group.fail_together(failed)
    over_ranks(sums, group)
    return metrics_of(sums)


def unsettled(
    sums: Mapping[str, GradientMoments], group: Alone = ALONE
) -> dict[str, GradientMoments]:
    """Those of which more gradients would tell more."""
    rows = group.totals([moments.rows for moments in sums.values()])
    pairs = zip(sums.items(), rows, strict=True)
    return {name: moments for (name, moments), n in pairs if not moments.is_enough(n)}


def over_ranks(sums: Mapping[str, GradientMoments], group: Alone) -> None:
    """Have them be those of all ranks."""
    rows = group.totals([moments.rows for moments in sums.values()])
    for moments, n in zip(sums.values(), rows, strict=True):
        group.total([moments.products])
        moments.rows = int(n)


def metrics_of(sums: dict[str, GradientMoments]) -> dict[str, Metrics]:
    """Of sums, which are given up one by one; nothing of layers that no gradient has reached."""
    found: dict[str, Metrics] = {}
    for name in list(sums):
        metrics = sums.pop(name).metrics()
        if any(metric is not None for metric in metrics):
            found[name] = metrics
    return found


def with_room(model: nn.Module, names: Sequence[str], room: int) -> list[str]:
    """The layers whose metrics have room together, small ones first, and each in its fit: those of
    an output layer with a vocabulary may be larger than the model."""
    sizes = {name: gradient_bytes(dense_layer_at(model, name)) for name in names}
    found, left = set(), room
    for name in sorted(names, key=sizes.__getitem__):
        left -= sizes[name]
        if left < 0 or METRIC * sizes[name] > 4 * room:
            break
        found.add(name)
    return [name for name in names if name in found]


def gradient_bytes(site: DenseLayer) -> int:
    """Of the `GradientMoments` of a layer."""
    return 4 * site.shape[0] ** 2 // site.groups


@dataclass
class GradientMoments:
    """Sums of g g^T over the positions of a layer's outputs, group by group.

    products  (groups, m, m), float32: what few gradients say is not known to more digits
    rows      how many g there were
    """

    products: Tensor
    rows: int = 0

    @classmethod
    def of(cls, site: DenseLayer) -> GradientMoments:
        """Of a layer, none so far."""
        m = site.shape[0] // site.groups
        return cls(torch.zeros(site.groups, m, m, dtype=torch.float32, device=site.device))

    def forward(
        self, site: DenseLayer, batch: Batch, x: Any, y: Tensor
    ) -> Callable[[Tensor], None]:
        """After a call of the layer."""
        return partial(self.add, site)

    def add(self, site: DenseLayer, g: Tensor) -> None:
        """The gradient at the outputs of one call, as they are laid out."""
        with torch.no_grad(), without_autocast():
            found = rows_of(site, g.detach(), 1)
            assert found is not None
            for total, rows in zip(self.products, found[0].unbind(1), strict=True):
                add_squares(total, clipped(rows).float())
            self.rows += len(found[0])

    @property
    def settled(self) -> bool:
        """Whether more gradients would tell little more."""
        return self.is_enough(self.rows)

    def is_enough(self, rows: float) -> bool:
        """Whether more than so many would tell little more."""
        return rows >= GRADIENT_ROWS * self.products.shape[-1]

    def metrics(self) -> list[OutputMetric | None]:
        """Of what has been added up, which is given up; None for groups without gradient."""
        found: list[OutputMetric | None] = []
        for products in self.products:
            whole = mirrored(products)
            mean = float(whole.diagonal().mean())
            known = mean > 0 and bool(torch.isfinite(whole.diagonal()).all())
            found.append(OutputMetric(_normal(whole)) if known else None)
        return found


def _normal(products: Tensor) -> Tensor:
    """Shrunk, with mean eigenvalue one, in float32."""
    return shrunk(products / mean_eigenvalue(products), SHRINKAGE)


def clipped(rows: Tensor) -> Tensor:
    """Gradients (N, m), in float32 at the least, none longer than `CLIP` times the median of those
    that are not zero."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    felt = lengths[lengths > 0]
    if len(felt) == 0:
        return rows
    most = CLIP * felt.median()
    return rows * (most / lengths.clamp(min=most))[:, None]
