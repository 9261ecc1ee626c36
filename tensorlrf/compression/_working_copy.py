"""The copy of a model that is compressed, on its way through a plan: layer by layer, in order of
execution, each fitted to what the compressed ones before it deliver."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._findings import Findings
from tensorlrf.compression._progress import Advance, progress_bar
from tensorlrf.compression._survey import ROOT, Surveyed
from tensorlrf.compression.bases._shared import Basis
from tensorlrf.compression.calibration._calibrate import at_once, calibrated
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at, module_at
from tensorlrf.compression.calibration._layer_moments import Calibration, LayerMoments
from tensorlrf.compression.calibration._memory import Gathered
from tensorlrf.compression.calibration._suspend import trim
from tensorlrf.compression.calibration._trace import READ, Trace, record
from tensorlrf.compression.calibration.moments._form import FULL
from tensorlrf.compression.calibration.stacks._pools import Pools
from tensorlrf.compression.calibration.stacks._stacks import stacks
from tensorlrf.compression.fit._factor import SAMPLES_PER_COLUMN, factor
from tensorlrf.compression.fit._factored import Factored, Options
from tensorlrf.compression.fit._fitting import Fitting
from tensorlrf.compression.group._scattered import Scattered
from tensorlrf.compression.moments._fitted import Reader
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.plan._versions import recipe_for
from tensorlrf.compression.report._memory import MemoryForecast
from tensorlrf.compression.report._reporting import row
from tensorlrf.compression.report._rows import LayerReport
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.linalg.parallel import side_by_side
from tensorlrf.decomposition.linalg.threads import problem
from tensorlrf.errors import TensorlrfError, lowered_by
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.packed.unpacked import gates_at
from tensorlrf.nn.tables.ties import tie

ROOM = 1 << 30
"""Bytes that layers may take which are factored side by side, of one layer at the least."""

LARGE = 1 << 26
"""Bytes of a fit before which everything that nobody uses is given back, and so behind it."""


def chosen_rank(method: Method) -> bool:
    """Whether the user has named a rank, which then counts whatever it saves."""
    return isinstance(method.rank, (int, tuple))


class WorkingCopy:
    """A model, the copy of `given`, on its way through a plan."""

    def __init__(
        self,
        given: nn.Module,
        model: nn.Module,
        plan: Plan,
        fitting: Fitting,
        data: Calibration | None,
        bases: Mapping[str, Basis] = MappingProxyType({}),
    ) -> None:
        self.given = given
        self.model = model
        self.rows: dict[str, LayerPlan] = {row.name: row for row in plan.layers}
        self.fitting = fitting
        self.data = data
        self.trace: Trace | None = None
        self.memory: MemoryForecast | None = None
        self.pools: Pools | None = None  # of experts
        self.done: dict[str, Factored] = {}
        self.without_bias: set[str] = set()  # of those that got zeros
        self.missed: list[str] = []  # that no batch reaches
        self.told: list[str] = []  # of layers without room for all of their moments
        self.advance: Advance
        self.bases = bases
        self.options = Options(fitting.affine, fitting.random_state)

    @property
    def names(self) -> list[str]:
        """Layers that are to be factored."""
        return [name for name, row in self.rows.items() if row.method is not None]

    def factor_all(self, told: Advance | None = None) -> None:
        """Factors of every layer of the plan, those that calibration reaches in order of execution.

        With calibration the weights of `model`, a copy, are overwritten on the way by what their
        factors stand for, so that later layers see what the earlier ones will deliver. A function
        may be `told` of each layer that is done, in place of a bar.
        """
        bar = self.fitting.progress and told is None
        with progress_bar("compress", len(self.names), bar, layers=True) as advance:
            self.advance = advance if told is None else told
            if self.data is not None:
                self._calibrate()
            elif self.fitting.known is not None:
                self._take_moments(self.fitting.known)
            self._take([(name, None) for name in self.names if name not in self.done])

    def take_over(self, known: Mapping[str, Factored]) -> None:
        """What every layer of the plan becomes where that is known, without a pass to fit in."""
        self.advance = _say_nothing
        if self.data is not None:
            self.trace = record(self.model, self.names, self.data.judging[0])
        for name, done in known.items():
            self._settle(name, done)

    def _take(self, layers: Sequence[tuple[str, LayerMoments | None]]) -> None:
        """Factor layers of which none waits for another, side by side where memory allows."""
        for name, moments in layers:
            pool = None if self.pools is None else self.pools.of(name)
            if moments is not None and pool is not None:
                moments.draw(pool)
        dense = [dense_layer_at(self.model, name) for name, _ in layers]
        # A generator that is handed from one layer to the next sets their order; so do ranks that
        # put weights together.
        alone = isinstance(self.options.random_state, torch.Generator) or any(
            each.device.type != "cpu" or isinstance(each.module.weight, Scattered) for each in dense
        )
        calls = [partial(self._factored, name, moments) for name, moments in layers]
        sizes = [self._bytes_to_factor(name) for name, _ in layers]
        with (
            _given_back(max(sizes, default=0)),
            closing(side_by_side(calls, sizes, 0 if alone else ROOM)) as results,
        ):
            for (name, _), done in zip(layers, results, strict=True):
                self._settle(name, done)

    def _bytes_to_factor(self, name: str) -> int:
        """More or less."""
        form = FULL if self.data is None else self.data.form_of(name)
        weighed = self.data is not None and name in self.data.metrics
        layer, held = dense_layer_at(self.model, name), self.data is not None and self.data.held
        gathered = Gathered(lags=False, held=bool(held))
        as_matrix = self._takes_matrix(name)
        return gathered.need(layer, form, as_matrix=as_matrix, weighed=weighed).work

    def _factored(self, name: str, moments: LayerMoments | None) -> Factored:
        method = self.rows[name].method
        assert method is not None
        layer = dense_layer_at(self.model, name).put_together()
        basis = self.bases.get(name)
        right = None if basis is None else basis.right
        options = replace(self.options, right=right, gates=gates_at(self.model, name))
        try:
            size = 0 if moments is None or layer.is_table else layer.columns**2
            with (
                lowered_by(partial(_less, name, layer, moments)),
                problem(max(layer.weight.numel(), size)),
            ):
                return factor(name, layer, method, moments, options)
        except TensorlrfError as error:
            error.add_note(f"while factoring {name}")
            raise

    def _settle(self, name: str, done: Factored) -> None:
        row, layer = self.rows[name], dense_layer_at(self.model, name)
        assert row.method is not None
        own = done.factors
        self.advance(name, params=own.n_params, bytes=own.n_bytes, weight_error=done.weight_error)
        if done.factors.n_params >= math.prod(layer.shape) and not chosen_rank(row.method):
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
            self._add_zero_biases()
        working = self.model
        target = self.fitting.target
        self.trace = record(working, self.names, self.data.first)
        for name, reader in self.trace.readers.items():
            self.rows[name] = replace(
                self.rows[name], method=None, eligible=False, reason=READ.format(reader)
            )
        self._keep_within(self.fitting.memory_limit)
        names = [name for name in self.names if name not in self.done]
        self.pools = Pools(self.given, names, self.trace, self.data)
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
        missed = [name for name in names if name not in self.done and self.rows[name].method]
        plain = [name for name in missed if self.pools.of(name) is None]
        self._take([(name, None) for name in plain])
        for name in missed:
            if name not in plain:  # one at a time, for the memory of moments
                layer = dense_layer_at(working, name)
                self._take([(name, self.data.moments_of(name, layer, lags=False))])
        self.missed = [name for name in missed if self.rows[name].method]

    def _take_moments(self, moments: Moments) -> None:
        """Fit to what was collected before, layer by layer, without any pass."""
        if self.fitting.affine:
            self._add_zero_biases()
        reader, room = Reader(moments), ROOM
        waiting: list[tuple[str, LayerMoments | None]] = []
        for name in self.names:
            layer = dense_layer_at(self.model, name)
            found = reader.of(name, layer)
            if found is None:
                continue
            size = self._bytes_to_factor(name)
            if waiting and size > room:
                self._take(waiting)
                waiting, room = [], ROOM
            waiting.append((name, found))
            room -= size
        self._take(waiting)
        missed = [name for name in self.names if name not in self.done]
        self._take([(name, None) for name in missed])
        self.missed = [name for name in missed if self.rows[name].method]

    def _keep_within(self, limit: int | None) -> None:
        """Choose in which form the moments of each layer are kept, by the memory that it may take.
        Layers that have no room for any come first, so that those behind them see what they
        deliver."""
        assert self.data is not None
        assert self.trace is not None
        fitting = self.fitting
        layers = {name: dense_layer_at(self.model, name) for name in self.names}
        waits = not fitting.rerun and fitting.target != "independent"
        gathered = Gathered(
            lags=fitting.target == "original",
            held=bool(self.data.held),
            waiting=self.data.most_here if waits else 1,
            weighed=self.data.metrics.keys(),
            stacked={name for own in stacks(self.model, layers) for name in own},
        )
        matrix = [n for n in layers if self._takes_matrix(n)]
        needs = gathered.within(layers, limit, matrix, self.data.group)
        self.memory = gathered.forecast(layers, needs, limit, self.trace.inputs)
        forms = {name: need.form for name, need in needs.items() if need.form is not None}
        metrics = {n: m for n, m in self.data.metrics.items() if n not in needs or needs[n].weighed}
        self.data = replace(self.data, forms=forms, metrics=metrics)
        self._take([(name, None) for name in needs if name not in forms])
        self.told += gathered.told(layers, needs, limit)

    def _takes_matrix(self, name: str) -> bool:
        method = self.rows[name].method
        return method is not None and not method.multiplies_moments

    def _add_zero_biases(self) -> None:
        """Zeros for layers without a bias, so that every pass under way sees what they become."""
        for name in self.names:
            module = dense_layer_at(self.model, name).module
            if getattr(module, "bias", self) is None:
                self.without_bias.add(name)
                layer, own = dense_layer_at(self.model, name), module.weight
                zeros = torch.zeros(layer.shape[0], dtype=own.dtype, device=own.device)
                module.bias = nn.Parameter(zeros, requires_grad=own.requires_grad)

    def _deliver(self, name: str, done: Factored) -> None:
        """Let the layers behind see what this one will deliver."""
        layer = dense_layer_at(self.model, name)
        layer.write(done.factors.to_dense())
        if done.shift is not None:
            _add_to_bias(layer.module, done.shift)

    def replaced(self, survey: Sequence[Surveyed]) -> tuple[nn.Module, list[LayerReport]]:
        """(the model with factored layers in all their places, its rows of the report), by the
        `survey` of the given model."""
        model = self.model
        rows, places = [], {one.name: one.places for one in survey}
        owners: dict[tuple[str, ...], tuple[str, FactoredLayer]] = {}  # of right factors in common
        for one in survey:
            # What runs on the table of another has been replaced with it.
            found = one if one.table else replace(one, module=module_at(self.model, one.name))
            plan = self.rows[found.name]
            done = self.done.get(found.name)
            new, ties, owner = None, {}, ""
            if found.name in self.without_bias and (done is None or done.shift is None):
                found.module.bias = None  # type: ignore[assignment]
            if done is not None:
                if done.shift is not None and self.fitting.target == "independent":
                    _add_to_bias(found.module, done.shift)
                layer = DenseLayer.of(found.module)
                new = layer.on(done.factors)
                target = self.fitting.target if done.samples is not None else None
                new.recipe = recipe_for(done, target, affine=done.shift is not None)
                basis = self.bases.get(found.name)
                if basis is not None:
                    owner, holder = owners.setdefault(basis.names, (found.name, new))
                    tie(new, holder, ("right",))
                    owner = owner if holder is not new else ""
                ties = {name: layer.tied(self.model, name, new) for name in one.tied}
                for name, tied in ties.items():
                    model = put(model, places[name], tied)
                model = put(model, found.places, new)
            without = found.name in self.without_bias
            rows.append(row(found, plan, done, new, self.trace, without, ties, owner))
        return model, rows

    def findings(self) -> Findings:
        """What is to be told of the layers, once all have factors."""
        if self.data is None and self.fitting.known is None:
            return Findings()
        drawn = {n for n in self.missed if self.done[n].samples is not None}
        thin = []
        for name, done in self.done.items():
            layer = dense_layer_at(self.model, name)
            n = layer.columns
            if layer.is_table or name in self.missed:  # what was never seen has a floor
                continue
            if done.samples is not None and done.samples + done.credit < SAMPLES_PER_COLUMN * n:
                thin.append(f"{name} ({done.samples:,} samples, n = {n:,})")
        return Findings(
            room=tuple(self.told),
            missed=tuple(n for n in self.missed if n not in drawn),
            pooled=tuple(n for n in self.missed if n in drawn),
            thin=tuple(thin),
            early=tuple(name for name, done in self.done.items() if not done.finished),
        )


@contextmanager
def _given_back(size: int) -> Iterator[None]:
    """Around fits of this size: copies of the model that passes ran through refer to themselves and
    keep inputs until somebody collects them, and malloc keeps what a fit has freed."""
    if size < LARGE:
        yield
        return
    gc.collect()
    trim(now=True)
    yield
    trim(now=True)


def _less(name: str, layer: DenseLayer, moments: LayerMoments | None) -> str:
    """What lowers the memory of a fit."""
    limit = "memory_limit= (--memory-limit) bounds its moments; " if moments is not None else ""
    size = " x ".join(map(str, layer.shape))
    return (
        f"while {name} ({size}) was factored: {limit}skip=[{name!r}] leaves it out, and "
        "compress_checkpoint (--stream) has a layer at a time in memory"
    )


def _say_nothing(_: str, /, *, earlier: bool = False, logged: bool = True, **__: Any) -> None:
    pass


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
