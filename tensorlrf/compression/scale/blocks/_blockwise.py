"""A run over a checkpoint from block to block, on the inputs that the user gives."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tensorlrf.compression._findings import Findings
from tensorlrf.compression._progress import Advance
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._free_memory import free_bytes
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import Gathered
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.calibration.stacks._stacks import stacks
from tensorlrf.compression.fit._fitting import OUTPUTS, Fitting
from tensorlrf.compression.group._group import Alone
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.scale._device import CPU
from tensorlrf.compression.scale._entries import BLOCK, LIMIT
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.blocks._chains import chains_of
from tensorlrf.compression.scale.blocks._told import Stopped
from tensorlrf.compression.scale.blocks._walk import Inputs, Walk
from tensorlrf.compression.scale.blocks._weights import Weights
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.safetensors import bytes_of, plain
from tensorlrf.files.sealed import checksum_of


def fitting_of(
    calibration: Any, *, inputs: str, holdout: float, memory_limit: int | None, random_state: int
) -> Fitting | None:
    """How layers are to be fitted; None without calibration.

    Raises ArgumentError.
    """
    fitting = Fitting(
        inputs, False, False, holdout, True, memory_limit, random_state, False, OUTPUTS
    )
    try:
        fitting.check(calibrated=calibration is not None)
    except ArgumentError as error:
        raise ArgumentError(str(error).replace("target", "inputs", 1)) from None
    if calibration is not None:
        return fitting
    if memory_limit is not None:
        raise ArgumentError(
            f"memory_limit={memory_limit!r} is of a fit to inputs; give calibration=, or leave it "
            "out"
        )
    return None


def asked(fitting: Fitting | None) -> dict[str, Any]:
    """What was asked for of a fit, as JSON values."""
    if fitting is None:
        return {}
    return {
        "inputs": fitting.target,
        "holdout": fitting.holdout,
        "memory_limit": fitting.memory_limit,
    }


@dataclass(frozen=True)
class Blockwise:
    """What is asked for, looked at before any work.

    known    the model, on meta
    plan     of it
    chains   its blocks
    data     the batches
    fitting  how layers are fitted to them
    device   where
    """

    known: Architecture
    plan: Plan
    chains: list[list[str]]
    data: Calibration
    fitting: Fitting
    device: torch.device

    @classmethod
    def of(
        cls,
        known: Architecture,
        plan: Plan,
        calibration: Any,
        fitting: Fitting,
        group: Alone,
        device: torch.device,
    ) -> Blockwise:
        """On all ranks of a group, each with batches of its own.

        Raises ArgumentError, and UnsupportedError for a model that is not known or has no blocks.
        """
        if not known.exact:
            why = "; ".join(known.notes) or "there is no config.json of transformers"
            raise UnsupportedError(
                f"calibration needs the model, which is not known ({why}); give it as model=, "
                'built under torch.device("meta"), or use tensorlrf.compress, the model in memory'
            )
        if callable(calibration) and not isinstance(calibration, Iterable):
            raise ArgumentError(
                "calibration is a function, which would run the whole model; give its batches"
            )
        chains = chains_of(known.model)
        limit = fitting.memory_limit
        data = Calibration.read(calibration, known.model, fitting.holdout, limit, group=group)
        assert data is not None
        made = cls(known, plan, chains, data, fitting, device)
        if limit is not None:
            made.largest(limit)
        return made

    @property
    def rows(self) -> list[LayerPlan]:
        """Of the layers that get factors."""
        return [row for row in self.plan.layers if row.factored]

    def largest(self, limit: int) -> int:
        """Bytes that the moments and the fit of a layer take, of the one that takes the most.
        Raises ArgumentError where one takes more than the limit at the least."""
        layers = {row.name: dense_layer_at(self.known.model, row.name) for row in self.rows}
        gathered = Gathered(
            lags=self.fitting.target == "original",
            held=bool(self.data.held),
            stacked={name for own in stacks(self.known.model, layers) for name in own},
        )
        methods = {row.name: row.method for row in self.rows}
        matrix = [n for n, m in methods.items() if m is not None and not m.multiplies_moments]
        needs = gathered.within(layers, limit, matrix)
        return max((need.whole for need in needs.values()), default=0)

    def head(self) -> dict[str, Any]:
        """What the first line of a journal says of it: a run with other inputs is another one, and
        so is one whose ranks share them out in another way, which adds up in another order."""
        own = [_checksum(batch) for batch in self.data.batches]
        found = self.data.group.gathered(own)
        told = [one for part in found for one in part]
        shares = {"batches": [len(part) for part in found]} if len(found) > 1 else {}
        return {
            "calibration": checksum_of(" ".join(told).encode()),
            **shares,
            **asked(self.fitting),
        }

    def carry_out(
        self,
        run: Run,
        advance: Advance,
        stopped: Callable[[], bool],
    ) -> dict[str, dict[str, Any]]:
        """The entries of all layers, as far as it was not stopped, on the first rank: what all of
        them make is the same, and that one keeps it."""
        group = self.data.group
        done = run.done() if group.is_first else {}
        if not group.of(0, done.keys() >= {row.name for row in self.rows}):
            limit = self._limit(run)
            fitting = replace(self.fitting, memory_limit=limit)
            together, waiting = self._rooms(limit)
            weights = Weights(run.stored, self.known.sources, self.device)
            with torch.inference_mode(False), torch.no_grad(), without_autocast():
                walk = Walk(
                    run, self.known.model, weights, self.plan, self.chains,
                    Inputs(replace(self.data, room=together), fitting, waiting),
                )  # fmt: skip
                try:
                    walk.go(advance, stopped)
                except Stopped:
                    return run.done()
            done = run.done()
        if not group.is_first:
            return {}
        found = [Findings.of(e["findings"]) for e in _last(run.journal.entries).values()]
        Findings.together(found).tell()
        return done

    def _limit(self, run: Run) -> int:
        """The memory that a layer may take, the same on all ranks and for a run that goes on."""
        if self.fitting.memory_limit is not None:
            return self.fitting.memory_limit
        group = self.data.group
        known = [int(entry["bytes"]) for entry in run.journal.entries if entry["kind"] == LIMIT]
        free = group.least(self._free(self.device)) / 2
        limit = group.of(0, known[0] if known else int(min(free, 1 << 50)))
        if group.is_first and not known:
            run.note({"kind": LIMIT, "bytes": limit})
        return limit

    def _rooms(self, limit: int) -> tuple[int, float]:
        """Bytes that moments may take of layers that are gathered together, and what blocks put
        out: what is left beside the moments and the fit of one, for both alike where both are on
        the CPU, where that waits."""
        left = max(0, limit - self.largest(limit))
        if self.device == CPU:
            return min(self.data.room, left // 2), left / 2
        free = self._free(CPU) / 2
        waiting = free if self.fitting.memory_limit is None else min(free, limit)
        return min(self.data.room, left), waiting

    def _free(self, device: torch.device) -> float:
        """Bytes there, of which all ranks that are there have as many."""
        own = f"{platform.node()} {device}"
        return free_bytes(device) / self.data.group.gathered(own).count(own)


def _last(entries: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Number of a block -> what was noted of it last."""
    return {entry["number"]: entry for entry in entries if entry["kind"] == BLOCK}


def _checksum(batch: Batch) -> str:
    """Of its arguments."""
    leaves, spec = pytree.tree_flatten((batch.args, dict(batch.kwargs)))
    digest = hashlib.blake2b(f"{spec}".encode(), digest_size=16)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(bytes_of(plain(leaf)) if leaf.numel() else b"")
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
