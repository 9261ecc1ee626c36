"""What a recipe may say: the arguments of `compress`, and what stands in a file for objects."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from tensorlrf.compression._apply import apply
from tensorlrf.compression._compress import compress
from tensorlrf.compression._compressed import refinement_for
from tensorlrf.compression.fit._fitting import Fitting
from tensorlrf.compression.frontier._metric import Metric
from tensorlrf.compression.plan._planning import plan
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.budget import BUDGETS, Budget
from tensorlrf.compression.recipe._values import in_text
from tensorlrf.errors import ArgumentError

TEXTS, OUTPUT = "calibration", "output"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Plain text to fit to, in the words of the command line.

    Parameters
    ----------
    text : str or sequence of str
        Files: documents between blank lines or, without these, one a line.
    tokens : int, optional
        Tokens of a window of text.
    batch_size : int, optional
        Windows in a batch.
    max_batches : int, optional
        Batches to fit to, at most.
    """

    text: str | tuple[str, ...] = ()
    tokens: int | None = None
    batch_size: int | None = None
    max_batches: int | None = None

    def __post_init__(self) -> None:
        files = (self.text,) if isinstance(self.text, str) else self.text
        object.__setattr__(self, "text", files)
        if not all(files):
            raise ArgumentError("text has an empty name; give the names of files")
        for name in ("tokens", "batch_size", "max_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name}={value} must be at least 1")


COMMAND: dict[str, Any] = {
    TEXTS: Texts | None,
    "groups": str | None,
    "sensitivity": str | None,
    "moments": str | None,
    OUTPUT: str | None,
}
"""Key -> what a file says where Python has objects: what the options of the command line say."""

READ_BY_COMMAND = (TEXTS, "groups", OUTPUT)
"""Those that the command line alone can follow: it has a tokenizer, and writes."""


@dataclass(frozen=True)
class Key:
    """One that a recipe may have.

    hint     what it may be
    default  of `compress`
    """

    hint: Any
    default: Any


@cache
def keys() -> dict[str, Key]:
    """By their words, in the order of `compress`: those that a text can say."""
    hints = get_type_hints(inspect.unwrap(compress)) | COMMAND
    found = {
        name: Key(hints[name], parameter.default)
        for name, parameter in inspect.signature(compress).parameters.items()
        if parameter.default is not parameter.empty and in_text(hints[name])
    }
    return {**found, OUTPUT: Key(COMMAND[OUTPUT], None)}


@cache
def not_in_text() -> frozenset[str]:
    """The other arguments of `compress`."""
    return frozenset(inspect.signature(compress).parameters) - frozenset((*keys(), "model"))


@cache
def keys_of_fits() -> tuple[str, ...]:
    """Those that say how a plan is carried out, not what it is."""
    of_apply = inspect.signature(apply).parameters
    of_plan = [key for key in inspect.signature(plan).parameters if key not in of_apply]
    return tuple(key for key in keys() if key not in of_plan)


def check(**given: Any) -> None:
    """Raise ArgumentError or RankError for what cannot be with any model, as `compress` does."""
    known = inspect.signature(compress).parameters
    values: dict[str, Any] = {name: parameter.default for name, parameter in known.items()}
    values |= {key: value for key, value in given.items() if key not in (*COMMAND, "evaluate")}
    values["moments"], values["groups"] = given.get("moments"), given.get("groups")
    budget = Budget.of(**{word: values[word] for word in BUDGETS})
    asked = (key for key in inspect.signature(Request.of).parameters if key in values)
    request = Request.of(budget, **{key: values[key] for key in asked}, whole=True)
    calibrated = TEXTS in given or "moments" not in given
    metric = None if values["max_drop"] is None else _no_metric
    Metric.of(metric, values["max_drop"], request, calibration=[] if calibrated else None)
    Fitting(**{f.name: values[f.name] for f in fields(Fitting)}).check(calibrated=calibrated)
    refinement_for(values["refine"], values["holdout"], values["max_drop"], calibrated=calibrated)


def _no_metric(model: Any) -> float:
    """In the place of one that is given beside a recipe."""
    raise NotImplementedError
