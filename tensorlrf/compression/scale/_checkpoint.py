"""A checkpoint made smaller without its model: a layer at a time, and nothing done twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.checkpoint.companions import copy_companions
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.source import CONFIG, GENERATION
from tensorlrf.compression.group._group import Alone, ranks_here
from tensorlrf.compression.methods import Given
from tensorlrf.compression.moments._fitted import Reader
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.scale._assembled import assembled
from tensorlrf.compression.scale._call import SHARD_BYTES, Call, checked_numbers
from tensorlrf.compression.scale._collected import collected
from tensorlrf.compression.scale._device import device_of, head_of
from tensorlrf.compression.scale._finished import finished
from tensorlrf.compression.scale._ranks import (
    handed_out,
    held_by_first,
    journal_of,
    of_first,
    of_others,
    telling,
)
from tensorlrf.compression.scale._report import CheckpointReport
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale._stopping import Stopping
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.blocks._blockwise import Blockwise, asked, fitting_of
from tensorlrf.compression.scale.planned import plan_for
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import FileError, lowered_by
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.events import log_to
from tensorlrf.files.folder import place, present, put_right
from tensorlrf.files.job import JOURNAL, NEW, clear
from tensorlrf.files.replace import check_target, replacing
from tensorlrf.files.sealed import checksum_of, made_by


def compress_checkpoint(
    source: PathLike,
    target: PathLike,
    *,
    keep_params: float | None = None,
    error: float | None = None,
    method: Given = "svd",
    skip: str | Sequence[str] | None = None,
    plan: Plan | None = None,
    moments: Moments | PathLike | None = None,
    model: nn.Module | None = None,
    calibration: Any = None,
    inputs: str = "original",
    holdout: float = 0.1,
    memory_limit: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    random_state: int = 0,
    threads: int | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    restart: bool = False,
    log: PathLike | None = None,
    progress: bool = True,
) -> CheckpointReport:
    """Make the weights of a checkpoint smaller, a layer at a time, without building its model.

    A folder with the config.json of a model of transformers is taken for that model, where the
    package is there: layers that can be factored, ties and what stays are those of `compress`, and
    `tensorlrf.load(target)` gives the model back. Of all else names and shapes tell which tensors
    are the weights of linear layers and convolutions. One is read while the one before is factored,
    and written while the next one is: memory is that of one layer, whatever the checkpoint holds.
    What is done is kept in a folder beside the output (`.tensorlrf.job` in a folder, `.NAME.job`
    beside a file), with a journal. A run that is killed goes on there when it is called again, and
    ends with the same bytes.

    Parameters
    ----------
    source : str or path
        A .safetensors file, or a folder with model.safetensors or shards and their index. It is
        only read.
    target : str or path
        A name with the suffix .safetensors for one file, else a folder, which gets
        tensorlrf.safetensors, that names the tensors, shards with these, and the small files of the
        source (config.json, tokenizers). `tensorlrf.load(target, model)` reads both.
    keep_params, error : float, optional
        As in `tensorlrf.plan`: the share of the weights that is kept, alike in every layer, or the
        relative error that a weight may have. Or neither, where every method has its own.
    method, skip
        As in `tensorlrf.plan`.
    plan : Plan, optional
        What an earlier call of `tensorlrf.plan` on such layers gave; without budget, method and
        skip.
    moments : Moments or path, optional
        What `tensorlrf.calibrate` has summed of the inputs of this very model, or the file with it:
        layers are then fitted to these, those of one layer in memory at a time, and `error` is one
        of their outputs. In place of `calibration`.
    model : Module, optional
        What the files are of, where no config.json tells: built under `torch.device("meta")`, or
        with parameters there alone where it has buffers that are in no file. It stays as it is.
    calibration : iterable of batches, optional
        Inputs to fit to, as `compress` takes them. The model is then gone through block by block
        (the modules of one type that a list of it holds, as the layers of a transformer, or the
        children of a Sequential): one block has its weights in memory, its layers are fitted to
        what those before it deliver, and what it puts out for each batch goes on to the next. All
        batches run up to each layer of the block anew, one at a time. Within a process group each
        rank gives batches of its own.
    inputs : {"original", "prefix", "independent"}
        What the outputs of a layer are fitted to, as `target` of `compress`. "original" has each
        block twice in memory.
    holdout : float
        Share of the batches that judge, as in `compress`.
    memory_limit : int, optional
        Most bytes of the moments and the fit of one layer, as in `compress`, and of what blocks put
        out beside these: more of that lies in files of the folder of the run. By default half of
        the memory that is free when the run begins.
    shard_bytes : int
        That a file of the output holds at the most, or one tensor.
    random_state : int
        Of the methods that draw.
    threads : int, optional
        Of torch, for every layer alike, or sums would be added in another order the next time; by
        default torch's own number.
    device : str or torch.device, optional
        Where layers are factored, or the block at hand runs, one at a time; the CPU by default.
        Within a process group on one machine "cuda" gives each rank a GPU of its own.
    overwrite : bool
        Whether an output that is there may be replaced.
    restart : bool
        Begin anew where a run into this output has not ended.
    log : str or path, optional
        A file that gets a line of JSON for each layer and shard, as of `tensorlrf.log_to`.
    progress : bool
        Show on stderr how far it is: a bar on a terminal, elsewhere a line a minute.

    Returns
    -------
    CheckpointReport

    Raises
    ------
    FileError
        Where there is nothing to read, the output exists and is another one (what this call has
        made of this source before is left as it is, and the report says so) or cannot be written (a
        disk that is full loses nothing: the same call goes on), or another run is at it.
    FileFormatError
        Where a file is damaged, a shard is missing, the index and the shards say different things,
        or the journal is damaged.
    ArgumentError
        For what `tensorlrf.plan` refuses, moments of another model (the first layer that differs is
        named), and where a run into this output has not ended and was begun with other arguments,
        another source, other inputs or moments; for a `memory_limit` below what
        a layer takes at the least, which is told; for NaN or Inf in a weight that inputs go
        through, or in the inputs of a layer.
    UnsupportedError
        For `calibration` of a model that is not known, that has no blocks, or whose blocks need
        more than what the one before puts out.
    GroupError
        Within a process group, on all ranks: where they do not agree on what is to be done, before
        any work, and where one of them is lost or fails; the same call goes on.
    KeyboardInterrupt
        After Ctrl-C, once the layer at hand is written; SIGTERM then ends the process as it would.

    Warns
    -----
    CalibrationWarning
        Of layers of which the moments know nothing, or little.

    Examples
    --------
    >>> import os, tempfile
    >>> from safetensors.torch import save_file
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = (os.path.join(folder, n) for n in ("a.safetensors", "small"))
    ...     save_file(model.state_dict(), source)
    ...     report = tensorlrf.compress_checkpoint(source, target, keep_params=0.5)
    ...     small = tensorlrf.load(target, model)
    >>> small[0].factors.rank
    16
    """
    with log_to(log, "compress_checkpoint"), ranks_here() as group:
        given, out, where = as_path(source), as_path(target), device_of(device, group)
        fixed = checked_numbers(random_state, threads, shard_bytes)
        stored = StoredTensors.of(given)
        fits = calibration is not None  # as in memory, where packed modules are taken apart
        if model is None:
            known = Architecture.of(stored, apart=fits)
        else:
            known = Architecture.given(model, stored, apart=fits)
        stored = stored.with_derived(known.derived)
        plan = plan_for(known, plan, keep_params=keep_params, error=error, method=method, skip=skip)
        call = Call(given, out, stored, known, plan)
        seen = collected(moments, known, stored, call.rows, alone=calibration is None)
        head = {
            "made_by": made_by(),
            "torch": torch.__version__,
            "source": stored.fingerprint(),
            "architecture": fingerprint(known.model),
            "plan": checksum_of(plan.to_json().encode()),
            "shard_bytes": shard_bytes if call.as_folder else None,
            "random_state": random_state,
            "threads": fixed,
            **head_of(where),
        }
        head |= {} if seen is None else {"moments": seen.checksum()}
        fitting = fitting_of(
            calibration, inputs=inputs, holdout=holdout, memory_limit=memory_limit,
            random_state=random_state,
        )  # fmt: skip
        told = {"target": out.name, "overwrite": overwrite, "restart": restart}
        told |= {"calibrated": fitting is not None, **asked(fitting)}
        group.agree({"call": "compress_checkpoint", **head, **told})
        blockwise = None
        if fitting is not None:
            blockwise = Blockwise.of(known, plan, calibration, fitting, group, where)
            head |= blockwise.head()
        before: dict[str, Any] | None = None
        if group.is_first:
            # Without a word on threads any number is as good.
            like = head if threads is not None else head | {"threads": None}
            before = _before(call, like, overwrite=overwrite, restart=restart)
        before = of_first(group, "before", before)
        if before is not None:
            return call.report(**before, already=True)
        with held_by_first(group, out, as_folder=call.as_folder, restart=restart) as folder:
            found = _carried_out(
                group, call, head, folder, blockwise, seen, where, progress=progress
            )
            if group.is_first:
                _put_in_place(out, folder, as_folder=call.as_folder, overwrite=overwrite)
        return call.report(**of_first(group, "after", found))


def _before(
    call: Call, head: Mapping[str, Any], *, overwrite: bool, restart: bool
) -> dict[str, Any] | None:
    """What an earlier run has left at the output, where that is all that this one would make.

    Raises FileError for another output that may not be replaced.
    """
    there = _check_output(call.source, call.target, call.as_folder)
    if there and not restart:
        found = finished(call, head)
        if found is not None:
            # One that was killed once all was in its place has left the folder of its run.
            clear(call.target, as_folder=call.as_folder)
            return {"done": found.entries, "tensors": found.tensors, "n_bytes": found.n_bytes}
    if there and not overwrite:
        raise _exists(call.target)
    return None


def _carried_out(
    group: Alone,
    call: Call,
    head: Mapping[str, Any],
    folder: Path,
    blockwise: Blockwise | None,
    moments: Moments | None,
    device: torch.device,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Make the files of the output, with the other ranks; what the report tells of them, as the
    first rank knows it."""
    rows, found = call.rows, dict[str, Any]()
    journal = journal_of(group, folder, head)
    try:
        run = Run(
            call.stored, call.known, rows, folder, journal, head["random_state"], head["threads"],
            None if moments is None else Reader(moments), device,
        )  # fmt: skip
        with (
            Stopping() as stopped,
            progress_bar(
                "compress", len(rows), progress and group.is_first, layers=True
            ) as advance,
        ):
            done = run.done() if group.is_first else {}
            resumed = len(done)
            if blockwise is not None:
                own = advance if group.is_first else partial(advance, logged=False)
                with lowered_by(_less):
                    done = blockwise.carry_out(run, own, stopped)
            else:
                for name in done:
                    advance(name, earlier=True)
                told = telling(group, advance)
                done |= run.factor_all(handed_out(group, rows, done), told, stopped)
                done |= of_others(group, journal, folder, head, told, stopped)
            stopped.end(f"{len(done):,} of {len(rows):,} layers are done and kept in {folder}")
            if group.is_first:
                file = None if call.as_folder else call.target.name
                made = assembled(run, done, head["shard_bytes"] or 0, file)
                found = {"done": done, "resumed": resumed, **vars(made)}
        if group.is_first and call.as_folder and call.source.is_dir():
            _copy_small_files(call.source, folder / NEW)
    finally:
        journal.close()
    return found


def _less() -> str:
    """What lowers the memory of a run with inputs."""
    return (
        "block by block: memory_limit= bounds moments and activations, and smaller batches take "
        "less; what is done is kept"
    )


def _check_output(source: Path, target: Path, as_folder: bool) -> bool:
    """Whether there is something in its place. Raise FileError where that cannot become what is
    asked for."""
    if not as_folder:
        if target.exists() and os.path.samefile(source, target):
            raise FileError(f"target={os.fspath(target)!r} is the source; give another name")
        check_target(target, overwrite=True)
        return os.path.lexists(target)
    if os.path.lexists(target) and not target.is_dir():
        raise FileError(f"target={os.fspath(target)!r} is a file; give the name of a folder")
    if not target.parent.is_dir():
        raise FileError(
            f"target={os.fspath(target)!r}: the folder {str(target.parent)!r} is missing; make it "
            "first"
        )
    new, old = target.resolve(), source.resolve()
    if source.is_dir() and (new == old or old in new.parents or new in old.parents):
        raise FileError(
            f"target={os.fspath(target)!r} and the source lie in each other; give another name"
        )
    put_right(target)
    there = present(target)
    if there and not (target / TENSORS).is_file():
        raise FileError(
            f"target={os.fspath(target)!r} has no {TENSORS}, so it was not written by tensorlrf "
            "and is not replaced; give another name"
        )
    return bool(there)


def _exists(target: Path) -> FileError:
    return FileError(
        f"target={os.fspath(target)!r} exists, and is not what this call makes of this source; "
        "give another name, or overwrite=True to replace it"
    )


def _copy_small_files(source: Path, target: Path) -> None:
    for name in (CONFIG, GENERATION):
        if (source / name).is_file() and not (target / name).is_file():
            shutil.copyfile(source / name, target / name)
    copy_companions(source, target)


def _put_in_place(target: Path, folder: Path, *, as_folder: bool, overwrite: bool) -> None:
    """All that is new to its place, all or nothing; the folder of the run goes."""
    if as_folder:
        place(target, folder, overwrite=overwrite)
        return
    with replacing(target, overwrite=overwrite) as part:
        os.replace(folder / NEW / target.name, part)
    (folder / JOURNAL).unlink()
