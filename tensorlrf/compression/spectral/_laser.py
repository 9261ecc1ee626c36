"""`laser`: layers whose smaller singular values a model is better without."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._progress import Advance, progress_bar
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.frontier._judge import Drop, Evaluate, Judge
from tensorlrf.compression.group._group import ALONE
from tensorlrf.compression.journal._identity import identity
from tensorlrf.compression.journal._kept import kept_in
from tensorlrf.compression.page.heat_map import place
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planning import plan as planned
from tensorlrf.compression.spectral._reduction import Laser, Reduction
from tensorlrf.decomposition import svd
from tensorlrf.decomposition.configs import SVD
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import LowRank
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.arguments import PathLike
from tensorlrf.nn.copies import copy_of

SHARES = (0.4, 0.2, 0.1, 0.05, 0.01)


@without_autocast()
@threaded
def laser(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    shares: Sequence[float] = SHARES,
    stack: int = 8,
    test: Evaluate | None = None,
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    journal: PathLike | None = None,
    progress: bool = True,
) -> Laser:
    """Layer-selective rank reduction: which layers, cut to which rank, a model is better with.

    Each layer by itself is cut to each share of its rank by a truncated SVD, and the model judged.
    The best of these is kept where it is better than the given model by more than the noise of the
    metric; on top of it the best ones of other layers are tried in the order of their gain, and
    kept where the model gets better still.

    Parameters
    ----------
    model : Module
        Stays as it is.
    evaluate : callable
        A metric on data held out, as for `frontier`: one of `tensorlrf.metrics`, or a function of a
        model to a number (the higher the better), to scores of examples, or to these and the labels
        of their groups. It is called twice on the given model and once for each share of each
        layer, so let it be short.
    shares : sequence of float
        Of the full rank of a weight to keep, in (0, 1); a rank of one at the least.
    stack : int
        How many more layers are tried on top of the best one; 0 for that alone.
    test : callable, optional
        The same on other data, asked once of the given model and of the result: what was chosen out
        of many by `evaluate` is worth less than that says.
    skip, include
        As in `plan`.
    journal : str or PathLike, optional
        A folder that gets what is judged, as it is judged; the same call goes on from there.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    Laser
        With a `plan` for `tensorlrf.apply`, without calibration. Ranks above half of the shorter
        side make factors that are larger than a square weight; `densify` makes weights of them.

    Raises
    ------
    ArgumentError
        For shares that cannot be, a metric that fails or returns what is none, a weight with NaN or
        Inf, a model without layers to cut, and a journal of another call.
    FileError, FileFormatError
        Of a journal, as in `sensitivity`.

    References
    ----------
    Sharma, Ash & Misra 2023, "The truth is in there: improving reasoning in language models with
    layer-selective rank reduction".

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> x, y = torch.rand(32, 8), torch.rand(32, 8)
    >>> def metric(model):
    ...     return -torch.nn.functional.mse_loss(model(x), y)
    >>> found = tensorlrf.laser(model, metric, shares=(0.5, 0.2), skip=[], progress=False)
    >>> len(found.rows), found.quality >= found.given
    (4, True)
    """
    wanted = _checked(shares)
    if isinstance(stack, bool) or not isinstance(stack, int) or stack < 0:
        raise ArgumentError(f"stack={stack!r} must be an int of at least 0")
    model = unpacked_model(model)
    plan = planned(model, method=SVD(rank=1, metric="identity"), skip=skip, include=include)
    names = [row.name for row in plan.factored]
    if not names:
        raise ArgumentError("model has no layer that could be cut; see tensorlrf.plan")
    asked = {
        "call": "laser", "evaluate": evaluate, "test": test, "shares": wanted, "stack": stack,
        "layers": names,
    }  # fmt: skip
    with kept_in(journal, ALONE, 0, partial(identity, model, None, None, asked)) as kept:
        judge = Judge(evaluate, model, kept=kept)
        cuts = Cuts(model)
        with progress_bar("judge", len(names) * len(wanted), progress) as advance:
            rows = [row for name in names for row in _alone(cuts, judge, name, wanted, advance)]
        found = Laser(plan, judge.given, judge.given, judge.noise, (), tuple(rows))
        steps = _stacked(cuts, judge, found.best(), stack)
        outcome = None
        if test is not None:
            on_other = Judge(test, model, "test", kept=kept)
            ranks = {row.layer: row.rank for row in steps}
            drop = on_other.drop_of(lambda: cuts.cut(ranks), "the model with what is kept")
            outcome = on_other.given, drop.quality
    quality = steps[-1].quality if steps else judge.given
    return Laser(
        _plan(plan, steps), judge.given, quality, judge.noise, tuple(steps), tuple(rows), outcome
    )


class Cuts:
    """A copy of a model, layers of which are cut."""

    def __init__(self, model: nn.Module) -> None:
        self.working = copy_of(model)
        self._given: dict[str, Tensor] = {}
        self._at: tuple[str, list[LowRank]] | None = None

    def full_rank(self, name: str) -> int:
        """Of the weight of a layer, of one group."""
        layer = dense_layer_at(self.working, name)
        return min(layer.shape[0] // layer.groups, layer.columns)

    def cut(self, ranks: dict[str, int]) -> nn.Module:
        """The copy with these layers at these ranks, and all others as they were given."""
        for name in [name for name in self._given if name not in ranks]:
            dense_layer_at(self.working, name).write(self._given.pop(name))
        for name, rank in ranks.items():
            layer = dense_layer_at(self.working, name)
            if name not in self._given:
                layer.make_ordinary()
                self._given[name] = layer.weight.clone()
            layer.write(self._truncated(name, rank))
        return self.working

    def _truncated(self, name: str, rank: int) -> Tensor:
        """(O, I / groups, ...): of each group the nearest of that rank."""
        known = self._at
        if known is None or known[0] != name or known[1][0].rank < rank:
            groups = dense_layer_at(self.working, name).groups
            known = self._at = name, [svd(part, rank) for part in self._given[name].chunk(groups)]
        return torch.cat([part.leading(rank).to_dense() for part in known[1]])


def _alone(
    cuts: Cuts, judge: Judge, name: str, shares: Sequence[float], advance: Advance
) -> list[Reduction]:
    """One layer at each share of its rank."""
    found: list[Reduction] = []
    full, kind = cuts.full_rank(name), place(name)[1]
    for share in shares:
        rank = max(1, math.floor(share * full))
        if not found or found[-1].rank != rank:
            who = f"the model with {name} at rank {rank}"
            drop = judge.drop_of(partial(cuts.cut, {name: rank}), who)
            found.append(_reduction(name, kind, rank, share, drop))
        advance(name)
    return found


def _stacked(cuts: Cuts, judge: Judge, best: Sequence[Reduction], stack: int) -> list[Reduction]:
    """The best one where it gains, and those of other layers with which it gains more."""
    first, *others = best
    if not first.gain > judge.noise:
        return []
    steps = [first]
    for row in others[:stack]:
        ranks = {one.layer: one.rank for one in (*steps, row)}
        told = ", ".join(f"{name} at {rank}" for name, rank in ranks.items())
        drop = judge.drop_of(partial(cuts.cut, ranks), f"the model with {told}")
        found = _reduction(row.layer, row.type, row.rank, row.share, drop)
        if found.gain > steps[-1].gain + judge.noise:
            steps.append(found)
    return steps


def _reduction(name: str, kind: str, rank: int, share: float, drop: Drop) -> Reduction:
    return Reduction(name, kind, rank, share, drop.quality, -drop.mean)


def _plan(plan: Plan, steps: Sequence[Reduction]) -> Plan:
    """With these layers at their ranks, and all others as they are."""
    ranks = {row.layer: row.rank for row in steps}
    for row in plan.factored:
        if row.name in ranks:
            plan = plan.edit(glob.escape(row.name), rank=ranks[row.name])
        else:
            plan = plan.edit(glob.escape(row.name), leave=True)
    return plan


def _checked(shares: Any) -> list[float]:
    """The largest first."""
    good = isinstance(shares, Sequence) and all(
        isinstance(s, (int, float)) and not isinstance(s, bool) and 0 < s < 1 for s in shares
    )
    if not shares or not good:
        raise ArgumentError(f"shares={shares!r} must be shares in (0, 1), such as (0.4, 0.1)")
    return sorted({float(share) for share in shares}, reverse=True)
