"""Sizes by one rule or another, the structures made smaller by them, and which rule serves best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from torch import nn

from tensorlrf.compression._heads import heads_of
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.fit._fitting import LOSS, OUTPUTS, Fitting
from tensorlrf.compression.losses._influence import influences
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.modular import _moments
from tensorlrf.compression.modular._costs import costs_of, felt
from tensorlrf.compression.modular._outlook import Costs, Done, Outlook, outlook
from tensorlrf.compression.modular._refit import Refitted, refit
from tensorlrf.compression.modular._shares import Sized, by_block, shares, sizes
from tensorlrf.compression.modular._structures import Channels, Structure
from tensorlrf.compression.plan._knapsack import Options, knapsack
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, UNIFORM, Allocation, Allotment, Candidate
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, CalibrationWarning, warn
from tensorlrf.nn.copies import copy_of, replica

INFLUENCE, FISHER = "block_influence", "fisher"
RULES = (AUTO, UNIFORM, INFLUENCE, FISHER)


@dataclass(frozen=True)
class Trial:
    """A copy of the model that was made smaller.

    done       layer -> what was done
    allotment  by which rule, beside which others
    metric     what errors of outputs counted
    loss       of its outputs on the batches held out; None where none are
    refitted   layers that were fitted in order to what the given model has there
    """

    model: nn.Module
    done: dict[str, Done]
    allotment: Allotment
    metric: str
    loss: float | None = None
    refitted: Mapping[str, Refitted] = field(default_factory=dict)


@dataclass
class Trials:
    """A model with its structures, and what they are to be cut to."""

    model: nn.Module
    structures: Sequence[Structure]
    request: Request
    data: Calibration
    fitting: Fitting
    _kept: list[Outlook] = field(default_factory=list)

    def best(self) -> Trial:
        """By the rule that is asked for; by "auto" the one of two of which the model loses less on
        the batches held out."""
        rule = self.request.allocation.rule
        rules = [rule]
        if rule == AUTO:
            rules = [FISHER if self.costs else INFLUENCE, UNIFORM]
            rules = rules if self.data.held_out else rules[:1] if self.costs else rules[1:]
        best: Trial | None = None
        told = []
        for one in rules:
            trial = self._by(one)
            if len(rules) > 1:
                trial = replace(trial, loss=self._loss_of(trial.model))
            told.append(Candidate(one, trial.loss))
            if best is None or _number(trial.loss) < _number(best.loss):
                best = trial
        assert best is not None
        candidates = tuple(told) if len(told) > 1 else ()
        best = replace(best, allotment=replace(best.allotment, candidates=candidates))
        self._kept.clear()
        return best if self.fitting.target == "independent" or not best.done else self._refit(best)

    def _refit(self, cut: Trial) -> Trial:
        """With what is left fitted in order, where the model does not lose more on the batches held
        out by that."""
        small, before = copy_of(cut.model), cut.loss
        names = [name for one in self.structures for name in one.fitted]
        with progress_bar("fit", len(names), self.fitting.progress) as advance:
            found = refit(
                self.model, small, self.structures, self.data, advance, rerun=self.fitting.rerun
            )
        if self.data.held_out:
            before = self._loss_of(cut.model) if before is None else before
            after = self._loss_of(small)
            if _number(after) > _number(before):
                return cut
            cut = replace(cut, loss=after)
        return replace(cut, model=small, refitted=found)

    @cached_property
    def costs(self) -> Costs:
        """What errors of the outputs cost the model, unless all are to count alike or it cannot be
        differentiated."""
        if self.fitting.metric == OUTPUTS and self.request.allocation.rule != FISHER:
            return {}
        first = dense_layer_at(self.model, self.structures[0].layers[0])
        draws = generator(self.fitting.random_state, first.device)
        found: Costs = {}
        try:
            with progress_bar("differentiate", None, self.fitting.progress) as advance:
                found = costs_of(
                    self.model, felt(self.structures), self.data, self._output_loss, draws,
                    partial(advance, ""),
                )  # fmt: skip
        except (RuntimeError, ArgumentError):
            found = {}
        if not found and LOSS in (self.fitting.metric, *_wanted(self.request.allocation.rule)):
            warn(
                "what errors cost the model is not known: it cannot be differentiated, or memory "
                "has no room for as many numbers as its layers have outputs squared; errors of all "
                "outputs count alike",
                CalibrationWarning,
            )
        return found

    @cached_property
    def _output_loss(self) -> OutputLoss:
        output = call(replica(self.model), self.data.judging[0])
        fitting = self.fitting
        return OutputLoss.of(fitting.loss, fitting.readout, output, bool(heads_of(self.model)))

    def _loss_of(self, model: nn.Module) -> float | None:
        """Beside the given one, on the batches held out."""
        lost = whole = 0.0
        for batch in self.data.held_out:
            wanted, got = call(replica(self.model), batch), call(replica(model), batch)
            part, weight = self._output_loss.between(wanted, got, batch)
            lost, whole = lost + part, whole + weight
        return lost / whole if whole > 0 and lost == lost else None

    # ---- sizes ----------------------------------------------------------------------------------

    def _sizes(self, rule: str) -> tuple[list[int], float | None]:
        """(what each structure keeps, what that is predicted to cost)."""
        budget = self.request.budget
        assert budget is not None
        keep = budget.value
        sized = [_sized(self.model, one, self.request.allocation) for one in self.structures]
        influence = self._influence() if rule == INFLUENCE else None
        plain = sizes(keep, sized, shares(keep, sized, influence))
        if rule != FISHER or not self.costs:
            return plain, None
        grids = [one.grid for one in sized]
        losses = [
            [own.loss(n) if n < one.most else 0.0 for n in one.grid]
            for one, own in zip(sized, self._outlooks(), strict=True)
        ]
        items = [
            Options.of([n * one.each for n in grid], loss)
            for one, grid, loss in zip(sized, grids, losses, strict=True)
        ]
        chosen = knapsack(items, keep * sum(one.params for one in sized) * (1 + 1e-12))
        found = [grid[k] for grid, k in zip(grids, chosen, strict=True)]
        return found, sum(loss[k] for loss, k in zip(losses, chosen, strict=True))

    def _influence(self) -> list[float] | None:
        layers = [one.layers for one in self.structures]
        names = [name for own in layers for name in own]
        return by_block(influences(self.model, names, self.data.fitted, _nothing), layers)

    # ---- the work -------------------------------------------------------------------------------

    def _by(self, rule: str) -> Trial:
        found, predicted = self._sizes(rule)
        small, done = copy_of(self.model), dict[str, Done]()
        for structure, own, size in zip(self.structures, self._outlooks(), found, strict=True):
            if size < structure.most(self.model):
                done |= own.reduce(small, size)
        unit = "" if predicted is None else self._output_loss.unit
        metric = LOSS if self.costs else OUTPUTS
        return Trial(small, done, Allotment(rule, unit, predicted), metric)

    def _outlooks(self) -> Iterator[Outlook]:
        """Of each structure, in order; of all at once where there is room for them."""
        if self._kept:
            yield from self._kept
            return
        limit = self.fitting.memory_limit
        room = self.data.room if limit is None else min(self.data.room, limit)
        parts = list(_moments.parts(self.model, self.structures, room))
        costs = self.costs
        for part in parts:
            found = self._seen(part, costs)
            if len(parts) == 1:
                self._kept = found
            yield from found

    def _seen(self, part: Sequence[Structure], costs: Costs) -> list[Outlook]:
        count = len(self.data.fitted) + len(part)
        with progress_bar("compress", count, self.fitting.progress) as advance:
            seen = _moments.gathered(self.model, part, self.data.fitted, advance)
            _warn(self.model, part, seen)
            found = []
            for structure in part:  # sums are given up one by one
                found.append(outlook(self.model, structure, seen.pop(0), costs))
                advance(structure.owner)
        return found


def _wanted(rule: str) -> tuple[str, ...]:
    return (LOSS,) if rule == FISHER else ()


def _nothing() -> None:
    pass


def _number(loss: float | None) -> float:
    return float("inf") if loss is None else loss


def _sized(model: nn.Module, structure: Structure, allocation: Allocation) -> Sized:
    most = structure.most(model)
    params = sum(dense_layer_at(model, name).weight.numel() for name in structure.layers)
    least = structure.least()
    if isinstance(structure, Channels):
        step = allocation.multiple if most >= 8 * allocation.multiple else 1
    else:
        step = max(least, min(allocation.multiple, most // 8) // least * least)
    floor = max(least, int(allocation.least_share * most))
    return Sized(most, min(most, floor), step, params)


def _warn(model: nn.Module, structures: Sequence[Structure], seen: Sequence[_moments.Seen]) -> None:
    thin = [
        f"{one.owner} ({own.count:,} samples, {one.most(model):,} {one.kind})"
        for one, own in zip(structures, seen, strict=True)
        if isinstance(one, Channels) and own.count < _moments.THIN * one.most(model)
    ]
    if thin:
        warn(
            f"calibration is thin for {', '.join(thin[:5])}"
            f"{f' and {len(thin) - 5} more' if len(thin) > 5 else ''}: with fewer than "
            f"{_moments.THIN} samples for each channel the fit is to the samples more than to the "
            "data; give more batches",
            CalibrationWarning,
        )
