"""One size of a model: what it takes, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tensorlrf.compression._render import Header
from tensorlrf.compression._words import bytes_words

DENSE = "dense"
FACTORS = "factors"

HEADER: Header = (
    ("", "left"),
    ("share", "right"),
    ("parameters", "right"),
    ("bytes", "right"),
    ("predicted loss", "right"),
    ("held-out loss", "right"),
    ("metric", "right"),
    ("drop", "right"),
    ("at most", "right"),
)
TIMES: Header = (("promised latency", "right"), ("latency", "right"))


@dataclass(frozen=True)
class FrontierPoint:
    """One size of a model.

    Parameters
    ----------
    kind : str
        "factors" of a plan; "dense", the given model; "int8" and "int4", the given model with the
        weights of the same layers rounded; "w8a8", with the inputs of its linear layers in 8 bits
        as well.
    share : float or None
        Of the eligible weights that the plan may keep.
    params, bytes : int
        Of the whole model; rounded weights with their scales.
    predicted : float or None
        Sum of what the layers of a plan are said to lose.
    loss : float or None
        What the cheap model of a plan loses on the inputs held out, all its layers cut; of rounded
        weights likewise. None where its outputs have NaN or Inf.
    quality : float or None
        What `evaluate` says of it.
    drop, bound : float or None
        By how much that is worse than the given model's, and the bound on it with 95% confidence:
        where `evaluate` gives scores by their paired differences, else by its noise alone.
    latency : float or None
        Median seconds of a pass over the example, measured in turn with the given model: of a plan
        on factors of any values. None where it was not measured, and where torch does not run on
        what is stored, as in 4 bits.
    predicted_latency : float or None
        Of a plan: the given model's less what its layers save, each alone.
    """

    kind: str
    share: float | None
    params: int
    bytes: int
    predicted: float | None = None
    loss: float | None = None
    quality: float | None = None
    drop: float | None = None
    bound: float | None = None
    latency: float | None = None
    predicted_latency: float | None = field(default=None, metadata={"later": True})

    @property
    def seconds(self) -> float | None:
        """The latency, as it was measured, else as it is promised."""
        return self.predicted_latency if self.latency is None else self.latency


TAKEN: dict[str, Callable[[FrontierPoint], float | None]] = {
    "bytes": lambda point: point.bytes,
    "latency": lambda point: point.seconds,
}
"""What a model takes, by the words of `beaten`."""


def no_better(point: FrontierPoint, rounded: FrontierPoint) -> bool:
    if point.drop is not None and rounded.drop is not None:
        return point.drop >= rounded.drop
    return rounded.loss is not None and (point.loss is None or point.loss >= rounded.loss)


def cells(point: FrontierPoint) -> list[str]:
    return [
        point.kind,
        "" if point.share is None else f"{point.share:g}",
        f"{point.params:,}",
        bytes_words(point.bytes),
        *(
            _number(x)
            for x in (point.predicted, point.loss, point.quality, point.drop, point.bound)
        ),
        *(
            "" if x is None else f"{x * 1e3:.3g} ms"
            for x in (point.predicted_latency, point.latency)
        ),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
