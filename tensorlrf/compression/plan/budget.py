"""What may be kept of a model, as a value: one share of what its layers cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorlrf.compression._words import short
from tensorlrf.errors import ArgumentError

ERROR = "error"

PARAMS, TOTAL = "keep_params", "keep_total"

KEEPS = {
    PARAMS: "parameters",
    TOTAL: "parameters",
    "keep_bytes": "bytes",
    "keep_flops": "FLOPs",
    "keep_latency": "time",
}
"""Budgets that are shares -> of what: of the eligible layers, but for `keep_total` and time, which
are the whole model's."""

LATENCY = "keep_latency"

OF_PARAMS = (PARAMS, TOTAL)
"""Those that count parameters."""

ON_INPUTS = ("keep_flops", LATENCY)
"""Those that depend on what the layers are called with."""

BUDGETS = (*KEEPS, ERROR)


@dataclass(frozen=True)
class Budget:
    """One number that all layers share, or of each of them.

    word   the argument that it is given by: one of `BUDGETS`
    value  a share in (0, 1]; of "error" the relative error of each layer, in (0, 1)
    rest   what the model costs beside its layers, where the share is one of the whole
    gone   what that is less than when dense, since other layers have budgets of their own
    left   room for the layers, where trials have told that it is another
    """

    word: str
    value: float
    rest: float = 0.0
    gone: float = 0.0
    left: float | None = None

    @classmethod
    def of(cls, **given: float | None) -> Budget | None:
        """Of the arguments by these words, all but one of which are None; None where all are.

        Raises ArgumentError for two of them, and for a value that cannot be.
        """
        for word, value in given.items():
            _check(word, value)
        found = [cls(word, float(value)) for word, value in given.items() if value is not None]
        if len(found) > 1:
            one, other = (f"{b.word}={given[b.word]!r}" for b in found[:2])
            raise ArgumentError(f"{one} and {other} are two budgets; give one of them")
        return found[0] if found else None

    @property
    def shared(self) -> bool:
        """Whether layers share it, so that what one has is what another has not."""
        return self.word in KEEPS

    @property
    def unit(self) -> str:
        """What it is a share of."""
        return KEEPS[self.word]

    def room(self, dense: float) -> float:
        """For layers that cost so much when dense."""
        share = self.value * (dense + self.rest + self.gone) - self.rest
        return share if self.left is None else self.left

    def least(self, dense: float, cost: float) -> float:
        """The value that leaves such layers room for a cost, in four digits."""
        return math.ceil((cost + self.rest) / (dense + self.rest + self.gone) * 1e4) / 1e4

    def amount(self, cost: float) -> str:
        """A cost in words."""
        if self.word == LATENCY:
            return f"{cost * 1e3:.3g} ms"
        return f"{math.floor(cost * (1 + 1e-12)):,} {self.unit}"

    def kept_as(self, word: str) -> float | None:
        """The value where it is the budget of that word, else None."""
        return self.value if self.word == word else None


def _check(word: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if word in KEEPS and not (number and 0 < value <= 1):
        whose = "model's" if word in (LATENCY, TOTAL) else "eligible layers'"
        raise ArgumentError(
            f"{word}={value!r} must be a share in (0, 1]: 0.25 keeps at most a quarter "
            f"of the {whose} {KEEPS[word]}"
        )
    if word == ERROR and not (number and 0 < value < 1):
        raise ArgumentError(f"error={value!r} must be a relative error in (0, 1), such as 0.05")


def budget_words(budgets: Mapping[str, float | None]) -> str:
    """The budget asked for, the others None."""
    given = [f"{word} {value:g}" for word, value in budgets.items() if value is not None]
    return given[0] if given else "ranks of its own"


def cost_words(
    budgets: Mapping[str, float | None], dense: float | None, planned: float | None
) -> list[str]:
    """A line on what the eligible layers cost, where that is known; time is told apart."""
    given = [word for word in KEEPS if budgets[word] is not None]
    if not given or dense is None or planned is None or given[0] == LATENCY:
        return []
    share = planned / dense if dense else 1.0
    return [
        f"eligible layers: {short(dense)} to {short(planned)} {KEEPS[given[0]]} as planned "
        f"({share:.1%}, asked for at most {budgets[given[0]]:.1%})"
    ]
