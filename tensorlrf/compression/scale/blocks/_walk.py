"""From block to block: the layers of one are fitted to what those before it deliver, and then what
it delivers itself goes on to the next."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tensorlrf.compression._findings import Findings
from tensorlrf.compression._progress import Advance
from tensorlrf.compression._survey import check_values
from tensorlrf.compression._working_copy import WorkingCopy
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._suspend import trim
from tensorlrf.compression.calibration._trace import Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.calibration.stacks._stacks import stacks
from tensorlrf.compression.fit._fitting import Fitting
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.scale._entries import BLOCK, LAYER
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale.blocks._course import (
    UNREACHED,
    Parted,
    course_of,
    numbered,
)
from tensorlrf.compression.scale.blocks._packed import check_unpacked
from tensorlrf.compression.scale.blocks._states import States
from tensorlrf.compression.scale.blocks._tables import Tables
from tensorlrf.compression.scale.blocks._told import Seen, Stopped, Told
from tensorlrf.compression.scale.blocks._weights import Loaded, Weights, blank_of, emptied
from tensorlrf.decomposition.linalg.threads import steady
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn.copies import replica

GIVEN, WORKING = "given", "working"


@dataclass(frozen=True)
class Inputs:
    """What a walk is fitted to.

    data     the batches
    fitting  how
    room     bytes of outputs of blocks in memory, at the most
    """

    data: Calibration
    fitting: Fitting
    room: float


class Walk:
    """Through the blocks of a model.

    run      what is to be done, and where that is kept
    model    on meta, which stays as it is
    plan     of the model
    inputs   what layers are fitted to
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        weights: Weights,
        plan: Plan,
        chains: Sequence[Sequence[str]],
        inputs: Inputs,
    ) -> None:
        self.run, self.weights, self.plan = run, weights, plan
        self.rows = {row.name: row for row in run.rows}
        self.fitting = replace(inputs.fitting, progress=False)
        device, example = weights.device, inputs.data.example
        self.data = replace(
            inputs.data,
            batches=[numbered(batch, device) for batch in inputs.data.batches],
            example=None if example is None else numbered(example, device),
        )
        self.group = self.data.group
        # Of each rank: they have batches of their own.
        folder = run.folder / "states"
        folder = folder / str(self.group.rank) if self.group.size > 1 else folder
        self.states = States(folder, inputs.room, device)
        self.names = [name for chain in chains for name in chain]
        layers = {name: dense_layer_at(model, name) for name in self.rows}
        self._apart = self.fitting.target == "original" or bool(stacks(model, layers))
        self.working = Parted(weights.copied(model), chains, self.states, WORKING)
        self.given = (
            Parted(weights.copied(model), chains, self.states, GIVEN)
            if self._apart
            else self.working
        )
        self._within = {k: self._rows_in(name) for k, name in enumerate(self.names)}
        inside = {name for rows in self._within.values() for name in rows}
        self._loose = [name for name in self.rows if name not in inside]
        self._met: dict[str, int] = {}  # of those that are in no block, where they are called
        self._around: Loaded = {}
        self._tried: set[type[nn.Module]] = set()  # of modules that were taken apart
        self.tables = Tables(self._parted, self._around, self.rows.keys())

    @property
    def _passing(self) -> list[Batch]:
        """The batches whose states are carried on: those of this rank, and the first of all, by
        which each of them sees the same way through the model."""
        first, own = self.data.first, self.data.batches
        return own if any(batch.index == first.index for batch in own) else [*own, first]

    def _rows_in(self, block: str) -> list[str]:
        return [n for n in self.rows if n == block or n.startswith(f"{block}.")]

    @property
    def _parted(self) -> tuple[Parted, ...]:
        return (self.given, self.working) if self._apart else (self.working,)

    def go(self, advance: Advance, stopped: Callable[[], bool]) -> None:
        """Through all of it. What was done before is not done again: its factors are delivered.
        Raises Stopped, with the layer at hand finished."""
        try:
            with steady(self.run.threads):
                self._fill_around()
                done = self.group.of(0, self._blocks_done() if self.group.is_first else {})
                for known in done.values():
                    for name in known:
                        advance(name, earlier=True)
                for number in range(len(self.names)):
                    self._block(number, done.get(number), advance, stopped)
                self._behind(done.get(len(self.names)), advance, stopped)
                if self.working.course.skipped:
                    self._check_order()
        finally:
            self.states.close()

    def _blocks_done(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Number of a block of which all layers are done -> their entries."""
        done = {
            name: entry
            for name, entry in self.run.done().items()
            if entry["kind"] != LAYER or self.run.part(entry["file"]).exists()
        }
        return {
            entry["number"]: {name: done[name] for name in entry["layers"]}
            for entry in self.run.journal.entries
            if entry["kind"] == BLOCK and done.keys() >= set(entry["layers"])
        }

    # ---- one block ------------------------------------------------------------------------------

    def _block(
        self,
        number: int,
        known: Mapping[str, Mapping[str, Any]] | None,
        advance: Advance,
        stopped: Callable[[], bool],
    ) -> None:
        blank = [blank_of(one.block(number)) for one in self._parted]
        self._fill_block(number)
        for one in self._parted:
            one.enter(number)
        if not number or number - 1 in self.working.course.ends:
            self._bring_back()
            self._look_ahead()
            if known is None:
                self._know_tables()
        else:
            self._put_away()
        if known is None:
            names = [*self._within[number], *self._loose_in(number)]
            self._fit(number, names, advance, stopped)
        else:
            self._deliver(number, known)
        reached = self._pass_on(number)
        self.tables.forget()
        for one, held in zip(self._parted, blank, strict=True):
            one.leave(number, reached=reached)
            emptied(one.block(number), held)
        if not reached and self.working.course.before is None:
            self._bring_back()  # the first block is yet to come
        # Copies that passes ran through, of a model that refers to itself, would keep the weights
        # of the block until somebody collects.
        gc.collect()
        trim(now=True)

    def _fit(
        self,
        number: int,
        names: Sequence[str],
        advance: Advance,
        stopped: Callable[[], bool],
    ) -> None:
        """Factors of these layers, and the journal: all of a block or nothing."""
        told = Told(advance, stopped, len(names))
        model, findings = self.working.model, Findings()
        for name in names:
            check_values(name, dense_layer_at(model, name).weight)
        if names:
            plan = replace(self.plan, layers=tuple(self.rows[name] for name in names))
            work = WorkingCopy(self.given.model, model, plan, self.fitting, self.data)
            work.factor_all(told)
            findings = work.findings()
            if self.group.is_first:
                self._keep(work, told)
        if self.group.is_first:
            entry = {"kind": BLOCK, "number": number, "layers": list(names)}
            self.run.note({**entry, "findings": findings.to_dict()})
        if stopped():
            raise Stopped

    def _keep(self, work: WorkingCopy, told: Told) -> None:
        """The factors of its layers in files, and in the journal."""
        for name, row in work.rows.items():
            made = work.done.get(name)
            target = None if made is None or made.samples is None else self.fitting.target
            spent, checksum = told.seconds.get(name, 0.0), self.run.checksum_of(name)
            self.run.settle(
                self.rows[name], made, spent, checksum, reason=row.reason, target=target
            )

    def _deliver(self, number: int, known: Mapping[str, Mapping[str, Any]]) -> None:
        """What an earlier run has made, to the blocks behind."""
        self._met |= {name: number for name in known if name in self._loose}
        if self.fitting.target == "independent":
            return
        for name, entry in known.items():
            if entry["kind"] == LAYER:
                layer = dense_layer_at(self.working.model, name)
                layer.write(self.run.factors_of(entry).to_dense().to(layer.device))

    def _pass_on(self, number: int) -> bool:
        """What the block puts out, to the next one; whether any batch reaches it."""
        reached: list[bool] = []
        for batch in self._passing:
            for one in self._parted:
                output = call(replica(one.model), batch)
                reached.append(output is not UNREACHED)
                stream, before = one.course.stream, one.course.before
                if output is UNREACHED:
                    continue
                try:
                    self.states.put((stream, number, batch.index), output)
                except UnsupportedError as error:
                    raise UnsupportedError(
                        f"{self.names[number]} is no block to go on from: {error}; use "
                        "tensorlrf.compress, with the model in memory"
                    ) from None
                del output
                if before is not None and before not in one.course.ends:
                    self.states.drop((stream, before, batch.index))
        if any(reached) and not all(reached):
            raise UnsupportedError(
                f"some batches pass {self.names[number]} by, and some do not; give batches that "
                "take the model through the same blocks"
            )
        return any(reached)

    # ---- what is in no block --------------------------------------------------------------------

    def _loose_in(self, number: int) -> list[str]:
        """Layers in no block that are called on the way from the block before into this one."""
        if not self._loose:
            return []
        own = replica(self.working.model)
        seen = Seen(course_of(own))
        with Watch(own, self._loose, seen):
            output = call(own, self.data.first)
        if output is UNREACHED:
            return []
        for name in seen.names:
            if self._met.setdefault(name, number) != number:
                raise UnsupportedError(
                    f"{name} is called both before and behind other blocks; leave it out with "
                    f"skip=[{name!r}]"
                )
        return seen.names

    def _behind(
        self,
        known: Mapping[str, Mapping[str, Any]] | None,
        advance: Advance,
        stopped: Callable[[], bool],
    ) -> None:
        """What comes behind all blocks, and layers that nothing calls."""
        left = [name for name in self._loose if name not in self._met]
        if not left or known is not None:
            return
        self._complete()
        self._loose_in(len(self.names))
        self._fit(len(self.names), left, advance, stopped)

    def _check_order(self) -> None:
        """Raise UnsupportedError where blocks that no batch was seen to reach come behind others.
        Only a pass through all of the model tells."""
        self._complete()
        call(replica(self.working.model), self.data.first)

    # ---- weights --------------------------------------------------------------------------------

    def _fill_block(self, number: int) -> None:
        name, own = self.names[number], {f"{row}.weight" for row in self._within[number]}
        loaded = self._around
        if self._apart:
            block = self.given.block(number)
            loaded = {**loaded, **self.weights.fill(block, name, loaded)}
            check_unpacked(block, name, self._tried)
        self.weights.fill(self.working.block(number), name, loaded, own if self._apart else ())
        check_unpacked(self.working.block(number), name, self._tried)

    def _fill_around(self) -> None:
        """All that is in no block and not behind them, unless that is needed before the first."""
        for one in self._parted:
            one.put_off()
        self._fill({module for one in self._parted for module in one.later})

    def _know_tables(self) -> None:
        """What the embeddings give for each batch, in the place of which they are put away, if
        nothing else is asked of them."""
        if self.tables.needed or not self.tables.know():
            return
        for batch in self._passing:
            for one in self._parted:
                call(replica(one.model), batch)
        self._put_away()

    def _put_away(self) -> None:
        """The embeddings, if the model does without them at the block that is there."""
        tables = self.tables
        known = self.working.course.before is not None or not self.working.course.at
        if tables.needed or tables.tried or not known:
            return
        tables.put_away()
        if not tables.away:
            return
        tables.tried = self.working.course.before is not None
        try:
            call(replica(self.working.model), self.data.first)
        except UnsupportedError:  # which says so again with all of them, if it is of other blocks
            tables.forget()
            tables.needed = True
            self._bring_back()

    def _bring_back(self) -> None:
        if self.tables.bring_back():
            self._fill({module for one in self._parted for module in one.later if one.waits})

    def _look_ahead(self) -> None:
        """Where what the model holds behind its blocks is called before a chain of them, give it
        its weights now."""
        own = replica(self.working.model)
        call(own, self.data.first)
        if course_of(own).gone_by:
            self._fill(())
            for one in self._parted:
                one.complete()

    def _complete(self) -> None:
        """What is behind the blocks, too, of which all are gone by."""
        self.tables.bring_back()
        self._fill(())
        for one in self._parted:
            one.complete()
            one.behind()

    def _fill(self, later: Collection[nn.Module]) -> None:
        own = {f"{name}.weight" for name in self._loose}
        for one in self._parted:
            absent = {one.model.get_submodule(name) for name in self.names}
            private = own if self._apart and one is self.working else ()
            read = self.weights.fill(one.model, "", self._around, private, absent.union(later))
            if not private:
                self._around.update(read)
            check_unpacked(one.model, "", self._tried)
