"""A plan: which layer gets which factors, as a value that prints itself and can be edited."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import rank_words, staying
from tensorlrf.compression.methods import (
    MOST_ENTRIES,
    MethodLike,
    as_method,
    method_from_dict,
)
from tensorlrf.compression.plan._schema import (
    LAYER,
    PLAN,
    allotment_of,
    check_budgets,
    check_types,
    folded_of,
)
from tensorlrf.compression.plan._versions import VERSION, check_version, method_of
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.budget import BUDGETS, budget_words, cost_words
from tensorlrf.compression.report._json import parsed, read_as
from tensorlrf.compression.report._rows import FoldedNorms
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.ladder import LayerRank
from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError, FileFormatError, TensorlrfError, shown

if TYPE_CHECKING:
    from rich.console import Group

HEADER: Header = (
    ("layer", "left"),
    ("kind", "left"),
    ("weight", "right"),
    ("method", "left"),
    ("rank", "right"),
    ("parameters", "right"),
    ("kept", "right"),
)

LONGEST_SIDE = (1 << 31) - 1
"""Rows and columns that LAPACK counts to."""


@dataclass(frozen=True)
class LayerPlan:
    """What is to become of one module that owns parameters.

    Parameters
    ----------
    name, places
        Qualified names: the first one, and all.
    kind : str
        Its type.
    shape, groups
        Of the weight of a layer that can be factored; () otherwise.
    method : Method or None
        The method with its options and its rank (or error, or share for "auto"); None where the
        layer stays.
    params : int
        Of the weight, or of all its own parameters where it cannot be factored.
    eligible : bool
        Whether it can be factored and was not asked to stay; such layers count in `keep_params`.
    reason : str
        Why it stays; empty where it gets factors.
    """

    name: str
    places: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    groups: int
    method: Method | None
    params: int
    eligible: bool
    reason: str = ""

    @property
    def factored(self) -> bool:
        """Whether it gets factors."""
        return self.method is not None

    @property
    def rank(self) -> LayerRank | None:
        """The rank where it is known before the fit."""
        rank = None if self.method is None else self.method.rank
        return None if isinstance(rank, (float, str)) else rank  # type: ignore[return-value]

    @property
    def params_after(self) -> int | None:
        """Parameters of the weight or of its factors; None where the fit decides."""
        if self.method is None:
            return self.params
        if isinstance(self.method.rank, float):
            return int(self.method.rank * self.params)
        if self.rank is None:
            return None
        return self.method.planned_params(self.rank, self.shape, self.groups)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "places": list(self.places),
            "kind": self.kind,
            "shape": list(self.shape),
            "groups": self.groups,
            "method": None if self.method is None else self.method.to_dict(),
            "params": self.params,
            "eligible": self.eligible,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Plan:
    """What is to become of every module of a model that owns parameters.

    Prints itself as a table; `to_json()` and `from_json()`; `edit()`. It is carried out by
    `tensorlrf.apply(model, plan)`.

    Parameters
    ----------
    architecture : str
        A hash of the model's structure: names, types and shapes, no values.
    keep_params : float or None
        The share asked for, of the layers without a budget of their own.
    error : float or None
        The relative error asked for, likewise.
    layers : tuple of LayerPlan
        In the order of the model.
    keep_bytes, keep_flops, keep_latency, keep_total : float or None
        As `keep_params`: one budget at the most is given.
    allotment : Allotment
        How the ranks came about.
    folded : FoldedNorms or None
        Batch normalisations that are folded first; None where none were to be.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> plan = tensorlrf.plan(model, keep_params=0.5, skip=[])
    >>> plan = plan.edit("0", rank=4).edit("2", leave=True)
    >>> [layer.rank for layer in plan.layers]
    [4, None]
    >>> tensorlrf.Plan.from_json(plan.to_json()) == plan
    True
    """

    architecture: str
    keep_params: float | None
    error: float | None
    layers: tuple[LayerPlan, ...]
    keep_bytes: float | None = None
    keep_flops: float | None = None
    keep_latency: float | None = None
    keep_total: float | None = None
    allotment: Allotment = field(default_factory=Allotment)
    folded: FoldedNorms | None = None

    @property
    def budgets(self) -> dict[str, float | None]:
        """What was asked for, by the arguments of `plan`."""
        return {word: getattr(self, word) for word in BUDGETS}

    def layer(self, name: str) -> LayerPlan:
        """The row of a layer, by any of its names. Raises KeyError."""
        for row in self.layers:
            if name in row.places:
                return row
        raise KeyError(name)

    @property
    def factored(self) -> tuple[LayerPlan, ...]:
        """The layers that get factors."""
        return tuple(row for row in self.layers if row.method is not None)

    def edit(
        self,
        glob: str,
        *,
        method: MethodLike | None = None,
        rank: Rank | None = None,
        error: float | None = None,
        leave: bool = False,
    ) -> Plan:
        """A plan in which the layers that a glob matches have another method or budget, or stay.

        Parameters
        ----------
        glob : str
            Matched against qualified names; layers that cannot be factored are passed over.
        method : str or Method, optional
            A word or a config; by default the present one.
        rank, error
            The new budget; a method without one takes over the present one.
        leave : bool
            True: the layers stay as they are.

        Returns
        -------
        Plan

        Raises
        ------
        ArgumentError
            Where nothing matches, or what is asked for cannot be.
        """
        if leave == (method is not None or rank is not None or error is not None):
            raise ArgumentError("give method=, rank= or error=, or leave=True, one of these")
        rows, hit = [], False
        for row in self.layers:
            if not row.shape or not any(fnmatchcase(name, glob) for name in row.places):
                rows.append(row)
                continue
            hit = True
            if leave:
                rows.append(replace(row, method=None, reason="left by an edit of the plan"))
                continue
            chosen = row.method if method is None else as_method(method)
            if chosen is None:
                chosen = as_method("svd")
            if rank is not None or error is not None:
                chosen = chosen.with_budget(rank=rank, error=error)
            elif not chosen.budgeted and row.method is not None:
                chosen = chosen.with_budget(rank=row.method.rank, error=row.method.error)
            rows.append(
                _checked(replace(row, method=chosen.for_shape(row.shape), reason="", eligible=True))
            )
        if not hit:
            names = ", ".join(row.name for row in self.layers if row.shape)[:300]
            raise ArgumentError(
                f"glob={glob!r} matches no layer that can be factored; there are {names}"
            )
        return replace(self, layers=tuple(rows), allotment=self.allotment.edited())

    def to_json(self) -> str:
        """As JSON text, indented, for people to edit."""
        values = {
            "version": VERSION,
            "architecture": self.architecture,
            **self.budgets,
            "allotment": asdict(self.allotment),
            "folded": None if self.folded is None else asdict(self.folded),
            "layers": [row.to_dict() for row in self.layers],
        }
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of `to_json`.

        Parameters
        ----------
        text : str

        Returns
        -------
        Plan

        Raises
        ------
        FileFormatError
            For what is no plan.
        ArgumentError, RankError
            Naming the layer, for a method, an option or a rank that cannot be.
        """
        with read_as("plan"):
            values = parsed(text)
            version = check_version(values.pop("version", 1))
            rows = values.pop("layers")
            check_types(values, PLAN[min(version, max(PLAN))], "it")
            check_budgets(values)
            if "allotment" in values:
                values["allotment"] = allotment_of(values["allotment"])
            if values.get("folded") is not None:
                values["folded"] = folded_of(values["folded"])
            twice = [name for name, n in Counter(row["name"] for row in rows).items() if n > 1]
            if twice:
                raise FileFormatError(f"text is no plan: layer {twice[0]!r} stands twice")
            return cls(**values, layers=tuple(_layer(row, version) for row in rows))

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        """The layers that get factors, the totals, and what stays."""
        budget = budget_words(self.budgets)
        title = f"plan, {budget}, architecture {self.architecture[:12]}"
        rows = [_cells(row) for row in self.factored]
        costs = cost_words(self.budgets, self.allotment.dense_cost, self.allotment.cost)
        folds = [] if self.folded is None else self.folded.words
        lines = [
            _total(self), *costs, *self.allotment.words, *folds, *staying(self.layers, "params")
        ]  # fmt: skip
        return Table(title, HEADER, rows, [lines])


def _cells(row: LayerPlan) -> list[str]:
    after = row.params_after
    at_most = row.method is not None and isinstance(row.method.rank, float)
    method = row.method
    assert method is not None
    rank = rank_words(row.rank) if row.rank is not None else "?"
    if method.error is not None:
        rank = f"error {method.error:g}"
    return [
        row.name,
        row.kind if row.groups == 1 else f"{row.kind}, {row.groups} groups",
        " x ".join(map(str, row.shape)),
        str(method),
        rank,
        f"{row.params:,} to " + ("?" if after is None else f"{after:,}"),
        "?" if after is None else ("<= " if at_most else "") + f"{after / row.params:.1%}",
    ]


def _total(plan: Plan) -> str:
    rows = [row for row in plan.layers if row.eligible]
    before = sum(row.params for row in rows)
    after = [row.params_after for row in rows]
    if any(n is None for n in after):
        return f"eligible weights: {before:,} parameters; the fit decides the ranks"
    total = sum(n for n in after if n is not None)
    share = total / before if before else 1.0
    return f"eligible weights: {before:,} to {total:,} parameters ({share:.1%})"


def _layer(values: Mapping[str, Any], version: int) -> LayerPlan:
    values = dict(values)
    check_types(values, LAYER, f"layer {values.get('name')!r}")
    try:
        if values["method"] is not None:
            values["method"] = method_from_dict(method_of(version, values["method"]))
        for entry in ("places", "shape"):
            values[entry] = tuple(values[entry])
        return _checked(LayerPlan(**values))
    except TensorlrfError as error:
        raise type(error)(f"plan: layer {values['name']!r}: {error}") from None


def _checked(row: LayerPlan) -> LayerPlan:
    """The row, if it hangs together and its rank is one that the layer can have."""
    O, *rest = row.shape or (1, 1)
    if max(row.shape, default=1) > LONGEST_SIDE or len(row.shape) > MOST_ENTRIES:
        raise ArgumentError(
            f"shape {shown(row.shape)} has more than {MOST_ENTRIES} sides, or one above "
            f"{LONGEST_SIDE:,}, and so no decomposition"
        )
    if not rest or min(row.shape, default=1) < 1 or row.groups < 1 or O % row.groups:
        raise ArgumentError(
            f"shape {row.shape} in {row.groups} groups is none of a weight, (out, in, ...)"
        )
    if row.params < 0 or (row.shape and row.params != math.prod(row.shape)):
        raise ArgumentError(f"params={row.params} is not what a weight {row.shape} has")
    if row.name not in row.places:
        raise ArgumentError(f"its places are {', '.join(row.places)}, itself not among them")
    if row.eligible and not row.shape:
        raise ArgumentError(f"{row.name} cannot be eligible: {row.reason or row.kind}")
    if row.method is None:
        return row
    if not row.shape:
        raise ArgumentError(f"{row.name} cannot be factored: {row.reason or row.kind}")
    if not row.method.budgeted:
        raise ArgumentError(f"{row.name}: the method {row.method} needs a rank or an error")
    reason = row.method.why_not(row.shape, row.groups)
    if reason:
        raise ArgumentError(f"{row.name} cannot have this format: {reason}")
    if row.rank is not None:
        row.method.planned_params(row.rank, row.shape, row.groups)
    return row
