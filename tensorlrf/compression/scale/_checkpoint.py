"""A checkpoint made smaller without its model: a layer at a time, and nothing done twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.checkpoint.companions import copy_companions
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.source import CONFIG, GENERATION
from tensorlrf.compression.methods import Given
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.scale._assembled import assembled
from tensorlrf.compression.scale._call import SHARD_BYTES, Call, checked_numbers
from tensorlrf.compression.scale._entries import check_entry
from tensorlrf.compression.scale._finished import finished
from tensorlrf.compression.scale._journal import Journal
from tensorlrf.compression.scale._report import CheckpointReport
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale._stopping import Stopping
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.planned import plan_for
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import FileError
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.folder import place, present, put_right
from tensorlrf.files.job import JOURNAL, NEW, held, job_folder
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
    shard_bytes: int = SHARD_BYTES,
    random_state: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
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
    shard_bytes : int
        That a file of the output holds at the most, or one tensor.
    random_state : int
        Of the methods that draw.
    threads : int, optional
        Of torch, for every layer alike, or sums would be added in another order the next time; by
        default torch's own number.
    overwrite : bool
        Whether an output that is there may be replaced.
    restart : bool
        Begin anew where a run into this output has not ended.
    progress : bool
        Show a bar on a terminal.

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
        For what `tensorlrf.plan` refuses, and where a run into this output has not ended and was
        begun with other arguments or another source.
    KeyboardInterrupt
        After Ctrl-C, once the layer at hand is written; SIGTERM then ends the process as it would.

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
    given, out = as_path(source), as_path(target)
    fixed = checked_numbers(random_state, threads, shard_bytes)
    as_folder = out.suffix != ".safetensors"
    stored = StoredTensors.of(given)
    there = _check_output(given, out, as_folder)
    known = Architecture.of(stored)
    plan = plan_for(known, plan, keep_params=keep_params, error=error, method=method, skip=skip)
    call = Call(given, out, stored, known, plan)
    head = {
        "made_by": made_by(),
        "torch": torch.__version__,
        "source": stored.fingerprint(),
        "architecture": fingerprint(known.model),
        "plan": checksum_of(plan.to_json().encode()),
        "shard_bytes": shard_bytes if as_folder else None,
        "random_state": random_state,
        "threads": fixed,
    }
    if there and not restart and not (job_folder(out, as_folder=as_folder) / JOURNAL).exists():
        # Without a word on threads any number is as good.
        found = finished(call, head if threads is not None else head | {"threads": None})
        if found is not None:
            return call.report(found.entries, found.tensors, found.n_bytes, already=True)
    if there and not overwrite:
        raise _exists(out)
    with held(out, as_folder=as_folder, restart=restart) as folder:
        journal = Journal(folder / JOURNAL, head, check_entry)
        try:
            run = Run(stored, known, call.rows, folder, journal, random_state, fixed)
            resumed = len(run.done())
            with (
                Stopping() as stopped,
                progress_bar("compress", len(call.rows), progress) as advance,
            ):
                done = run.factor_all(advance, stopped)
                stopped.end(
                    f"{len(done):,} of {len(call.rows):,} layers are done and kept in {folder}"
                )
                made = assembled(run, done, shard_bytes, None if as_folder else out.name)
            if as_folder and given.is_dir():
                _copy_small_files(given, folder / NEW)
        finally:
            journal.close()
        _put_in_place(out, folder, as_folder=as_folder, overwrite=overwrite)
    return call.report(done, made.tensors, made.n_bytes, resumed)


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
        if (source / name).is_file():
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
