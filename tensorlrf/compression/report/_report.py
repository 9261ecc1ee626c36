"""What was won and what was lost, as a value."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Table
from tensorlrf.compression.page.document import check_texts
from tensorlrf.compression.page.environment import Environment
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.budget import BUDGETS
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.refinement._refinement import Refinement
from tensorlrf.compression.report._json import check_version, parsed, read_as, read_dataclass
from tensorlrf.compression.report._memory import MemoryForecast
from tensorlrf.compression.report._page import FrontierLike, beside, report_page
from tensorlrf.compression.report._plot import plot_layers
from tensorlrf.compression.report._quality import Quality
from tensorlrf.compression.report._rows import (
    BatchNorms,
    ExpertPool,
    FoldedNorms,
    Latency,
    LayerReport,
    SharedBasis,
    Totals,
)
from tensorlrf.compression.report._told import told_table
from tensorlrf.files.arguments import PathLike

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Report:
    """The result of `compress` beside the model.

    Prints itself as a table; `to_markdown()`; `to_json()` and `from_json()`; `plot(path)`;
    `to_html(path)`, the page to show.

    Parameters
    ----------
    keep_params, error : float or None
        The budget that was asked for.
    target : str or None
        As given; None without calibration.
    affine : bool
        As given.
    batches : int
        Calibration batches fitted to, 0 without calibration.
    held_out : int
        Further batches that serve to judge.
    layers : tuple of LayerReport
        Every module that owns parameters, once, in the order of the model.
    model : Totals
        The whole model's parameters and their bytes, shared ones counted once.
    model_error : float or None
        Relative error of the model's outputs on the held-out batches, root mean square.
    batch_norms : BatchNorms or None
        What became of batch normalisations, where new statistics were tried.
    latency : Latency or None
        Where an example was given.
    keep_bytes, keep_flops, keep_latency, keep_total : float or None
        The budget that was asked for, where it is one of these.
    allotment : Allotment
        How the ranks came about, as in the plan.
    metric : str or None
        As given, or as "auto" has chosen; None without calibration.
    memory : MemoryForecast or None
        What calibration was to take of it, told before.
    refinement : Refinement or None
        How the model was refined, with `refine=`. Errors of layers are those before it.
    model_error_interval : tuple of float or None
        The 95% interval of `model_error`, by bootstrap over the samples held out, or over their
        groups where these were told.
    quality : Quality or None
        What a metric of the user's own says, where there is one.
    folded : FoldedNorms or None
        What became of batch normalisations, with `fold_batch_norms=True`.
    bases : tuple of SharedBasis
        Right factors that layers were to have in common, kept or not, with `shared=`.
    pools : tuple of ExpertPool
        Of mixtures of experts, what reached each.
    from_moments : bool
        Whether `batches` are those of moments that were given in their place.
    environment : Environment or None
        With what it was made; None in what older versions wrote.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(model, method=tensorlrf.SVD(rank=8))
    >>> row = report.layer("0")
    >>> row.format, row.rank, row.params_after
    ('lowrank', 8, 1024)
    """

    keep_params: float | None
    error: float | None
    target: str | None
    affine: bool
    batches: int
    held_out: int
    layers: tuple[LayerReport, ...]
    model: Totals
    model_error: float | None = None
    batch_norms: BatchNorms | None = None
    latency: Latency | None = None
    keep_bytes: float | None = field(default=None, metadata={"later": True})
    keep_flops: float | None = field(default=None, metadata={"later": True})
    keep_latency: float | None = field(default=None, metadata={"later": True})
    keep_total: float | None = field(default=None, metadata={"later": True})
    allotment: Allotment = field(default_factory=Allotment, metadata={"later": True})
    metric: str | None = field(default=None, metadata={"later": True})
    memory: MemoryForecast | None = field(default=None, metadata={"later": True})
    refinement: Refinement | None = field(default=None, metadata={"later": True})
    model_error_interval: tuple[float, float] | None = field(default=None, metadata={"later": True})
    quality: Quality | None = field(default=None, metadata={"later": True})
    folded: FoldedNorms | None = field(default=None, metadata={"later": True})
    bases: tuple[SharedBasis, ...] = field(default=(), metadata={"later": True})
    pools: tuple[ExpertPool, ...] = field(default=(), metadata={"later": True})
    from_moments: bool = field(default=False, metadata={"later": True})
    environment: Environment | None = field(default=None, metadata={"later": True})

    @property
    def budgets(self) -> dict[str, float | None]:
        """What was asked for, by the arguments of `compress`."""
        return {word: getattr(self, word) for word in BUDGETS}

    @property
    def eligible(self) -> Totals:
        """Over the eligible layers' weights, also those that stayed dense for want of a rank."""
        rows = [row for row in self.layers if row.eligible]
        return Totals(
            sum(row.params_before for row in rows),
            sum(row.params_after for row in rows),
            sum(row.bytes_before for row in rows),
            sum(row.bytes_after for row in rows),
        )

    @property
    def flops(self) -> tuple[int, int] | None:
        """(before, after) over the factored layers; None unless all of them are known."""
        rows = [row for row in self.layers if row.factored]
        before = [row.flops_before for row in rows if row.flops_before is not None]
        after = [row.flops_after for row in rows if row.flops_after is not None]
        if not rows or len(before) < len(rows) or len(after) < len(rows):
            return None
        return sum(before), sum(after)

    def layer(self, name: str) -> LayerReport:
        """The row of a layer, by any of its names. Raises KeyError."""
        for row in self.layers:
            if name in row.places:
                return row
        raise KeyError(name)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({"version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`. Raises FileFormatError for anything else."""
        with read_as("report"):
            values = parsed(text)
            check_version(values.pop("version"), FORMAT_VERSION, "report")
            made = read_dataclass(cls, values, "it")
            made._table()
        return made

    def to_markdown(self) -> str:
        """As Markdown: the factored layers, the totals, and what stays with its reason."""
        return self._table().to_markdown()

    def to_html(
        self,
        path: PathLike,
        *,
        frontier: FrontierLike | None = None,
        sensitivity: Sensitivity | None = None,
        saved: PathLike | None = None,
        title: str | None = None,
        date: str | None = None,
    ) -> None:
        """Write a page that one can show: one file, which asks no network for anything.

        What was won and what was lost, every layer in a table to sort and search, why the others
        stayed, how to load the model, and with what it was made. The same report and arguments give
        the same bytes. A page that is there is replaced.

        Parameters
        ----------
        path : str or path
            Of the page, with the suffix .html.
        frontier : Frontier, optional
            Of the same model, to be drawn.
        sensitivity : Sensitivity, optional
            What each layer can lose, to be drawn; by default that of the frontier.
        saved : str or path, optional
            The file or the folder with the compressed model, whose name the page tells, and how to
            load it; no more of the path than that.
        title : str, optional
            Of the page.
        date : str, optional
            As it is to be read; without it the page tells none.

        Raises
        ------
        ArgumentError
            For another suffix, and for a frontier or a sensitivity of another model.
        FileError
            Where the page cannot be written.

        Examples
        --------
        >>> import os, tempfile
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> small, report = tensorlrf.compress(model, keep_params=0.5, skip=[])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "report.html")
        ...     report.to_html(path, title="Two layers, halved", date="2026-03-01")
        ...     with open(path, encoding="utf-8") as file:
        ...         print(file.readline().strip())
        <!doctype html>
        """
        check_texts(title, date)
        names = {place for row in self.layers for place in row.places}
        more = beside(names, frontier, sensitivity)
        report_page(self, more, saved, title, date).write(path)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw parameters and errors of every layer to a picture.

        Parameters
        ----------
        path : str or path
            Its suffix says of which kind.

        Raises
        ------
        UnsupportedError
            Where matplotlib is missing, the extra `plot`.
        """
        rows = [row for row in self.layers if row.factored]
        plot_layers(
            path,
            [row.name for row in rows],
            [row.params_before for row in rows],
            [row.params_after for row in rows],
            [row.weight_error for row in rows],
            [row.output_error for row in rows],
        )

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        return told_table(self)
