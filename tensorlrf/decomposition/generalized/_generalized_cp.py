"""Generalised CP: a sum of rank-one tensors that is nearest to data by a loss that fits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._options import check_callback, check_count
from tensorlrf.decomposition.generalized._adam import descend_on_samples
from tensorlrf.decomposition.generalized._data import AFFORDABLE, Data, data_of
from tensorlrf.decomposition.generalized._draws import Drawn, check_draws
from tensorlrf.decomposition.generalized._entries import try_out
from tensorlrf.decomposition.generalized._lbfgs import STOPPED, Course, minimise
from tensorlrf.decomposition.generalized._loss import KnownLoss, Loss
from tensorlrf.decomposition.generalized._loss_fit import LossFit
from tensorlrf.decomposition.generalized._losses import loss_of
from tensorlrf.decomposition.generalized._nonzeros import rows_of
from tensorlrf.decomposition.generalized._report import relative_error, stack_of
from tensorlrf.decomposition.generalized._samples import Sampler
from tensorlrf.decomposition.generalized._squares import ENTRIES, Squares
from tensorlrf.decomposition.generalized._stack import as_factors
from tensorlrf.decomposition.generalized._start import given_start, random_start
from tensorlrf.decomposition.linalg.observed._observed import warn_unless_enough
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import CPFactors

Callback = Callable[[CPFactors, float], Any]

STEPS, EPOCHS = 1000, 100
TOL, TOL_OF_EPOCHS = 1e-6, 1e-3
JUDGED = 100_000
"""Nonzeros, and as many others, of the sample on which epochs are judged."""

TRIED = 500
"""The same of the sample on which a loss of the user is tried out."""


@method(
    "generalized_cp",
    gives=CPFactors,
    on={"tensor"},
    law="gradients are those of autograd; no step raises the loss",
    measured="field_generalized: amino",
)
def fit_generalized_cp(
    tensor: Any,
    rank: Rank | None = None,
    loss: str | Loss = "gaussian",
    *,
    mask: Any = None,
    weights: Any = None,
    solver: str = "auto",
    n_iter_max: int | None = None,
    tol: float | None = None,
    init: Any = "random",
    n_restarts: int = 1,
    sampling: str | None = None,
    n_samples: int | tuple[int, int] | None = None,
    epoch: int | None = None,
    rate: float | None = None,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> LossFit[CPFactors]:
    """A sum of rank-one tensors by a loss that fits the data: counts, zeros and ones, sizes (GCP).

    Minimises the sum of `loss(x, m)` over entries x of the tensor and m of the model. Columns have
    unit length, and components come with falling weights; for losses whose model may not be
    negative, no factor is.

    Parameters
    ----------
    tensor : Tensor, array or SparseTensor of shape (n_1, ..., n_N), N >= 2
        Of any float dtype, counts too; computed in float32 at least. Sparse tensors of torch and of
        scipy are taken as well; what they do not store is zero.
    rank : int, float or str
        The number of terms; a share of the parameters in (0, 1], or "same".
    loss : str or Loss
        With m >= 0: "poisson" m - x log m (counts), "negative_binomial" (x + 1) log(1 + m) -
        x log m (counts that vary more), "bernoulli_odds" log(1 + m) - x log m (zeros and ones),
        "gamma" x / m + log m and "rayleigh" 2 log m + pi/4 (x / m)^2 (sizes). With any m:
        "gaussian" (x - m)^2, "huber" (squares up to .25, then linear), "poisson_log" e^m - x m,
        "bernoulli_logit" log(1 + e^m) - x m. `decomposition.huber_loss(delta)` and
        `decomposition.negative_binomial_loss(failures)` have other constants; a `Loss` is one of
        your own.
    mask : Tensor or array of bool, optional
        Of the tensor's shape: True where an entry is known. Others may be NaN.
    weights : Tensor or array, optional
        Of the tensor's shape, not negative: how much an entry counts. Both are for dense tensors.
    solver : str
        "lbfgs": exact gradients, and steps of a projected quasi-Newton method, none of which raises
        the loss. "adam": steps on drawn entries. "auto" takes the former where exact gradients are
        affordable: for all dense tensors, for sparse ones with "poisson" and "gaussian" (whose cost
        is that of the nonzeros), and up to 2^26 entries.
    n_iter_max : int, optional
        Most steps, 1000 by default; of "adam" most epochs, 100.
    tol : float, optional
        The end is where a step gained no more than this share of all that was gained (over five
        steps), 1e-6 by default; of "adam" an epoch, 1e-3.
    init : str, CPFactors or tuple
        "random", or the start: CPFactors or (weights or None, factors).
    n_restarts : int
        Random starts, of which the best result is returned.
    sampling : str, optional
        With "adam": "uniform" over all entries; for sparse tensors "stratified" (nonzeros and
        zeros apart, the default) or "semi_stratified" (nonzeros, and all entries as if zero).
    n_samples : int or (int, int), optional
        With "adam": entries of a step, half of them nonzeros; or (nonzeros, others).
    epoch : int, optional
        With "adam": steps of an epoch, 1000 by default.
    rate : float, optional
        With "adam": the length of steps, relative to the root mean square of the start, .01 by
        default. A tenth of it after each epoch that raised the loss; the third such one is the end.
    callback : callable, optional
        Called as callback(factors, loss) after each step or epoch with the best factors so far, in
        memory of their own; returning True stops, and these are returned.
    random_state : int or Generator, optional
        torch's global generator is left alone.

    Returns
    -------
    CPFactors
        Of `fit_generalized_cp` a `LossFit` with the losses on the way.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        For a tensor that cannot be decomposed, or has an entry that the loss is not for (the first
        one is named, with its value); a loss that is unknown, or gives no finite number, or another
        shape; a mask or weights that do not fit or leave nothing of a slice; a bad rank, start,
        solver or sampling.
    UnsupportedError
        For a mask or weights of a sparse tensor.

    Warns
    -----
    TensorlrfWarning
        Where a mask or weights leave fewer entries than the model has free parameters.

    References
    ----------
    Hong, Kolda & Duersch 2020; Kolda & Hong 2020 (sampling).

    Examples
    --------
    >>> rates = tensorlrf.CPFactors(torch.ones(2), tuple(torch.rand(n, 2) for n in (20, 30, 40)))
    >>> counts = torch.poisson(20 * rates.to_dense())
    >>> f = tensorlrf.generalized_cp(counts, 2, "poisson", random_state=0)
    >>> bool(all((u >= 0).all() for u in f.factors))
    True
    """
    chosen = loss_of(loss)
    data, own = data_of(tensor, mask, weights, chosen)
    rank, _ = check_rank_or_error(rank, None, data.dtype)
    assert rank is not None  # one of the two is
    r = cp_rank(rank, data.shape)
    if data.weights is not None:
        unknowns = r * (sum(data.shape) - len(data.shape) + 1)
        warn_unless_enough(int(data.weights.count_nonzero()), unknowns, r)
    check_iteration(n_iter_max, tol)
    check_count("n_restarts", n_restarts, 1)
    check_callback(callback, None)
    rng = generator(random_state, data.values.device)
    drawn = check_draws(data, solver, sampling, n_samples, epoch, rate)
    if isinstance(init, str) and init == "random":
        starts = [random_start(data, own, r, rng) for _ in range(n_restarts)]
    elif n_restarts > 1:
        raise ArgumentError(
            f"n_restarts={n_restarts} with given factors as init would repeat one run; use 1"
        )
    else:
        starts = [given_start(init, data, own, r)]
    run = _Run(data, own, solver, n_iter_max, tol, drawn, rng, callback)
    run.try_out(chosen, starts[0])
    return run.best(starts)


generalized_cp = factors_of(fit_generalized_cp)


FILLED = 16
"""Entries of a sparse tensor for each that is stored, up to which first steps see it as a dense
one."""


class _Run:
    """Runs from several starts, and the best of them."""

    def __init__(
        self,
        data: Data,
        loss: Loss,
        solver: str,
        n_iter_max: int | None,
        tol: float | None,
        drawn: Drawn,
        rng: torch.Generator,
        callback: Callback | None,
    ) -> None:
        self.data, self.loss, self.drawn, self.callback = data, loss, drawn, callback
        self.objective = data.objective(loss)
        self.sampled = solver == "adam" or (solver == "auto" and self.objective is None)
        if self.objective is None and not self.sampled:
            raise ArgumentError(
                f"solver='lbfgs' with loss={loss.name!r} looks at all {data.size} entries of the "
                f"sparse tensor at each step; above {AFFORDABLE} use solver='adam'"
            )
        self.n_iter_max = n_iter_max or (EPOCHS if self.sampled else STEPS)
        self.tol = tol if tol is not None else TOL_OF_EPOCHS if self.sampled else TOL
        self.sampler = Sampler(data, drawn.sampling, rng)
        # One sample judges all epochs of all starts; where exact losses are out of reach, the end.
        judged = self.sampled or self.objective is None
        self.judge = self.sampler.draw((JUDGED, JUDGED)) if judged else None
        self.units = data.units()
        self.seen: tuple[Tensor, float] | None = None

    def try_out(self, named: Loss, start: Tensor) -> None:
        """Raise ArgumentError where a loss of the user gives no numbers at entries of the data."""
        if not isinstance(named, KnownLoss):
            sample = self.sampler.draw((TRIED, TRIED)) if self.judge is None else self.judge
            model = rows_of(start.to(sample.x.dtype), sample.places).prod(0).sum(1)
            try_out(named, sample.x, model)

    def best(self, starts: Sequence[Tensor]) -> LossFit[CPFactors]:
        runs: list[Course] = []
        for start in starts:
            runs.append(self._descend(start))
            if runs[-1].reason.startswith(STOPPED):
                break
        best = min(runs, key=lambda run: run.losses[-1])
        factors = self._factors(best.point)
        stack = stack_of(factors, self.data.scale)
        loss = self._loss(stack)
        error = relative_error(self.data, self.loss, stack, self.judge)
        return LossFit(
            factors,
            (error,),
            best.converged,
            runs[-1].reason if runs[-1].reason.startswith(STOPPED) else best.reason,
            losses=tuple(map(self._told, best.losses)),
            loss=self._told(loss),
            residuals=best.residuals,
            estimated=self.objective is None,
        )

    def _loss(self, stack: Tensor) -> float:
        """Over all entries, or an estimate of it."""
        if self.objective is not None:
            return self.objective(stack)[0]
        assert self.judge is not None  # all entries being too many
        return self.judge.loss(self.loss, stack.to(self.judge.x.dtype))

    def _descend(self, start: Tensor) -> Course:
        if not self.sampled:
            assert self.objective is not None  # or it would be sampled
            limits = self.data.shape, self.loss.lower, self.tol, self.n_iter_max
            return minimise(self.objective, start, *limits, self._watch, self._ahead())
        assert self.judge is not None
        near = start.to(self.data.values.dtype)
        counts = self.drawn.counts
        return descend_on_samples(
            self.loss,
            near,
            lambda: self.sampler.draw(counts),
            self.judge,
            rate=self.drawn.rate * (float(near.square().mean().sqrt()) or 1.0),
            epoch=self.drawn.epoch,
            tol=self.tol,
            n_iter_max=self.n_iter_max,
            watch=self._watch,
        )

    def _ahead(self) -> Squares | None:
        """The first steps, where the loss is a square and all entries count alike."""
        data = self.data
        if self.loss.name != "gaussian" or data.weights is not None:
            return None
        if data.sparse is None:
            return Squares(data.values)
        # Where few entries are stored the others take the memory that only these should.
        full = data.size <= min(ENTRIES, FILLED * len(data.values))
        return Squares(data.sparse.dense()) if full else None

    def _watch(self, point: Tensor, loss: float) -> bool:
        if self.callback is None:
            return False
        if self.seen is None or loss <= self.seen[1]:
            self.seen = point, loss
        best, least = self.seen
        return bool(self.callback(self._factors(best), self._told(least)) is True)

    def _factors(self, point: Tensor) -> CPFactors:
        data = self.data
        return as_factors(point.double(), data.shape, data.scale, data.dtype)

    def _told(self, total: float) -> float:
        """Of the data as they were given."""
        if self.data.scale == 1 or not isinstance(self.loss, KnownLoss):
            return total
        assert self.loss.undivided is not None  # or the scale would be one
        return self.loss.undivided(total, self.units)
