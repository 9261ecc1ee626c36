"""`evaluate=` and `max_drop=` of `plan` and `compress`, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.frontier._judge import Evaluate, Judge, judges_of
from tensorlrf.compression.frontier._prospect import Prospect
from tensorlrf.compression.frontier._smallest import CarryOut, Smallest
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.report._report import Report
from tensorlrf.errors import ArgumentError


@dataclass(frozen=True)
class Metric:
    """A metric of the user's own, and how far it may fall.

    search    model -> what it says, or None where there is none
    confirm   the same on other data, or None
    max_drop  None where there is another budget
    data      what models are fitted to, as it was given
    """

    search: Evaluate | None
    confirm: Evaluate | None
    max_drop: float | None
    data: Any = None

    @classmethod
    def of(cls, evaluate: Any, max_drop: Any, request: Request, *, calibration: Any) -> Metric:
        """Of the arguments. Raises ArgumentError for what cannot be."""
        search, confirm = (None, None) if evaluate is None else judges_of(evaluate)
        if max_drop is None:
            return cls(search, confirm, None, calibration)
        number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
        if not number or not 0 < max_drop < float("inf"):
            raise ArgumentError(
                f"max_drop={max_drop!r} must be above 0, in units of what evaluate returns"
            )
        if request.budget is not None:
            given = f"{request.budget.word}={request.budget.value:g}"
            raise ArgumentError(f"max_drop={max_drop!r} and {given} are two budgets; give one")
        if search is None:
            raise ArgumentError(
                f"max_drop={max_drop!r} needs evaluate=, a function of a model to a number, the "
                "higher the better, or to a score for each example"
            )
        if calibration is None:
            raise ArgumentError(
                f"max_drop={max_drop!r} needs calibration=, inputs that tell what layers can lose"
            )
        if request.objective != "size":
            raise ArgumentError(
                f"max_drop={max_drop!r} looks for the smallest model, so that objective="
                f"{request.objective!r} cannot be met as well; give one of them"
            )
        return cls(search, confirm, float(max_drop), calibration)

    @property
    def asked(self) -> dict[str, Any]:
        """What a journal is to know of it."""
        return {"search": self.search, "confirm": self.confirm, "max_drop": self.max_drop}

    def planned(self, model: nn.Module, request: Request, data: Calibration) -> Plan:
        """The smallest plan, by the cheap models of plans."""
        return self._smallest(model, request, data).planned()[0]

    def fitted(
        self, model: nn.Module, request: Request, data: Calibration, carry_out: CarryOut
    ) -> tuple[nn.Module, Report]:
        """The smallest model, and its report."""
        return self._smallest(model, request, data).fitted(carry_out)

    def _smallest(self, model: nn.Module, request: Request, data: Calibration) -> Smallest:
        assert self.search is not None
        assert self.max_drop is not None
        prospect = Prospect.of(model, request, data)
        kept = request.kept
        judge = Judge(self.search, model, kept=kept, calibration=self.data)
        confirm = None
        if self.confirm is not None:
            confirm = Judge(self.confirm, model, "evaluate[1]", kept, self.data)
        return Smallest(prospect, judge, confirm, self.max_drop)

    def judge(self, model: nn.Module, request: Request) -> Judge | None:
        """Of models beside the given one."""
        if self.search is None:
            return None
        return Judge(self.search, model, kept=request.kept, calibration=self.data)


def with_quality(report: Report, judge: Judge | None, small: nn.Module) -> Report:
    """The report with what the metric says of the compressed model."""
    if judge is None:
        return report
    return replace(report, quality=judge.quality(judge.drop(small, "the compressed model")))
