"""Plans timed in the whole model, before anything is factored: on factors of any values, in turn
with the given model.

Alone a layer finds its weights in cache, and between layers there is work as well: what layers
promise together is not what the model takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from tensorlrf.compression._latency import timed_passes
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.plan._stand_ins import factored_layer
from tensorlrf.compression.plan.times._seconds import LayerTimes, Sample, seconds_of
from tensorlrf.compression.tuning._choices import table_of
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica
from tensorlrf.ops import Timings, time_calls

SECONDS = 1.0
"""That a model is timed, about."""

DENSE = "dense"


@dataclass(frozen=True)
class Whole:
    """A model, what it is called with, and the times of its layers alone."""

    model: nn.Module
    sample: Sample
    times: Mapping[str, LayerTimes]

    @classmethod
    def of(cls, argument: str, model: nn.Module, drafts: Sequence[Draft], sample: Sample) -> Whole:
        """With the times of these layers; `argument` asks for them. Raises ArgumentError."""
        times = seconds_of(argument, model, drafts, sample)
        names = [draft.name for draft in drafts]
        return cls(model, sample, dict(zip(names, times, strict=True)))

    def promised(self, rows: Sequence[LayerPlan], dense: float) -> float | None:
        """Seconds of a pass with these layers on factors, by what they save alone of the `dense`
        seconds that the given model takes; None where the fit decides a rank.

        Where layers alone take longer together than the model does, the machine was busier then,
        and they save in proportion.
        """
        saved = 0.0
        for row in rows:
            if row.params_after is None:
                return None
            if row.name in self.times:
                times = self.times[row.name]
                saved += times.dense - times.at(row.params_after)
        together = sum(times.dense for times in self.times.values())
        return dense - saved * min(1.0, dense / together if together else 1.0)

    def stand_in(self, rows: Sequence[LayerPlan]) -> nn.Module:
        """A replica of the model, these layers on factors of any values and on the paths that were
        the fastest for the layers alone."""
        model = working = replica(self.model)
        layers = {row.name: dense_layer_at(working, row.name) for row in rows}
        for row in rows:
            assert row.method is not None
            new = _of_its_size(factored_layer(layers[row.name], row.method), layers[row.name])
            if row.name in self.times and self.times[row.name].calls:
                paths = self.times[row.name].paths_at(row.params_after or 0)
                new.path_table = table_of(new, paths, frozen=False)
            model = put(model, row.places, new)
        return model.eval()

    def dense_seconds(self) -> float:
        """Of a pass of the given model."""
        return self.in_turn({}).median(DENSE)

    def ratio(self, rows: Sequence[LayerPlan]) -> tuple[float, float]:
        """(time of a pass with these layers on factors over that of the given model, the median
        over pairs; seconds of the latter)."""
        times = self.in_turn({"small": self.stand_in(rows)})
        pairs = zip(times.samples["small"], times.samples[DENSE], strict=True)
        return median(a / b for a, b in pairs), times.median(DENSE)

    def in_turn(self, models: Mapping[str, nn.Module]) -> Timings:
        """Passes of the given model, under the name "dense", and of these, in turn."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        everyone = {DENSE: replica(self.model), **models}
        calls = {name: timed_passes(m, [self.sample.batch]) for name, m in everyone.items()}
        return time_calls(calls, seconds=SECONDS * len(calls), device=device)


def _of_its_size(new: FactoredLayer, layer: DenseLayer) -> FactoredLayer:
    """With values of about the size of the given weight, so that a model of them goes on with
    numbers that are none of a kind of their own, as Inf and denormal ones are."""
    with torch.no_grad():
        own = torch.linalg.vector_norm(new.factors.to_dense().float())
        wanted = torch.linalg.vector_norm(layer.weight.float())
        first = next(new.parameters())
        first.mul_((wanted / own).to(first.dtype))
    return new
