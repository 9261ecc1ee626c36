"""What `compress_checkpoint` would do, take and need, before it does anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tensorlrf.compression._render import as_text
from tensorlrf.compression._words import duration
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.methods import Given
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.scale._call import SHARD_BYTES, Call, checked_numbers
from tensorlrf.compression.scale._run import weight_of
from tensorlrf.compression.scale._sizes import sizes_of
from tensorlrf.compression.scale._timing import timing_of
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.planned import plan_for
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import printable
from tensorlrf.files.arguments import PathLike, as_path

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 200


@dataclass(frozen=True)
class CheckpointForecast:
    """What a run by layers would do. Prints itself as the plan and lines below it.

    Parameters
    ----------
    plan : Plan
    bytes_before, bytes_after : int
        Of all tensors, in the source and in the output.
    exact : bool
        Whether `bytes_after` is to the byte, as it is where ranks are fixed (a weight that has NaN
        or Inf stays, whatever the plan says); otherwise it is at most, or by what was tried.
    seconds : float
        That the decompositions take.
    timed : str
        How that was judged.
    peak_bytes : int
        Of memory above interpreter and torch, about: three times the largest factored weight in the
        dtype of its decomposition, and 200 MB.
    disk_needed, disk_free : int or None
        Bytes at the most while the run goes on, its output among them, and what is free there; free
        is None without a target.
    notes : tuple of str
        As of the report.
    """

    plan: Plan
    bytes_before: int
    bytes_after: int
    exact: bool
    seconds: float
    timed: str
    peak_bytes: int
    disk_needed: int
    disk_free: int | None
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it on the disk; None where that is not known."""
        return None if self.disk_free is None else self.disk_needed <= self.disk_free

    def to_json(self) -> str:
        """As JSON text; `plan` is as `Plan.to_json` has it."""
        values = {**vars(self), "plan": json.loads(self.plan.to_json()), "fits": self.fits}
        return json.dumps(values, indent=1)

    def __str__(self) -> str:
        return as_text(self.__rich__(), WIDTH)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        share = self.bytes_after / max(1, self.bytes_before)
        lines = [
            f"bytes of all tensors: {self.bytes_before:,} to {'' if self.exact else 'about '}"
            f"{self.bytes_after:,} ({share:.1%})",
            f"time: about {duration(self.seconds)}, {self.timed}",
            f"memory: about {self.peak_bytes:,} bytes above interpreter and torch",
            f"disk: {self.disk_needed:,} bytes at the most" + self._room(),
            *self.notes,
        ]
        return Group(self.plan.__rich__(), *(Text(printable(line)) for line in lines))

    def _room(self) -> str:
        if self.disk_free is None:
            return ""
        return f", {self.disk_free:,} are free" + ("" if self.fits else ": NOT ENOUGH")


def forecast_checkpoint(
    source: PathLike,
    target: PathLike | None = None,
    *,
    keep_params: float | None = None,
    error: float | None = None,
    method: Given = "svd",
    skip: str | Sequence[str] | None = None,
    plan: Plan | None = None,
    shard_bytes: int = SHARD_BYTES,
    random_state: int = 0,
    threads: int | None = None,
) -> CheckpointForecast:
    """What `compress_checkpoint` would do with the same arguments, and what that takes.

    Nothing is written. A few decompositions are made to see how long they take, of some seconds
    each: of the four kinds of weights that take the longest together, or of parts of them.

    Parameters
    ----------
    source, keep_params, error, method, skip, plan, shard_bytes, random_state, threads
        As in `compress_checkpoint`.
    target : str or path, optional
        Where the output would go; None: the free space there is not looked at, and the output is
        one of shards.

    Returns
    -------
    CheckpointForecast

    Raises
    ------
    FileError, FileFormatError, ArgumentError
        As `compress_checkpoint`, for source and arguments.

    Examples
    --------
    >>> import os, tempfile
    >>> from safetensors.torch import save_file
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = os.path.join(folder, "a.safetensors")
    ...     save_file(model.state_dict(), source)
    ...     forecast = tensorlrf.compression.forecast_checkpoint(source, keep_params=0.5)
    >>> forecast.bytes_before, forecast.bytes_after, forecast.exact
    (16384, 8192, True)
    """
    threads = checked_numbers(random_state, threads, shard_bytes)
    given = as_path(source)
    out = None if target is None else as_path(target)
    stored = StoredTensors.of(given)
    known = Architecture.of(stored)
    plan = plan_for(known, plan, keep_params=keep_params, error=error, method=method, skip=skip)
    call = Call(given, given if out is None else out, stored, known, plan)
    timing = timing_of(call.rows, lambda row: _weight(call, row), threads, random_state)
    sizes = sizes_of(call, timing.shares)
    shards = None if out is not None and out.suffix == ".safetensors" else shard_bytes
    return CheckpointForecast(
        plan,
        stored.n_bytes,
        sizes.tensors,
        sizes.exact,
        timing.seconds,
        timing.told,
        sizes.peak,
        sizes.on_disk(shards),
        None if out is None else _free(out),
        known.notes,
    )


def _weight(call: Call, row: LayerPlan) -> Tensor:
    """Outputs first."""
    module: Any = module_at(call.known.model, row.name)
    blank = module.weight
    weight = call.stored.read(call.known.sources[weight_of(row.name)])
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    try:
        return dense_layer_at(call.known.model, row.name).weight
    finally:
        module._parameters["weight"] = blank


def _free(target: Path) -> int | None:
    """Bytes that are free where it is, or is to be."""
    above = next((one for one in (target, *target.resolve().parents) if one.is_dir()), None)
    if above is None:
        return None
    return shutil.disk_usage(os.fspath(above)).free
