"""What a model of every size is worth, as a value: a table, a picture, JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Table
from tensorlrf.compression.frontier._page import frontier_section
from tensorlrf.compression.frontier._picture import plot_frontier
from tensorlrf.compression.frontier._point import (
    DENSE,
    FACTORS,
    HEADER,
    TAKEN,
    TIMES,
    FrontierPoint,
    cells,
    no_better,
)
from tensorlrf.compression.page.document import Page, Paged, Section
from tensorlrf.compression.page.environment import environment_section
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.report._json import check_version, parsed, read_as, read_dataclass
from tensorlrf.compression.report._quality import Judged
from tensorlrf.errors import ArgumentError, FileFormatError, shown, unknown

if TYPE_CHECKING:
    from rich.console import Group
    from torch import nn

    from tensorlrf.compression.frontier._prospect import Prospect
    from tensorlrf.compression.report._report import Report

VERSION = 1


@dataclass(frozen=True)
class Frontier(Paged):
    """What a model of every size is worth. From `tensorlrf.frontier`.

    Prints itself as a table; `plot(path)`; `to_html(path)`; `to_json()` and `from_json()`.

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
    prospect : optional
        The model, the batches held out and the directions of its layers' outputs, for `apply`. Not
        in JSON.
    judged : Judged
        By what `evaluate` judged, and which way is better.

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
    prospect: Prospect | None = field(default=None, compare=False, repr=False)
    judged: Judged = field(default_factory=Judged)

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

    def apply(self, share: float, *, example: Any = None) -> tuple[nn.Module, Report]:
        """The model of the plan of a share, without another pass over inputs to fit to.

        Each layer is cut along the directions of its outputs, U_r U_r^T W, which is what `apply`
        with `target="independent", metric="outputs"` comes to with as many samples as it needs. In
        order, as with `target="original"`, and in the metric of the loss it gets better.

        Parameters
        ----------
        share : float
            As in `plan`.
        example : Tensor, tuple or dict, optional
            A batch to time both models on, for the report.

        Returns
        -------
        model : Module
            A copy.
        report : Report

        Raises
        ------
        ArgumentError
            Below the smallest share that there is a plan for; for layers that are to get another
            format than low rank; for a frontier from JSON, which knows no outputs.

        References
        ----------
        Wang et al. 2024.

        Examples
        --------
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> batches = [torch.rand(64, 64) for _ in range(4)]
        >>> found = tensorlrf.frontier(model, batches, shares=(0.5,), skip=[], progress=False)
        >>> small, report = found.apply(0.5)
        >>> report.eligible.share <= 0.5
        True
        """
        plan = self.plan(share)
        if self.prospect is None:
            raise ArgumentError(
                "a frontier from JSON knows plans, and no outputs of layers; give "
                "tensorlrf.apply(model, frontier.plan(share), calibration=batches) some inputs"
            )
        return self.prospect.carried_out(plan, example)

    def beaten(self, kind: str, by: str = "bytes") -> tuple[FrontierPoint, ...]:
        """The plans that rounding alone beats: they take as much or more, and are no better.

        Better is by the metric where it is known of both, else by the loss on inputs held out.

        Parameters
        ----------
        kind : str
            "int8", "int4" or "w8a8".
        by : {"bytes", "latency"}
            What they take; a latency that was not measured is the one that is promised.

        Returns
        -------
        tuple of FrontierPoint
            By a latency that is not known none.

        Raises
        ------
        ArgumentError
            For another word.
        """
        rounded = next((point for point in self.points if point.kind == kind), None)
        if rounded is None:
            raise ArgumentError(f"kind={kind!r} is none of the points")
        if by not in TAKEN:
            raise unknown("by", by, tuple(TAKEN))
        least = TAKEN[by](rounded)
        if least is None:
            return ()
        return tuple(
            point
            for point in self.factored
            if (takes := TAKEN[by](point)) is not None
            and takes >= least
            and no_better(point, rounded)
        )

    def to_json(self) -> str:
        """As JSON text."""
        values = {
            "version": VERSION,
            "unit": self.unit,
            "noise": self.noise,
            "judged": asdict(self.judged),
            "points": [asdict(point) for point in self.points],
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
            values = parsed(text)
            check_version(values.pop("version"), VERSION, "frontier")
            plans = tuple(Plan.from_json(json.dumps(plan)) for plan in values.pop("plans"))
            told = read_dataclass(_Rest, {k: values.pop(k) for k in _READ if k in values}, "it")
            sensitivity = Sensitivity.from_json(json.dumps(values.pop("sensitivity")))
            if values:
                raise FileFormatError(
                    f"text is no frontier: it has {', '.join(map(shown, values))}"
                )
            made = cls(told.unit, told.noise, told.points, plans, sensitivity, judged=told.judged)
            made._table()
        if len(made.factored) != len(plans) or any(p.share is None for p in made.factored):
            raise FileFormatError("text is no frontier: each plan must have a point with a share")
        return made

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def _page(self, title: str | None, date: str | None) -> Page:
        lead = f"{len(self.factored)} plans beside the given model and its rounded weights."
        own = [*self._sections(), *self.sensitivity._sections(), environment_section(None, date)]
        return Page(title or "How much a model can lose", lead, own)

    def _sections(self) -> tuple[Section, ...]:
        return (frontier_section(self.points, self.unit, self._timed, self._told(), self.judged),)

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
        judged = any(point.quality is not None for point in self.factored)
        timed = any(point.latency is not None for point in self.factored)
        values = [point.quality if judged else point.loss for point in self.points]
        plot_frontier(
            path,
            [point.kind for point in self.points],
            [point.bytes for point in self.points],
            [point.latency if timed else point.seconds for point in self.points],
            values,
            [point.bound if judged else None for point in self.points],
            self.judged.name if judged else f"loss on inputs held out, {self.unit}",
            higher=self.judged.larger_is_better,
        )

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        header = HEADER + (TIMES if self._timed else ())
        title = f"frontier, {self.sensitivity.rule}, losses in {self.unit}"
        rows = [cells(point)[: len(header)] for point in self.points]
        return Table(title, header, rows, [self._told()])

    @property
    def _timed(self) -> bool:
        return any(point.seconds is not None for point in self.points)

    def _told(self) -> list[str]:
        lines = self.judged.lines()
        if self.judged.metric is not None:
            more = "" if self.judged.larger_is_better else "; its drop is by how much it rises"
            lines.insert(0, f"metric: {self.judged.metric}{more}")
        if self.noise:
            lines.append(
                f"evaluate is not deterministic: of one model it differs by up to {self.noise:.2g}"
            )
        for point in self.points:
            if point.kind not in (DENSE, FACTORS):
                lines.append(self._beside(point, "bytes", "smaller", "of its size or above"))
                if point.latency is not None:
                    lines.append(self._beside(point, "latency", "faster", "as slow or slower"))
                elif self._timed:
                    lines.append(f"{point.kind}: torch does not run on it, and so it has no time")
        return lines

    def _beside(self, point: FrontierPoint, by: str, smaller: str, of: str) -> str:
        """Where rounding alone is better."""
        beaten = self.beaten(point.kind, by)
        if not beaten:
            return f"{point.kind} alone is better than no plan {of}"
        shares = ", ".join(f"{one.share:g}" for one in beaten)
        return (
            f"{point.kind} alone is {smaller} and no worse than the plans of share {shares}; "
            "the two can be combined"
        )


@dataclass(frozen=True)
class _Rest:
    """What a text holds beside plans."""

    unit: str
    noise: float | None
    points: tuple[FrontierPoint, ...]
    judged: Judged = field(default_factory=Judged, metadata={"later": True})


_READ = tuple(entry.name for entry in fields(_Rest))
