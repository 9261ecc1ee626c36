"""What was won and what was lost, as a value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from tensorlrf.errors import FileFormatError

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """One module that owns parameters.

    name, places   qualified names: the first one, and all
    kind           its type before
    eligible       whether it could be factored; only such layers count in `keep_params`
    format, rank   of its factors; None where it stays as it is
    reason         why it stays; empty where it is factored
    params_*       of the weight for an eligible layer (the bias stays), else all of its own
    bytes_*        of the same
    flops_*        2 x multiply-adds in one pass over the first calibration batch; None where that
                   did not reach it
    weight_error   relative Frobenius error of the factors as stored
    output_error   relative error of the outputs without bias on the calibration inputs, root mean
                   square, against the target of the fit
    samples        input rows (for a conv: patches) that these were measured on
    data_aware     whether the factors were fitted to the inputs
    path           how it is executed, at the rows of the first calibration batch where known
    """

    name: str
    places: tuple[str, ...]
    kind: str
    eligible: bool
    format: str | None
    rank: int | tuple[int, ...] | None
    reason: str
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    weight_error: float | None = None
    output_error: float | None = None
    samples: int | None = None
    data_aware: bool = False
    path: str | None = None

    @property
    def factored(self) -> bool:
        return self.format is not None

    @property
    def share(self) -> float:
        """Parameters kept."""
        return self.params_after / self.params_before if self.params_before else 1.0


@dataclass(frozen=True)
class Totals:
    """Sums over layers."""

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int

    @property
    def share(self) -> float:
        """Parameters kept."""
        return self.params_after / self.params_before if self.params_before else 1.0


@dataclass(frozen=True)
class Report:
    """The result of `compress` beside the model.

    keep_params  the share that was asked for
    method       as given
    target       as given; without calibration it has no meaning
    batches      calibration batches, 0 without calibration
    layers       every module that owns parameters, once, in the order of the model
    model        the whole model's parameters and their bytes, shared ones counted once

    Prints itself as a table; `to_markdown()`; `to_json()` and `from_json()`.
    """

    keep_params: float
    method: str
    target: str
    batches: int
    layers: tuple[LayerReport, ...]
    model: Totals

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
        try:
            values = json.loads(text)
            version = values.pop("version")
            if version != FORMAT_VERSION:
                raise FileFormatError(
                    f"text is a report of format version {version}, this is {FORMAT_VERSION}; "
                    "update tensorlrf"
                )
            values["layers"] = tuple(_layer(row) for row in values["layers"])
            values["model"] = Totals(**values["model"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"text is no report: {type(error).__name__}: {error}") from None

    def to_markdown(self) -> str:
        """As Markdown: the factored layers, the totals, and what stays with its reason."""
        from tensorlrf.compression._render import markdown

        return markdown(self)

    def __str__(self) -> str:
        from tensorlrf.compression._render import plain

        return plain(self)

    def __rich__(self) -> Group:
        from tensorlrf.compression._render import rich_view

        return rich_view(self)


def _layer(values: Mapping[str, Any]) -> LayerReport:
    known = {field.name for field in fields(LayerReport)}
    row: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if set(row) != known:
        raise ValueError(f"a layer has the entries {sorted(row)}")
    return LayerReport(**row)
