"""Two models side by side, as a value."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import bytes_words, error_words, rank_words

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 1

HEADER: Header = (
    ("layer", "left"),
    ("kind", "left"),
    ("a", "left"),
    ("rank", "right"),
    ("parameters", "right"),
    ("b", "left"),
    ("rank", "right"),
    ("parameters", "right"),
    ("difference", "right"),
)


@dataclass(frozen=True)
class LayerSide:
    """A layer of one of two.

    Parameters
    ----------
    kind : str
        Its type, of a factored layer that of the layer that it stands for.
    format : str
        Of its factors, in a plan the method; "dense" where it has none.
    rank : int, tuple of int or None
        Where it has factors and that is known.
    shape : tuple of int
        Of its dense weight; () where that is not known.
    params : int or None
        Its own, of a file those of the factors alone.
    """

    kind: str
    format: str
    rank: int | tuple[int, ...] | None
    shape: tuple[int, ...]
    params: int | None


@dataclass(frozen=True)
class ComparedLayer:
    """A layer of two.

    Parameters
    ----------
    name : str
    a, b : LayerSide or None
        None where there is none such, or nothing is told of it.
    difference : float or None
        Of the dense weights, in the Frobenius norm, over the larger of the two norms; None where
        there are not two of one shape.
    """

    name: str
    a: LayerSide | None
    b: LayerSide | None
    difference: float | None = None

    @property
    def alike(self) -> bool:
        """Whether nothing is known to differ."""
        return self.a == self.b and not self.difference


@dataclass(frozen=True)
class OutputsApart:
    """How far the outputs of two models are apart, over all rows of all batches, without padding.

    Parameters
    ----------
    batches, rows : int
        That were compared; a row is a sample, or a token.
    error : float
        Root of the sum of squared differences, over that of the larger outputs of the two.
    cosine : float
        Mean over rows.
    agreement : float or None
        Share of rows with one arg max; None of what is no logits.
    kl : float or None
        Mean of KL(a || b) over rows, in nats: the one number in which a and b are not alike. None
        of what is no logits.
    """

    batches: int
    rows: int
    error: float
    cosine: float
    agreement: float | None
    kl: float | None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`. Prints itself as a table; `to_markdown()`; `to_json()`.

    Parameters
    ----------
    layers : tuple of ComparedLayer
        In the order of `a`, those that only `b` has after.
    params, bytes : tuple
        Of `a` and of `b`, as far as known.
    outputs : OutputsApart or None
        Where there was data.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(model, keep_params=0.5)
    >>> tensorlrf.compare(model, small)
    Comparison: 1 of 1 layer differs, 4,160 and 2,112 parameters
    """

    layers: tuple[ComparedLayer, ...]
    params: tuple[int | None, int | None]
    bytes: tuple[int | None, int | None]
    outputs: OutputsApart | None = None

    @property
    def differing(self) -> tuple[ComparedLayer, ...]:
        """The layers that are not alike, in their order."""
        return tuple(row for row in self.layers if not row.alike)

    @property
    def furthest(self) -> ComparedLayer | None:
        """The layer whose weights differ most; None where none is known to differ."""
        known = [row for row in self.layers if row.difference]
        return max(known, key=lambda row: row.difference or 0.0) if known else None

    def layer(self, name: str) -> ComparedLayer:
        """The row of a layer. Raises KeyError."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self) -> str:
        """As JSON text; null for numbers that are none."""
        values = {"version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(_finite(values), allow_nan=False)

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def __repr__(self) -> str:
        n, all_ = len(self.differing), len(self.layers)
        told = f"{n} of {all_} layer{'' if all_ == 1 else 's'} differ{'s' if n == 1 else ''}"
        if None not in self.params:
            told += f", {self.params[0]:,} and {self.params[1]:,} parameters"
        if self.outputs is not None:
            told += f", outputs {self.outputs.error:.3g} apart"
        return f"Comparison: {told}"

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        rows = [_cells(row) for row in self.differing]
        return Table("compare: what differs", HEADER, rows, [self._lines()])

    def _lines(self) -> list[str]:
        lines = []
        alike = len(self.layers) - len(self.differing)
        if alike:
            lines.append(f"{alike:,} layers are alike")
        for what, pair, words in (
            ("parameters", self.params, lambda n: f"{n:,}"),
            ("bytes", self.bytes, bytes_words),
        ):
            if None not in pair:
                a, b = (int(n or 0) for n in pair)
                share = f" ({b / a:.1%})" if a else ""
                lines.append(f"{what}: {words(a)} and {words(b)}{share}")
        if self.furthest is not None:
            lines.append(
                f"furthest apart: the weights of {self.furthest.name}, by "
                f"{error_words(self.furthest.difference)}"
            )
        if self.outputs is not None:
            lines.append(_told(self.outputs))
        return lines


def _told(found: OutputsApart) -> str:
    words = [f"{found.error:.3g} apart relative to the larger", f"cosine {found.cosine:.6g}"]
    if found.agreement is not None:
        words.append(f"agreement {found.agreement:.4g}")
    if found.kl is not None:
        words.append(f"KL(a || b) {found.kl:.3g} nats")
    of = f"{found.rows:,} rows in {found.batches:,} batches"
    return f"outputs: {', '.join(words)}; of {of}"


def _cells(row: ComparedLayer) -> list[str]:
    sides = [_side(row.a), _side(row.b)]
    kinds = dict.fromkeys(side.kind for side in (row.a, row.b) if side is not None)
    return [row.name, ", ".join(kinds), *sides[0], *sides[1], error_words(row.difference)]


def _side(side: LayerSide | None) -> list[str]:
    if side is None:
        return ["-", "", ""]
    rank = "" if side.rank is None else rank_words(side.rank)
    return [side.format, rank, "?" if side.params is None else f"{side.params:,}"]


def _finite(value: object) -> object:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
