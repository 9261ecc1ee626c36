"""What each layer of a model can lose: predicted losses over ranks, as a value."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression.page.document import Page, Paged, Section
from tensorlrf.compression.page.environment import environment_section
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._sensitivity_page import LossRow, sensitivity_section
from tensorlrf.compression.report._json import check_version, parsed, read_as
from tensorlrf.errors import ArgumentError, FileFormatError, shown

if TYPE_CHECKING:
    from rich.console import Group

VERSION = 1

SHOWN = (0.8, 0.5, 0.25)
"""Shares of a layer's parameters at which its loss is printed."""

MOST_RANKS = 1 << 16

KNOTS = 64
"""Ranks of a layer whose losses are told, about."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What the model loses where one layer is cut to a low rank, all others left as they are.

    Parameters
    ----------
    name : str
        Qualified.
    kind : str
        Its type.
    shape, groups
        Of its weight. Ranks are those of each group's matrix, (out, in kh kw).
    ranks : tuple of int
        Rising, from 0 to the full rank.
    losses : tuple of float
        At these ranks, not rising, 0 at the full one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    ranks: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def params(self) -> int:
        """Of the weight."""
        return math.prod(self.shape)

    @property
    def params_a_rank(self) -> int:
        """Of a matrix in factors, all groups together."""
        return self.shape[0] + self.groups * math.prod(self.shape[1:])

    def loss_at(self, params: float) -> float:
        """The loss at so many parameters, those of a low-rank matrix.

        Between ranks that are known the logarithm of the loss is interpolated, and the loss itself
        where one of them is 0. Factors as large as the weight itself may still lose something: only
        a layer that stays loses nothing.

        Parameters
        ----------
        params : float

        Returns
        -------
        float
        """
        rank = params / self.params_a_rank
        above = bisect_right(self.ranks, rank)
        if above == len(self.ranks):
            return self.losses[-1]
        low, high = self.losses[above - 1], self.losses[above]
        part = (rank - self.ranks[above - 1]) / (self.ranks[above] - self.ranks[above - 1])
        if high <= 0:
            return low * (1 - part)
        return math.exp((1 - part) * math.log(low) + part * math.log(high))


@dataclass(frozen=True)
class Sensitivity(Paged):
    """What each layer of a model can lose, for every budget at once.

    From `tensorlrf.sensitivity`. Prints itself as a table; `to_json()` and `from_json()`; `plot()`;
    `to_html()`.
    A plan is made of it by `tensorlrf.plan(model, keep_params=..., sensitivity=...)`, without
    another pass over data.

    Parameters
    ----------
    architecture : str
        A hash of the model's structure, as of a `Plan`.
    rule : str
        How it was found: a word of `allocation=`.
    unit : str
        Of the losses.
    layers : tuple of LayerSensitivity
        In the order of the model.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> found = tensorlrf.sensitivity(model, skip=[])
    >>> tensorlrf.Sensitivity.from_json(found.to_json()) == found
    True
    """

    architecture: str
    rule: str
    unit: str
    layers: tuple[LayerSensitivity, ...]

    def layer(self, name: str) -> LayerSensitivity:
        """The row of a layer. Raises KeyError."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(name)

    def predicted(self, plan: Plan) -> float:
        """The sum of what the layers of a plan lose.

        Parameters
        ----------
        plan : Plan
            Of the same model, with ranks or shares.

        Returns
        -------
        float
            NaN where the fit decides a rank.

        Raises
        ------
        ArgumentError
            For a plan of another model, and one that factors layers that are not known here.
        """
        self.check(plan.architecture)
        known = {row.name: row for row in self.layers}
        total = 0.0
        for row in plan.factored:
            if row.name not in known:
                raise ArgumentError(
                    f"the plan factors {row.name}, of which the sensitivity says nothing; it knows "
                    f"{', '.join(known)[:300]}"
                )
            after = row.params_after
            total += math.nan if after is None else known[row.name].loss_at(after)
        return total

    def check(self, architecture: str) -> None:
        """Raise ArgumentError for a model of another architecture."""
        if architecture != self.architecture:
            raise ArgumentError(
                f"sensitivity is of a model of architecture {self.architecture[:12]}, and this one "
                f"is {architecture[:12]}; make one of it with tensorlrf.sensitivity(model, ...)"
            )

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Inverse of `to_json`.

        Parameters
        ----------
        text : str

        Returns
        -------
        Sensitivity

        Raises
        ------
        FileFormatError
            For what is none.
        """
        with read_as("sensitivity"):
            values = parsed(text)
            check_version(values.pop("version"), VERSION, "sensitivity")
            rows = tuple(_row(row) for row in values.pop("layers"))
            made = cls(**values, layers=rows)
            made._table()
        for entry in ("architecture", "rule", "unit"):
            if not isinstance(getattr(made, entry), str):
                raise FileFormatError(f"text is no sensitivity: {entry} is no text")
        return made

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def _page(self, title: str | None, date: str | None) -> Page:
        lead = f"{len(self.layers):,} layers, looked at one by one."
        own = [*self._sections(), environment_section(None, date)]
        return Page(title or "What each layer can lose", lead, own)

    def _sections(self) -> tuple[Section, ...]:
        rows = [
            LossRow(
                row.name,
                row.kind,
                row.params,
                tuple(row.loss_at(share * row.params) for share in SHOWN),
            )
            for row in self.layers
        ]
        return (sensitivity_section(self.rule, self.unit, SHOWN, SHOWN.index(0.5), rows),)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """A heat map: a row for each block of the model, a column for each kind of layer in it.

        Parameters
        ----------
        path : str or PathLike
            Of a picture to be written; its suffix is the format.

        Raises
        ------
        MissingDependencyError
            Without matplotlib (extra `plot`).
        """
        from tensorlrf.compression.plan._heat_map import plot_heat_map

        values = {row.name: row.loss_at(0.5 * row.params) for row in self.layers}
        plot_heat_map(path, values, f"{self.rule}, {self.unit}, half of the parameters kept")

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        header: Header = (
            ("layer", "left"),
            ("kind", "left"),
            ("weight", "right"),
            *((f"loss at {share:.0%}", "right") for share in SHOWN),
        )
        rows = [
            [
                row.name,
                row.kind if row.groups == 1 else f"{row.kind}, {row.groups} groups",
                " x ".join(map(str, row.shape)),
                *(f"{row.loss_at(share * row.params):.3g}" for share in SHOWN),
            ]
            for row in self.layers
        ]
        title = f"sensitivity, {self.rule}, in {self.unit}, architecture {self.architecture[:12]}"
        return Table(title, header, rows, [])


def falling(losses: Sequence[float]) -> tuple[float, ...]:
    """The same as it would be without noise: no rank loses more than a lower one, and none less
    than nothing."""
    least, kept = math.inf, []
    for loss in losses:
        least = min(least, max(0.0, float(loss)))
        kept.append(least)
    return tuple(kept)


def row_of(
    name: str, kind: str, shape: tuple[int, ...], groups: int, losses: Sequence[float]
) -> LayerSensitivity:
    """Of losses at ranks from 0 on to the full, at some of them."""
    full = len(losses) - 1
    step = 1 if full <= KNOTS else 8 * -(-full // (8 * KNOTS))
    ranks = [*range(0, full, step), full]
    values = falling([losses[r] for r in ranks])
    return LayerSensitivity(name, kind, shape, groups, tuple(ranks), values)


def _row(values: Mapping[str, Any]) -> LayerSensitivity:
    lists = {key: tuple(values[key]) for key in ("shape", "ranks", "losses")}
    row = LayerSensitivity(**{**values, **lists})
    numbers = (*row.shape, *row.ranks, row.groups)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise FileFormatError(f"text is no sensitivity: {shown(row.name)} has sizes that are none")
    losses = [float(loss) for loss in row.losses]
    good = (
        isinstance(row.name, str)
        and isinstance(row.kind, str)
        and len(row.shape) > 1
        and min(*row.shape, row.groups) > 0
        and 2 <= len(row.ranks) == len(losses) <= MOST_RANKS
        and row.ranks[0] == 0
        and all(a < b for a, b in zip(row.ranks[:-1], row.ranks[1:], strict=True))
        and tuple(losses) == falling(losses)
        and math.isfinite(losses[0])
    )
    if not good:
        raise FileFormatError(
            f"text is no sensitivity: layer {shown(row.name)} must have two or more rising ranks "
            "from 0 on, with finite losses that do not rise"
        )
    return row
