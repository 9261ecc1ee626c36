"""A plan carried out on a copy of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._latency import measure_model
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._survey import ROOT, survey
from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression.calibration._batchnorm import (
    norms_of,
    reestimated,
    set_statistics,
)
from tensorlrf.compression.calibration._calibrate import (
    Calibration,
    Seen,
    Trace,
    at_once,
    calibrated,
    record,
)
from tensorlrf.compression.calibration._memory import readable, too_large
from tensorlrf.compression.calibration._outputs import model_error
from tensorlrf.compression.calibration._site import Site, site_at
from tensorlrf.compression.calibration.batches import list_batches
from tensorlrf.compression.fit._factor import SAMPLES_PER_COLUMN, Factored, Options, factor
from tensorlrf.compression.fit._fitting import Fitting
from tensorlrf.compression.plan._check_plan import check_plan
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.report._budget import shortfall
from tensorlrf.compression.report._report import BatchNorms, Latency, Report
from tensorlrf.compression.report._reporting import row, totals
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.linalg.parallel import side_by_side
from tensorlrf.decomposition.linalg.threads import problem
from tensorlrf.errors import (
    ArgumentError,
    BudgetWarning,
    CalibrationWarning,
    ConvergenceWarning,
    TensorlrfError,
    warn,
)
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn import factored_type
from tensorlrf.nn.copies import copy_of, replica

ROOM = 1 << 30
"""Bytes that layers may take which are factored side by side, of one layer at the least."""


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    calibration: Any = None,
    target: str = "original",
    affine: bool = False,
    batch_norm: bool = True,
    holdout: float = 0.1,
    rerun: bool = False,
    moment_bytes: int | None = None,
    example: Any = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> tuple[nn.Module, Report]:
    """A copy of the model with the plan carried out, and a report.

    The given model stays as it is.

    Parameters
    ----------
    model : Module
        The one that the plan was made for, or one of the same architecture.
    plan : Plan
        From `tensorlrf.plan`, perhaps edited.
    calibration : iterable of batches, DataLoader or callable, optional
        Inputs to fit to: tensors, tuples (positional arguments), dicts (keyword arguments), on the
        model's device; the iterable is drawn once and held. Or a function that runs the model it is
        given. The model runs in eval mode without grad. "svd" and "tucker" then minimise the error
        of each layer's *outputs*; "cp" has no such form, its output errors are measured all the
        same. Rows that an `attention_mask` among the arguments leaves out are padding, and not
        fitted to. Their second moments are drawn towards the plain metric as far as the number of
        samples warrants (Ledoit & Wolf 2004); where part of the batches is held out and casts doubt
        on the fit, the amount is chosen there.
    target : {"original", "prefix", "independent"}
        What the outputs of a layer are fitted to. "original": W x0, on the inputs x0 of the given
        model, from the inputs x that the compressed layers before it deliver; what earlier layers
        lost is then made good where x still tells of it (Zhang et al. 2016, asymmetric
        reconstruction). "prefix": W x, the given weight on x, which needs no second copy of the
        model and of the activations, and holds where the course of a model depends on its values.
        "independent": W x0 from x0, all layers at once and each by itself.
    affine : bool
        Let biases make good what they can (`decomposition.bias_correction`). A layer without bias
        gets one, and the report says so. With held-out batches only where it lowers their error.
    batch_norm : bool
        Re-estimate the statistics of batch normalisations where calibration has held-out batches,
        and keep them only where the error of the model's outputs on these falls.
    holdout : float
        Share of the batches that is not fitted to, but serves to judge: rounded down, and one at
        the least of two or more. 0 holds none out.
    rerun : bool
        False: each batch's forward pass is held where it is while a layer is factored, so that
        calibration costs two passes for the first batch and one for each other, and the activations
        of all batches are alive at once. True: one batch's activations at a time, for about L / 2
        passes a batch with L layers.
    moment_bytes : int, optional
        Most bytes that the second moments of one layer's inputs may take, by default half of the
        memory that is free: some 16 n^2, or 32 n^2 with batches held out, for n input columns (a
        convolution has as many as a patch has numbers). A layer that would take more gets the plain
        method.
    example : Tensor, tuple or dict, optional
        A batch to time the given and the compressed model on, for the report.
    random_state : int or Generator, optional
        Of the methods that draw; torch's own generator stays as it was.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    model : Module
        The compressed copy, its training flags as in `model`.
    report : Report
        What became of every layer.

    Raises
    ------
    ArgumentError, RankError
        For a plan of another model, or one edited into something that cannot be; NaN or Inf in a
        weight or in the inputs of a layer; batches that the model cannot take (the layer and the
        model's own error are named).

    Warns
    -----
    CalibrationWarning
        Of layers with fewer than 4 n samples, and of layers that calibration does not reach, or
        whose moments are too large, and that get the plain method.
    BudgetWarning
        Of a model that keeps far more than `keep_params` since most of it is not eligible.

    References
    ----------
    Ledoit & Wolf 2004; Zhang et al. 2016.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> plan = tensorlrf.plan(model, keep_params=0.5, skip=[])
    >>> small, report = tensorlrf.apply(model, plan, calibration=[torch.rand(512, 64)])
    >>> report.eligible.share <= 0.5
    True
    """
    fitting = Fitting(
        target, affine, batch_norm, holdout, rerun, moment_bytes, random_state, progress
    )
    fitting.check()
    model = uncompiled(model)
    # Parameters made in inference mode could not be trained.
    with torch.inference_mode(False), without_autocast():
        check_plan(model, plan)
        small = copy_of(model)
        for row in plan.factored:
            site_at(small, row.name).make_ordinary()
        data = None
        if calibration is not None:
            data = Calibration.of(list_batches(calibration, replica(model)), holdout)
        work = _Work(model, small, plan, fitting, data)
        work.factor_all()
        small, rows = work.replaced()
        norms = work.norms(model, small)
        error = work.error
        if error is None and data is not None and data.held_out:
            error = model_error(model, small, data.held_out)
        latency = None if example is None else _latency(model, small, example)
    report = Report(
        keep_params=plan.keep_params,
        error=plan.error,
        target=target if data is not None else None,
        affine=affine,
        batches=0 if data is None else len(data.fitted),
        held_out=0 if data is None else len(data.held_out),
        layers=tuple(rows),
        model=totals(model, small),
        model_error=error,
        batch_norms=norms,
        latency=latency,
    )
    if missed := shortfall(report):
        warn(missed, BudgetWarning)
    return small, report


def chosen_rank(method: Method) -> bool:
    """Whether the user has named a rank, which then counts whatever it saves."""
    return isinstance(method.rank, (int, tuple))


class _Work:
    """A model, the copy of `given` to be compressed, on its way through a plan."""

    def __init__(
        self,
        given: nn.Module,
        model: nn.Module,
        plan: Plan,
        fitting: Fitting,
        data: Calibration | None,
    ) -> None:
        self.given = given
        self.model = model
        self.rows: dict[str, LayerPlan] = {row.name: row for row in plan.layers}
        self.fitting = fitting
        self.data = data
        self.trace: Trace | None = None
        self.done: dict[str, Factored] = {}
        self.error: float | None = None
        self.lent: set[str] = set()
        self.advance: Callable[[str], None] = lambda name: None
        self.options = Options(fitting.affine, fitting.random_state)

    @property
    def names(self) -> list[str]:
        """Layers that are to be factored."""
        return [name for name, row in self.rows.items() if row.method is not None]

    def factor_all(self) -> None:
        """Factors of every layer of the plan, those that calibration reaches in order of execution.

        With calibration the weights of `model`, a copy, are overwritten on the way by what their
        factors stand for, so that later layers see what the earlier ones will deliver.
        """
        with progress_bar("compress", len(self.names), self.fitting.progress) as advance:
            self.advance = advance
            if self.data is not None:
                self._calibrate()
            self._take([(name, None) for name in self.names if name not in self.done])

    def _take(self, layers: Sequence[tuple[str, Seen | None]]) -> None:
        """Factor layers of which none waits for another, side by side where memory allows."""
        sites = [site_at(self.model, name) for name, _ in layers]
        # A generator that is handed from one layer to the next sets their order.
        alone = isinstance(self.options.random_state, torch.Generator) or any(
            site.device.type != "cpu" for site in sites
        )
        calls = [partial(self._factored, name, seen) for name, seen in layers]
        sizes = [_bytes_to_factor(site) for site in sites]
        with closing(side_by_side(calls, sizes, 0 if alone else ROOM)) as results:
            for (name, seen), done in zip(layers, results, strict=True):
                self._settle(name, seen, done)

    def _factored(self, name: str, seen: Seen | None) -> Factored:
        method = self.rows[name].method
        assert method is not None
        site = site_at(self.model, name)
        try:
            with problem(max(site.weight.numel(), 0 if seen is None else site.columns**2)):
                return factor(name, site, method, seen, self.options)
        except TensorlrfError as error:
            error.add_note(f"while factoring {name}")
            raise

    def _settle(self, name: str, seen: Seen | None, done: Factored) -> None:
        row, site = self.rows[name], site_at(self.model, name)
        assert row.method is not None
        self.advance(name)
        if done.factors.n_params >= site.weight.numel() and not chosen_rank(row.method):
            within = row.method.error
            of = f"within error={within:g}" if within is not None else "of its share"
            self.rows[name] = replace(row, method=None, reason=f"no smaller form is {of}")
            return
        self.done[name] = done
        if self.data is not None and self.fitting.target != "independent":
            self._deliver(name, done)

    def _calibrate(self) -> None:
        assert self.data is not None
        if self.fitting.affine:
            self._lend_biases()
        working = self.model
        target = self.fitting.target
        self.trace = record(working, self.names, self.data.batches[0])
        for name, reader in self.trace.readers.items():
            reason = f"its weight is read by {reader}, which does not call it"
            self.rows[name] = replace(self.rows[name], method=None, eligible=False, reason=reason)
        self._take_plain()
        names = [name for name in self.names if name not in self.done]
        if target == "independent":
            passes = at_once(working, names, self.trace, self.data)
        else:
            original = self.given if target == "original" else None
            passes = calibrated(
                working, names, self.trace, self.data, rerun=self.fitting.rerun, original=original
            )
        with closing(passes) as parts:
            for layers in parts:
                self._take(layers)
        self._warn(names)

    def _take_plain(self) -> None:
        """Layers whose moments there is no memory for come first, so that those behind them see
        what they deliver."""
        assert self.data is not None
        most = self.fitting.moment_bytes
        large = too_large(
            [(name, site_at(self.model, name)) for name in self.names],
            most,
            lags=self.fitting.target == "original",
            holds_out=bool(self.data.held),
        )
        if large:
            self._take([(name, None) for name in large])
            sizes = [f"{name} ({readable(size)})" for name, size in large.items()]
            allowed = "half of the free memory" if most is None else readable(most)
            warn(
                f"calibration: the second moments of {_some(sizes)} would take more than "
                f"{allowed}: the plain method is used there; give more by moment_bytes=, or skip= "
                "them",
                CalibrationWarning,
            )

    def _lend_biases(self) -> None:
        """Zeros for layers without a bias, so that every pass under way sees what they become."""
        for name in self.names:
            module = site_at(self.model, name).module
            if module.bias is None:
                self.lent.add(name)
                site, own = site_at(self.model, name), module.weight
                zeros = torch.zeros(site.shape[0], dtype=own.dtype, device=own.device)
                module.bias = nn.Parameter(zeros, requires_grad=own.requires_grad)

    def _deliver(self, name: str, done: Factored) -> None:
        """Let the layers behind see what this one will deliver."""
        site = site_at(self.model, name)
        site.write(done.factors.to_dense())
        if done.shift is not None:
            _add_to_bias(site.module, done.shift)

    def replaced(self) -> tuple[nn.Module, list[Any]]:
        """(the model with factored layers in all their places, its rows of the report)."""
        model = self.model
        rows = []
        for found in survey(model, []):
            plan = self.rows[found.name]
            done = self.done.get(found.name)
            new = None
            if found.name in self.lent and (done is None or done.shift is None):
                found.module.bias = None  # type: ignore[assignment]
            if done is not None:
                if done.shift is not None and self.fitting.target == "independent":
                    _add_to_bias(found.module, done.shift)
                kind = factored_type(found.module)
                assert kind is not None
                new = kind.from_factors(done.factors, found.module)
                new.recipe = {
                    "method": done.method.to_dict(),
                    "target": self.fitting.target if done.samples is not None else None,
                    "data_aware": done.data_aware,
                    "affine": done.shift is not None,
                }
                model = put(model, found.places, new)
            rows.append(row(found, plan, done, new, self.trace, found.name in self.lent))
        return model, rows

    def norms(self, model: nn.Module, small: nn.Module) -> BatchNorms | None:
        """Try new statistics of the batch normalisations; keep them where that helps."""
        data, norms = self.data, norms_of(small)
        if not self.fitting.batch_norm or not norms or data is None or not data.held_out:
            return None
        before = model_error(model, small, data.held_out)
        if before is None:
            return None
        try:
            found = reestimated(small, data.fitted)
        except ArgumentError:  # a batch of one sample has no variance
            return None
        tried = replica(small)
        set_statistics(norms_of(tried), found)
        after = model_error(model, tried, data.held_out)
        kept = after is not None and after < before
        if kept:
            set_statistics(norms, found)
        self.error = after if kept else before
        return BatchNorms(len(norms), kept, before, after if after is not None else float("nan"))

    def _warn(self, names: list[str]) -> None:
        """One warning for all layers of a kind, not one a layer."""
        missed = [name for name in names if name not in self.done and self.rows[name].method]
        if missed:
            warn(
                f"calibration does not reach {_some(missed)}: the plain method is used there; "
                "give batches that take the model through these layers, or skip= them",
                CalibrationWarning,
            )
        thin = []
        for name, done in self.done.items():
            n = site_at(self.model, name).columns
            if done.samples is not None and done.samples < SAMPLES_PER_COLUMN * n:
                thin.append(f"{name} ({done.samples:,} samples, n = {n:,})")
        if thin:
            warn(
                f"calibration is thin for {_some(thin)}: with fewer than {SAMPLES_PER_COLUMN} n "
                "samples (rows, or patches of a conv) the factors fit the samples more than the "
                "data; give more batches",
                CalibrationWarning,
            )
        early = [name for name, done in self.done.items() if not done.finished]
        if early:
            warn(
                f"the sweeps of {_some(early)} have over 2% of the error still to gain; give more "
                "with n_iter_max= of the method, such as CP(n_iter_max=300)",
                ConvergenceWarning,
            )


def _bytes_to_factor(site: Site) -> int:
    """Some copies of the weight and of the second moments in float64, more or less."""
    return 8 * (6 * site.weight.numel() + 4 * site.groups * site.columns**2)


def put(model: nn.Module, places: Sequence[str], new: nn.Module) -> nn.Module:
    """The model with a module at all its places; where that is the root, the module itself."""
    for place in places:
        if place == ROOT:
            model = new
            continue
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model


def _add_to_bias(module: Any, shift: Tensor) -> None:
    """Add to the bias, in its dtype."""
    with torch.no_grad():
        module.bias += shift.to(module.bias.dtype)


def _latency(model: nn.Module, small: nn.Module, example: Any) -> Latency:
    dense, compressed = measure_model(model, small, [example])
    return Latency(dense, compressed)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
