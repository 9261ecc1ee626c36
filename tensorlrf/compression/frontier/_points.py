"""What a model of every size is worth, as a value: a table, a picture, JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import bytes_words
from tensorlrf.compression.frontier._picture import plot_frontier
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.report._json import check_version, read_as, read_dataclass
from tensorlrf.errors import ArgumentError, FileFormatError, shown

if TYPE_CHECKING:
    from rich.console import Group

VERSION = 1

DENSE = "dense"
FACTORS = "factors"


@dataclass(frozen=True)
class FrontierPoint:
    """One size of a model.

    Parameters
    ----------
    kind : str
        "factors" of a plan; "dense", the given model; "int8" and "int4", the given model with the
        weights of the same layers rounded.
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
        By how much that is below the given model's, and the bound on it with 95% confidence: where
        `evaluate` gives scores by their paired differences, else by its noise alone.
    latency : float or None
        Seconds of a pass over the example.
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


@dataclass(frozen=True)
class Frontier:
    """What a model of every size is worth. From `tensorlrf.frontier`.

    Prints itself as a table; `plot(path)`; `to_json()` and `from_json()`.

    Parameters
    ----------
    unit : str
        Of the losses.
    noise : float or None
        A difference of two numbers that `evaluate` gives of one model is no larger, with 95%
        confidence; 0 where it gives the same twice. None without `evaluate`.
    points : tuple of FrontierPoint
        The given model; plans, the largest first; rounded weights.
    plans : tuple of Plan
        In the order of their points.
    sensitivity : Sensitivity
        What the plans were made of.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> batches = [torch.rand(64, 64) for _ in range(4)]
    >>> found = tensorlrf.frontier(model, batches, shares=(0.75, 0.5), skip=[], progress=False)
    >>> found.plan(0.6) == found.plan(0.5)
    True
    >>> tensorlrf.Frontier.from_json(found.to_json()) == found
    True
    """

    unit: str
    noise: float | None
    points: tuple[FrontierPoint, ...]
    plans: tuple[Plan, ...]
    sensitivity: Sensitivity

    @property
    def factored(self) -> tuple[FrontierPoint, ...]:
        """The points of plans."""
        return tuple(point for point in self.points if point.kind == FACTORS)

    def plan(self, share: float) -> Plan:
        """The largest plan that keeps at most so much.

        Parameters
        ----------
        share : float
            Of the eligible weights.

        Returns
        -------
        Plan
            To be carried out by `tensorlrf.apply`.

        Raises
        ------
        ArgumentError
            Below the smallest share that there is a plan for.
        """
        pairs = zip(self.factored, self.plans, strict=True)
        within = [(point.share, plan) for point, plan in pairs if (point.share or 0.0) <= share]
        if not within:
            shares = ", ".join(f"{point.share:g}" for point in self.factored)
            raise ArgumentError(f"share={share!r}: there are plans for {shares}")
        return max(within, key=lambda pair: pair[0] or 0.0)[1]

    def beaten(self, kind: str) -> tuple[FrontierPoint, ...]:
        """The plans that rounding alone beats: as large or larger in bytes, and no better.

        Better is by the metric where it is known of both, else by the loss on inputs held out.

        Parameters
        ----------
        kind : str
            "int8" or "int4".

        Returns
        -------
        tuple of FrontierPoint
        """
        rounded = next((point for point in self.points if point.kind == kind), None)
        if rounded is None:
            raise ArgumentError(f"kind={kind!r} is none of the points")
        return tuple(
            point
            for point in self.factored
            if point.bytes >= rounded.bytes and _no_better(point, rounded)
        )

    def to_json(self) -> str:
        """As JSON text."""
        values = {
            "version": VERSION,
            "unit": self.unit,
            "noise": self.noise,
            "points": [_entries(point) for point in self.points],
            "plans": [json.loads(plan.to_json()) for plan in self.plans],
            "sensitivity": json.loads(self.sensitivity.to_json()),
        }
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Frontier:
        """Inverse of `to_json`.

        Parameters
        ----------
        text : str

        Returns
        -------
        Frontier

        Raises
        ------
        FileFormatError
            For what is none.
        """
        with read_as("frontier"):
            values = json.loads(text)
            check_version(values.pop("version"), VERSION, "frontier")
            plans = tuple(Plan.from_json(json.dumps(plan)) for plan in values.pop("plans"))
            told = read_dataclass(
                _Rest, {k: values.pop(k) for k in ("unit", "noise", "points")}, "it"
            )
            sensitivity = Sensitivity.from_json(json.dumps(values.pop("sensitivity")))
            if values:
                raise FileFormatError(
                    f"text is no frontier: it has {', '.join(map(shown, values))}"
                )
        made = cls(told.unit, told.noise, told.points, plans, sensitivity)
        if len(made.factored) != len(plans) or any(p.share is None for p in made.factored):
            raise FileFormatError("text is no frontier: each plan must have a point with a share")
        return made

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Quality over size, and over latency where that is known.

        Quality is what `evaluate` said; without it, the loss on inputs held out.

        Parameters
        ----------
        path : str or PathLike
            Of a picture to be written; its suffix is the format.

        Raises
        ------
        UnsupportedError
            Where matplotlib is missing, the extra `plot`.
        """
        measured = any(point.quality is not None for point in self.factored)
        values = [point.quality if measured else point.loss for point in self.points]
        plot_frontier(
            path,
            [point.kind for point in self.points],
            [point.bytes for point in self.points],
            [point.latency for point in self.points],
            values,
            [point.bound if measured else None for point in self.points],
            "metric" if measured else f"loss on inputs held out, {self.unit}",
        )

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        header: Header = (
            ("", "left"),
            ("share", "right"),
            ("parameters", "right"),
            ("bytes", "right"),
            ("predicted loss", "right"),
            ("held-out loss", "right"),
            ("metric", "right"),
            ("drop", "right"),
            ("at most", "right"),
            ("latency", "right"),
        )
        title = f"frontier, {self.sensitivity.rule}, losses in {self.unit}"
        return Table(title, header, [_cells(point) for point in self.points], [self._told()])

    def _told(self) -> list[str]:
        lines = []
        if self.noise:
            lines.append(
                f"evaluate is not deterministic: of one model it differs by up to {self.noise:.2g}"
            )
        for kind in dict.fromkeys(point.kind for point in self.points):
            if kind in (DENSE, FACTORS):
                continue
            beaten = self.beaten(kind)
            if beaten:
                shares = ", ".join(f"{point.share:g}" for point in beaten)
                lines.append(
                    f"{kind} alone is smaller and no worse than the plans of share {shares}; "
                    "the two can be combined"
                )
            else:
                lines.append(f"{kind} alone is better than no plan of its size or above")
        return lines


@dataclass(frozen=True)
class _Rest:
    """What a text holds beside plans."""

    unit: str
    noise: float | None
    points: tuple[FrontierPoint, ...]


def _no_better(point: FrontierPoint, rounded: FrontierPoint) -> bool:
    if point.quality is not None and rounded.quality is not None:
        return point.quality <= rounded.quality
    return rounded.loss is not None and (point.loss is None or point.loss >= rounded.loss)


def _entries(point: FrontierPoint) -> dict[str, Any]:
    return {field.name: getattr(point, field.name) for field in fields(point)}


def _cells(point: FrontierPoint) -> list[str]:
    return [
        point.kind,
        "" if point.share is None else f"{point.share:g}",
        f"{point.params:,}",
        bytes_words(point.bytes),
        *(
            _number(x)
            for x in (point.predicted, point.loss, point.quality, point.drop, point.bound)
        ),
        "" if point.latency is None else f"{point.latency * 1e3:.3g} ms",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
