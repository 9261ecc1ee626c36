"""What single layers of lower rank are worth to a model, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression.plan._plan import Plan

if TYPE_CHECKING:
    from rich.console import Group

HEADER: Header = (
    ("layer", "left"),
    ("type", "left"),
    ("rank", "right"),
    ("of all", "right"),
    ("metric", "right"),
    ("better by", "right"),
)


@dataclass(frozen=True)
class Reduction:
    """The model with one layer cut to a rank.

    Parameters
    ----------
    layer : str
        Qualified.
    type : str
        What its name is within its block, which others of the kind have in common.
    rank : int
        Of its weight; of each group of a convolution.
    share : float
        Of the full rank, as it was asked for.
    quality : float
        What `evaluate` says of the model, of scores their mean.
    gain : float
        By how much it is better than the given model, below zero where it is worse.
    """

    layer: str
    type: str
    rank: int
    share: float
    quality: float
    gain: float


@dataclass(frozen=True)
class Laser:
    """What `laser` gives. Prints itself as a table of the best of each layer; `to_json()`.

    Parameters
    ----------
    plan : Plan
        The layers that were kept cut, for `tensorlrf.apply`; all stay where nothing is better than
        the given model.
    given : float
        What `evaluate` says of the given model.
    quality : float
        And of the model with all layers of `steps` cut.
    noise : float
        A difference of two numbers of one model that is no larger says nothing.
    steps : tuple of Reduction
        Those that were kept, in the order in which they were; quality and gain with those before.
    rows : tuple of Reduction
        All single ones that were tried, in the order of the model.
    test : tuple of float, optional
        What `test` says of the given model, and of the one with all steps.
    """

    plan: Plan
    given: float
    quality: float
    noise: float
    steps: tuple[Reduction, ...]
    rows: tuple[Reduction, ...]
    test: tuple[float, float] | None = None

    def best(self) -> tuple[Reduction, ...]:
        """Of each layer the reduction that gains most, those that gain most first."""
        found: dict[str, Reduction] = {}
        for row in self.rows:
            if row.layer not in found or row.gain > found[row.layer].gain:
                found[row.layer] = row
        return tuple(sorted(found.values(), key=lambda row: -row.gain))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {name: value for name, value in vars(self).items() if name != "plan"}
        rows = {name: [asdict(row) for row in values[name]] for name in ("steps", "rows")}
        return {**values, **rows, "plan": json.loads(self.plan.to_json())}

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def _table(self) -> Table:
        cells = [
            [row.layer, row.type, f"{row.rank}", f"{row.share:.1%}", f"{row.quality:.4g}",
             f"{row.gain:+.4g}"]
            for row in self.best()
        ]  # fmt: skip
        kept = ", ".join(f"{row.layer} to rank {row.rank}" for row in self.steps)
        below = [f"kept: {kept}" if kept else "kept: none, for none is better than the given model"]
        below.append(f"the given model {self.given:.4g}, with what is kept {self.quality:.4g}")
        if self.test is not None:
            below.append(f"on other data {self.test[0]:.4g}, with what is kept {self.test[1]:.4g}")
        title = f"{len(self.rows)} reductions, the best of each layer"
        return Table(title, HEADER, cells, (below,))

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def __str__(self) -> str:
        return str(self._table())
