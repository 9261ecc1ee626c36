"""How refinement went: the held-out loss over seconds, as a value."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression.page.document import Page, Paged, Section
from tensorlrf.compression.page.environment import environment_section
from tensorlrf.compression.refinement._page import refinement_section
from tensorlrf.compression.report._json import check_version, parsed, read_as, read_dataclass
from tensorlrf.errors import FileFormatError

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 1

HEADER: Header = (
    ("phase", "left"),
    ("step", "right"),
    ("seconds", "right"),
    ("loss", "right"),
    ("held-out loss", "right"),
    ("", "left"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The model as it was judged once.

    Parameters
    ----------
    phase : str
        Which one had trained it: "given" for the model as it came, then "local", "block", "global".
    step : int
        Steps of the optimiser so far.
    seconds : float
        Since the beginning.
    training : float or None
        Mean loss of the phase since the checkpoint before, on the batches that are trained on; None
        where no step was made.
    held_out : float or None
        Loss of the outputs on batches held out; None where it is no finite number.
    kept : bool
        Whether it was better than what had been kept, by more than chance.
    """

    phase: str
    step: int
    seconds: float
    training: float | None
    held_out: float | None
    kept: bool


@dataclass(frozen=True)
class Refinement(Paged):
    """What `tensorlrf.refine` has done.

    Prints itself as a table; `to_json()` and `from_json()`; `plot()`; `to_html()`.

    Parameters
    ----------
    unit : str
        Of the held-out loss.
    trained : int
        Numbers that were trained.
    batches, held_out : int
        How many batches were trained on, and how many judged by.
    groups : int
        By how many groups, or samples where groups are not told, states were compared in pairs. Of
        a single one any fall of its loss counts, for nothing tells how much of it is chance.
    skipped : int
        Steps that were not made since the loss or its gradient was no finite number.
    reason : str
        Why it ended.
    curve : tuple of Checkpoint
        The first one is of the model as it came.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> small, _ = tensorlrf.compress(model, keep_params=0.5, skip=[])
    >>> batches = [torch.rand(16, 32) for _ in range(4)]
    >>> small, report = tensorlrf.refine(small, model, batches, steps=8)
    >>> tensorlrf.Refinement.from_json(report.to_json()) == report
    True
    """

    unit: str
    trained: int
    batches: int
    held_out: int
    groups: int
    skipped: int
    reason: str
    curve: tuple[Checkpoint, ...]

    @property
    def before(self) -> float | None:
        """Held-out loss of the model as it came."""
        return self.curve[0].held_out

    @property
    def after(self) -> float | None:
        """Held-out loss of the model that was returned."""
        return self.best.held_out

    @property
    def best(self) -> Checkpoint:
        """The last checkpoint that was kept, whose state was returned."""
        return [one for one in self.curve if one.kept][-1]

    @property
    def steps(self) -> int:
        """Of the optimiser, those of the journal included."""
        return self.curve[-1].step

    @property
    def seconds(self) -> float:
        """Until the last checkpoint, those of the journal included."""
        return self.curve[-1].seconds

    @property
    def title(self) -> str:
        """What was won, in a line."""
        return (
            f"refinement: held-out loss {_number(self.before)} to {_number(self.after)} "
            f"{self.unit} in {self.steps:,} steps, {self.seconds:.1f} s"
        )

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({"version": FORMAT_VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Refinement:
        """Inverse of `to_json`.

        Parameters
        ----------
        text : str

        Returns
        -------
        Refinement

        Raises
        ------
        FileFormatError
            For what is none.
        """
        with read_as("refinement"):
            values = parsed(text)
            check_version(values.pop("version"), FORMAT_VERSION, "refinement")
            made = read_dataclass(cls, values, "the text")
            if not made.curve:
                raise FileFormatError("text is no refinement: its curve has no checkpoint")
            if not made.curve[0].kept:
                raise FileFormatError(
                    "text is no refinement: its curve does not begin with a kept one"
                )
            made._table()
        return made

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def _page(self, title: str | None, date: str | None) -> Page:
        lead = f"{self.steps:,} steps in {self.seconds:.0f} seconds; ended: {self.reason}."
        own = [*self._sections(), environment_section(None, date)]
        return Page(title or "How refinement went", lead, own)

    def _sections(self) -> tuple[Section, ...]:
        curve = [
            (one.phase, one.seconds, one.held_out, one.kept)
            for one in self.curve
            if one.held_out is not None
        ]
        shown = self._table()
        lines = [line for below in shown.below for line in below]
        return (refinement_section(self.title, self.unit, curve, shown.rows, lines),)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """The held-out loss over seconds, a line for each phase.

        Parameters
        ----------
        path : str or PathLike
            Of a picture to be written; its suffix is the format.

        Raises
        ------
        UnsupportedError
            Without matplotlib (extra `plot`).
        """
        from tensorlrf.compression.refinement._curve import plot_curve

        points = [(c.phase, c.seconds, c.held_out) for c in self.curve if c.held_out is not None]
        plot_curve(path, points, self.unit)

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        best = self.best
        rows = [
            [
                one.phase,
                f"{one.step:,}",
                f"{one.seconds:.1f}",
                _number(one.training),
                _number(one.held_out),
                "returned" if one is best else "kept" if one.kept else "",
            ]
            for one in self.curve
        ]
        compared = f"in {self.groups} pairs" if self.groups > 1 else "which tell nothing of chance"
        below = [
            f"{self.trained:,} numbers trained on {self.batches} batches, judged on "
            f"{self.held_out} held out, {compared}; ended: {self.reason}"
        ]
        if self.skipped:
            below.append(f"steps skipped, since the loss was no finite number: {self.skipped}")
        return Table(self.title, HEADER, rows, [below])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
