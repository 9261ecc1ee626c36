"""`max_drop=`: the smallest plan by which a metric falls by no more than so much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

from torch import nn

from tensorlrf.compression.frontier._judge import LEVEL, Drop, Judge
from tensorlrf.compression.frontier._prospect import Prospect
from tensorlrf.compression.frontier._search import Bracket, ladder
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.report._quality import Quality
from tensorlrf.compression.report._report import Report
from tensorlrf.errors import ArgumentError

EVALUATIONS = 8
"""Of the metric to search by, at the most, those of the given model and of fitted ones among them.
"""

FITS = 3
"""Plans that are carried out, at the most."""

LOOKS = 2
"""At the data that confirm, at the most."""

CONFIRMED = 1 - (1 - LEVEL) / LOOKS
"""The level of each look, so that all of them together hold at `LEVEL` (Bonferroni)."""

WORTHWHILE = 0.95
"""A further fit is worth its time for less than this part of the size."""

CarryOut = Callable[[Plan], tuple[nn.Module, Report]]


@dataclass(frozen=True)
class _Fitted:
    """What a plan becomes, made once where it is asked for, and what the metric says of it."""

    made: Callable[[], tuple[nn.Module, Report]]
    drop: Drop


@dataclass
class Smallest:
    """A search for the smallest plan, on a ladder of shares.

    prospect  plans of every size
    judge     the metric to search by
    confirm   the same on data that the search does not see, or None
    """

    prospect: Prospect
    judge: Judge
    confirm: Judge | None
    max_drop: float
    _made: dict[int, _Fitted] = field(default_factory=dict)
    _resolution: float = 0.0
    _shares: list[float] = field(default_factory=ladder)
    _cheap: dict[int, Drop] = field(default_factory=dict)

    def planned(self) -> tuple[Plan, Quality]:
        """By the cheap models of plans. Raises ArgumentError where none will do."""
        bracket = self._narrowed(EVALUATIONS if self.confirm is None else EVALUATIONS - 1)
        rung, confirmed = self._confirmed(bracket.passes, self._cheap_model, bracket.power)
        if rung not in self._cheap:
            self._try(rung)
        return self._plan(rung), self._quality(self._cheap[rung], confirmed)

    def fitted(self, carry_out: CarryOut) -> tuple[nn.Module, Report]:
        """By models that are carried out: the cheap ones tell where to begin. Raises ArgumentError
        where none will do."""
        bracket = self._narrowed(EVALUATIONS - FITS)
        tried = Bracket(self.max_drop, self._predicted, self._end, power=bracket.power)
        rung = bracket.passes if bracket.done else max(bracket.passes, bracket.next(safe=True))
        for _ in range(FITS if self.confirm is None else FITS - 1):
            passed = tried.note(rung, self._fitted(rung, carry_out).drop)
            if tried.done:
                break
            following = tried.next(safe=True)
            if passed and self._shares[following] > WORTHWHILE * self._shares[rung]:
                break
            rung = following
        if tried.passes < 0:
            raise self._refusal({k: one.drop for k, one in self._made.items()}, "fitted ")

        def fitted(rung: int) -> nn.Module:
            return self._fitted(rung, carry_out).made()[0]

        rung, confirmed = self._confirmed(tried.passes, fitted, bracket.power)
        chosen = self._fitted(rung, carry_out)
        small, report = chosen.made()
        return small, replace(report, quality=self._quality(chosen.drop, confirmed))

    # ---- steps -----------------------------------------------------------------------------------

    def _narrowed(self, evaluations: int) -> Bracket:
        """A bracket of cheap models that were judged, within so many evaluations in all."""
        self._check_resolution(self._try(0), self.judge)
        if self.confirm is not None:
            drop = self.confirm.drop_of(lambda: self._cheap_model(0), self._who(0), CONFIRMED)
            self._check_resolution(drop, self.confirm)
        bracket = Bracket(self.max_drop, self._predicted, self._end)
        if not bracket.note(0, self._cheap[0]):
            raise self._refusal(self._cheap)
        while not bracket.done and self.judge.calls < evaluations:
            rung = bracket.next()
            bracket.note(rung, self._try(rung))
        return bracket

    def _confirmed(
        self, rung: int, model_at: Callable[[int], nn.Module], power: float
    ) -> tuple[int, Drop | None]:
        """The rung, or one above it, that data of their own confirm."""
        if self.confirm is None:
            return rung, None
        looks = {}
        for _ in range(LOOKS):
            make = partial(model_at, rung)
            looks[rung] = self.confirm.drop_of(make, self._who(rung), CONFIRMED)
            bracket = Bracket(self.max_drop, self._predicted, rung, power=power)
            if bracket.note(rung, looks[rung]):
                return rung, looks[rung]
            if rung == 0:
                break
            rung = bracket.next(safe=True)
        raise self._refusal(looks, "confirmed ")

    def _try(self, rung: int) -> Drop:
        """Judge the cheap model of a rung."""
        make = partial(self._cheap_model, rung)
        self._cheap[rung] = self.judge.drop_of(make, self._who(rung))
        return self._cheap[rung]

    def _cheap_model(self, rung: int) -> nn.Module:
        return self.prospect.truncated(self._plan(rung))

    def _quality(self, drop: Drop, confirmed: Drop | None) -> Quality:
        return self.judge.quality(
            drop,
            max_drop=self.max_drop,
            resolution=self._resolution,
            confirmed=confirmed,
        )

    def _fitted(self, rung: int, carry_out: CarryOut) -> _Fitted:
        """Carry out the plan of a rung, once, and judge it."""
        if rung not in self._made:
            made = cache(partial(carry_out, self._plan(rung)))
            drop = self.judge.drop_of(lambda: made()[0], self._who(rung))
            self._made[rung] = _Fitted(made, drop)
        return self._made[rung]

    # ---- the ladder ------------------------------------------------------------------------------

    def _plan(self, rung: int) -> Plan:
        return self.prospect.plan(self._shares[rung])

    def _who(self, rung: int) -> str:
        return f"the model at a share of {self._shares[rung]:.3g}"

    def _predicted(self, rung: int) -> float:
        """What the plan of a rung is predicted to lose; where that is not known, something that
        rises down the ladder as well."""
        plan = self.prospect.sketched(self._shares[rung])
        assert plan is not None
        loss = self.prospect.predicted(plan)
        return 1 / self._shares[rung] - 1 if loss is None else loss

    @cached_property
    def _end(self) -> int:
        """How many rungs there are plans for."""
        low, high = 0, len(self._shares)
        while high - low > 1:
            middle = (low + high) // 2
            there = self.prospect.sketched(self._shares[middle]) is not None
            low, high = (middle, high) if there else (low, middle)
        return high

    # ---- refusals --------------------------------------------------------------------------------

    def _check_resolution(self, drop: Drop, judge: Judge) -> None:
        if math.isinf(drop.mean):
            raise self._refusal({0: drop})
        excess = drop.bound - drop.mean
        self._resolution = max(self._resolution, excess)
        if self.max_drop < excess:
            raise ArgumentError(
                f"max_drop={self.max_drop:g} is below {excess:.3g}, the least "
                f"{judge.judged.drop} that {judge.words} tell apart from none; allow more, "
                "or judge by more examples"
            )

    def _refusal(self, drops: dict[int, Drop], how: str = "") -> ArgumentError:
        rung, drop = min(drops.items(), key=lambda pair: pair[1].bound)
        falls = self.judge.judged.falls
        return ArgumentError(
            f"max_drop={self.max_drop:g}: no {how}plan {falls} by no more than that; the closest, "
            f"keep_params={self._shares[rung]:.3g}, {falls} by {drop.mean:.3g}, which may be "
            f"{drop.bound:.3g}; allow more, or compress with keep_params="
        )
