"""The layers of a checkpoint, one after the other: read ahead, factored, written behind."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf import io
from tensorlrf.compression._progress import Advance
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration._memory import readable
from tensorlrf.compression.calibration._suspend import trim
from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.compression.fit._factor import factor
from tensorlrf.compression.fit._factored import Factored, Options
from tensorlrf.compression.fit._fitting import INDEPENDENT
from tensorlrf.compression.moments._fitted import Reader
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.plan._versions import recipe_for
from tensorlrf.compression.scale._device import CPU
from tensorlrf.compression.scale._entries import (
    LAYER,
    SHARD,
    STAYS,
    blank_factors_of,
    part_name,
    said_of,
)
from tensorlrf.compression.scale._parts import is_whole, store
from tensorlrf.compression.scale._report import CheckpointLayer
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.decomposition.linalg.threads import steady
from tensorlrf.errors import FileError, TensorlrfError, lowered_by
from tensorlrf.factors import Factors
from tensorlrf.files.job import NEW, PARTS
from tensorlrf.files.journal import Journal
from tensorlrf.files.safetensors import DTYPES, TORCH_DTYPES, bytes_of, opened
from tensorlrf.files.sealed import checksum_of

NOT_FINITE = "its weight contains NaN or Inf"


@dataclass(frozen=True)
class Run:
    """What is to be done to a checkpoint, and where that is kept.

    stored   its tensors
    known    the model that they are of, on meta
    rows     of the plan, those that get factors, in the order in which they are made
    folder   of the run
    journal  of what is done
    seed     of the methods that draw
    threads  of torch, for every layer alike
    moments  of the inputs of layers, where they were collected before
    device   where they are factored
    """

    stored: StoredTensors
    known: Architecture
    rows: tuple[LayerPlan, ...]
    folder: Path
    journal: Journal
    seed: int
    threads: int
    moments: Reader | None = None
    device: torch.device = CPU

    def done(self) -> dict[str, dict[str, Any]]:
        """Layer -> the entry of the journal, of those whose factors are there or in a shard."""
        found: dict[str, dict[str, Any]] = {}
        placed = {name for entry in self.shards().values() for name in entry["layers"]}
        rows = {row.name: row for row in self.rows}
        for entry in self.journal.entries:
            row = rows.get(entry.get("name", ""))
            if row is None:
                continue
            if entry["kind"] == STAYS or self._is_there(entry, row, row.name in placed):
                found[row.name] = entry
        return found

    def _is_there(self, entry: Mapping[str, Any], row: LayerPlan, placed: bool) -> bool:
        """Whether there are factors of that layer which are what the entry says."""
        if blank_factors_of(entry, os.fspath(self.journal.path)).shape != row.shape:
            return False
        said = said_of(entry)
        return placed or is_whole(self.part(entry["file"]), entry["tensors"], said)

    def shards(self) -> dict[str, dict[str, Any]]:
        """Name of a file -> the entry of the journal, of those that are there and whole."""
        return {
            entry["file"]: entry
            for entry in self.journal.entries
            if entry["kind"] == SHARD
            and is_whole(self.folder / NEW / entry["file"], entry["tensors"])
        }

    def part(self, file: str) -> Path:
        """Where the factors of a layer are until their shard is made."""
        return self.folder / PARTS / file

    def factor_all(
        self,
        left: Iterator[LayerPlan],
        advance: Advance,
        stopped: Callable[[], bool],
    ) -> dict[str, dict[str, Any]]:
        """Layer -> the entry, of those that are `left`. Between two layers it is asked whether to
        stop, and what is at hand is written first."""
        done: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            writing: Future[dict[str, Any]] | None = None
            with closing(self._read_ahead(left, reader)) as weights:
                for row, weight, checksum in weights:
                    made = self._factored(row, weight)
                    del weight
                    if writing is not None:
                        _note(writing.result(), done, advance)
                    writing = writer.submit(self._settle, row, made, checksum)
                    if stopped():
                        break
            if writing is not None:
                _note(writing.result(), done, advance)
        return done

    def _read_ahead(
        self, rows: Iterator[LayerPlan], reader: ThreadPoolExecutor
    ) -> Generator[tuple[LayerPlan, Tensor, str], None, None]:
        """Each layer with its weight and its checksum, while that of the next one is read."""
        row = next(rows, None)
        ahead = None if row is None else reader.submit(self._weight, row)
        while row is not None and ahead is not None:
            (weight, checksum), behind = ahead.result(), next(rows, None)
            ahead = None if behind is None else reader.submit(self._weight, behind)
            yield row, weight, checksum
            del weight
            row = behind

    def _weight(self, row: LayerPlan) -> tuple[Tensor, str]:
        with lowered_by(partial(_less, row)):
            weight = self.stored.read(self.known.sources[weight_of(row.name)])
        return weight, checksum_of(bytes_of(weight))

    def _factored(self, row: LayerPlan, weight: Tensor) -> tuple[Factored | None, float]:
        """The factors, and how long they took; None where the weight has none."""
        begun = time.perf_counter()
        assert row.method is not None
        weight = weight.to(self.device)
        # Either is NaN or Inf exactly when some element is, and needs no mask of the weight's size.
        if not torch.stack(weight.aminmax()).isfinite().all():
            return None, 0.0
        trim(now=True)  # what threads have freed would count beside what a fit allocates
        module: Any = module_at(self.known.model, row.name)
        blank = module.weight
        module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        try:
            layer = dense_layer_at(self.known.model, row.name)
            with lowered_by(partial(_less, row)), steady(self.threads):
                seen = None if self.moments is None else self.moments.of(row.name, layer)
                made = factor(row.name, layer, row.method, seen, Options(random_state=self.seed))
        except TensorlrfError as error:
            error.add_note(f"while factoring {row.name}")
            raise
        finally:
            module._parameters["weight"] = blank
        return made, time.perf_counter() - begun

    def _settle(
        self, row: LayerPlan, made: tuple[Factored | None, float], checksum: str
    ) -> dict[str, Any]:
        found, seconds = made
        reason = NOT_FINITE if found is None else ""
        target = None if found is None or found.samples is None else INDEPENDENT
        return self.settle(row, found, seconds, checksum, reason=reason, target=target)

    def settle(
        self,
        row: LayerPlan,
        found: Factored | None,
        seconds: float,
        checksum: str,
        *,
        reason: str = "",
        target: str | None = None,
    ) -> dict[str, Any]:
        """Write the factors and then the journal; the entry.

        checksum  of the weight
        reason    why there are none
        target    of a fit to inputs
        """
        assert row.method is not None
        entry: dict[str, Any] = {"kind": STAYS, "name": row.name}
        chosen = isinstance(row.method.rank, (int, tuple))
        if found is None:
            entry["reason"] = reason
        elif found.factors.n_params >= math.prod(row.shape) and not chosen:
            entry["reason"] = "no smaller form keeps to what was asked for"
        else:
            factors, file = found.factors, part_name(self.rows.index(row))
            tensors = factors.tensors()
            try:
                checksums = store(self.part(file), tensors)
            except OSError as full:
                raise FileError(f"{self.part(file)} cannot be written: {full}") from full
            entry = {
                "kind": LAYER,
                "name": row.name,
                "file": file,
                "tensors": checksums,
                "shapes": {name: list(t.shape) for name, t in tensors.items()},
                "dtypes": {name: DTYPES[t.dtype] for name, t in tensors.items()},
                "format": factors.format,
                "meta": factors.meta(),
                "recipe": recipe_for(found, target, affine=False),
                "rank": factors.rank,
                "params": factors.n_params,
                "weight_error": found.weight_error,
                "seconds": round(seconds, 3),
                "source": checksum,
            }
            error = found.fit_error if found.held_error is None else found.held_error
            entry |= {} if error is None else {"output_error": error}
        return self.note(entry)

    def note(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Write it to the journal; as it is read from there."""
        try:
            self.journal.add(entry)
        except OSError as full:
            raise FileError(f"{self.journal.path} cannot be written: {full}") from full
        return self.journal.entries[-1]

    def checksum_of(self, layer: str) -> str:
        """Of its weight."""
        return self.stored.checksum(self.known.sources[weight_of(layer)])

    def factors_of(self, entry: Mapping[str, Any]) -> Factors:
        """Of a layer whose part is there."""
        part = self.part(entry["file"])
        with opened(part) as one:
            tensors = {name: one.tensor(name) for name in entry["shapes"]}
        return io.assembled(entry["format"], tensors, entry["meta"], os.fspath(part))


def _less(row: LayerPlan) -> str:
    """What lowers the memory of a decomposition."""
    work = readable(12 * math.prod(row.shape))
    return (
        f"while {row.name} ({' x '.join(map(str, row.shape))}) was read or factored, which takes "
        f"about three times its weight in float32, {work}, beside moments: what is done is kept, "
        f"and with that much free the same call goes on; skip=[{row.name!r}] (--skip) leaves it "
        "out, in a run that begins anew (restart=True, --restart)"
    )


def _note(entry: dict[str, Any], done: dict[str, dict[str, Any]], advance: Advance) -> None:
    """One more layer is done."""
    done[entry["name"]] = entry
    if entry["kind"] == STAYS:
        advance(entry["name"], stays=entry["reason"])
        return
    said = said_of(entry).values()
    size = sum(math.prod(shape) * TORCH_DTYPES[dtype].itemsize for dtype, shape in said)
    told: dict[str, Any] = {key: entry[key] for key in ("format", "rank", "params", "weight_error")}
    advance(entry["name"], took=entry["seconds"], bytes=size, **told)


def place_of(layer: str) -> str:
    """The name that it has in a model; empty for the model itself."""
    return "" if layer == ROOT else layer


def weight_of(layer: str) -> str:
    """The name of its weight."""
    return joined(place_of(layer), "weight")


def told(row: LayerPlan, entry: Mapping[str, Any]) -> CheckpointLayer:
    """Of a report."""
    rank = entry["rank"]
    return CheckpointLayer(
        row.name,
        row.shape,
        entry["format"],
        tuple(rank) if isinstance(rank, (list, tuple)) else rank,
        math.prod(row.shape),
        entry["params"],
        entry["weight_error"],
        entry["seconds"],
        entry.get("output_error"),
    )


def layers_of(
    rows: Sequence[LayerPlan], done: Mapping[str, Mapping[str, Any]]
) -> list[CheckpointLayer]:
    """Rows of the report, in the order of the plan."""
    return [told(row, done[row.name]) for row in rows if done[row.name]["kind"] == LAYER]
