"""Moments that were collected before in the place of calibration: of which layers of a model, and
whether of that very model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from tensorlrf.compression._survey import survey
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import LayerMoments
from tensorlrf.compression.moments._kept import moved
from tensorlrf.compression.moments._layer import Weight, times
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._rows import by_name
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike


def moments_for(given: Moments | PathLike | None, model: nn.Module) -> Moments | None:
    """Those that a user gives with a model; None for none.

    Raises ArgumentError, naming the first layer that differs, where they are those of another one,
    and what `Moments.load` raises.
    """
    if given is None:
        return None
    moments = given if isinstance(given, Moments) else Moments.load(given)
    found = {one.name for one in survey(model) if one.eligible}
    names = [row.name for row in moments.layers if row.name in found]
    weights = {name: Weight.of(dense_layer_at(model, name).weight) for name in names}
    check_weights(moments, weights, whole=True)
    return moments


def check_weights(moments: Moments, weights: Mapping[str, Weight], whole: bool) -> None:
    """Raise ArgumentError, naming the first layer that differs, where moments are those of another
    model than one with these weights; with `whole` none may be missing."""
    known = [row for row in moments.layers if row.name in weights]
    missing = [row for row in moments.layers if row.name not in weights]
    for row in known:
        if why := row.weight.why_not(weights[row.name], "the moments", "the model"):
            raise ArgumentError(
                f"moments= are of another model: the weight of {row.name} {why}; give those that "
                "were collected of it"
            )
    if missing and (whole or not known):
        row = missing[0]
        raise ArgumentError(
            f"moments= are of another model: they have a layer {row.name} "
            f"({times(row.weight.shape)}), which this model has not; give those that were "
            "collected of it"
        )


@dataclass
class Reader:
    """Reads the moments of one layer after the other, and once for layers that have the same."""

    moments: Moments
    last: tuple[str, LayerMoments] | None = None

    def of(self, name: str, layer: DenseLayer) -> LayerMoments | None:
        """For a fit; None where nothing is known of its inputs."""
        row = by_name(self.moments.layers).get(name)
        if row is None or not row.count:
            self.last = None
            return None
        if self.last is not None and self.last[0] == row.source:
            return self.last[1].following(layer, None)
        self.last = None
        found = self.moments.kept.read(row)
        if layer.device.type != "cpu":
            found = tuple(moved(row, one, lambda t: t.to(layer.device)) for one in found)
        whole = LayerMoments(layer, lags=False, holds_out=False, known=found)
        if not any(one.like == row.source for one in self.moments.layers):
            return whole
        self.last = row.source, whole
        return whole.following(layer, None)
