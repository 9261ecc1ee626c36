"""`tensorlrf.calibrate`: what the layers of a model are fed, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._survey import included
from tensorlrf.compression._unpacked import shared_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.group._alike import check_alike
from tensorlrf.compression.group._group import ranks_here
from tensorlrf.compression.moments._kept import InMemory
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._passes import Part, Parted, Watched
from tensorlrf.compression.moments._ranks import over_ranks
from tensorlrf.compression.moments._run import Target, summed_into
from tensorlrf.errors import ArgumentError, lowered_by
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.arguments import PathLike, as_path


def calibrate(
    model: nn.Module,
    calibration: Any,
    path: PathLike | None = None,
    *,
    add: Sequence[PathLike | Moments] = (),
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    memory_limit: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = True,
) -> Moments:
    """Sum up the first and second moments of the inputs of a model's layers.

    One pass a batch of the given model, whose activations are alive a batch at a time. What comes
    of it serves `compress`, `plan` and `compress_checkpoint` as ``moments=``, in place of the
    batches, again and again, on other machines, and added to those of other batches.

    Within a process group of torch.distributed it is a call of all ranks, each with batches of its
    own, as many or few as it has: all get the sums of all batches, those of one process to
    rounding and bit for bit the same on every rank, by one all-reduce for each layer. Matrices of a
    model under `fully_shard` stay on their ranks.

    Parameters
    ----------
    model : Module
        It runs in eval mode without grad, and stays as it is.
    calibration : iterable of batches, DataLoader or callable
        As in `apply`. Nothing is held out.
    path : str or path, optional
        A file to sum up into, in place of memory: some layers at a time, with more passes, where
        there is no room for all of them. What is done is kept beside it, in `.NAME.job`, every so
        many batches: a run that is killed goes on there when it is called again, and ends with the
        same bytes. Among ranks, which all see it, the first one writes it, and each keeps what it
        has done beside it, in `.NAME.RANK-of-RANKS.job`.
    add : sequence of Moments or paths
        Of the same model, to be added in the file; in whichever order.
    skip, include
        Which layers, as in `plan`: by default all that could be factored but heads and embeddings.
    memory_limit : int, optional
        Bytes that the fit of a layer may take later, as in `apply`; a layer that would take more
        has a sketch of its second moments. By default half of the memory that is free: give the
        same number wherever moments are collected that are to be added.
    threads : int, optional
        Of torch, with `path`, for every pass alike, or sums would be rounded in another way the
        next time; by default torch's own number.
    overwrite : bool
        Whether a file that is there may be replaced.
    restart : bool
        Begin anew where a run into this file has not ended.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    Moments
        With `path` those in the file.

    Raises
    ------
    ArgumentError
        Where no layer is eligible, a glob matches nothing, the model cannot take the batches, a
        limit is below what a layer takes at the least, what is to be added is of another model, or
        a run into this file that has not ended was begun with another model, data, number of
        threads or of ranks.
    GroupError
        On all ranks, where they have not the same model and arguments, or one is lost.
    FileError
        Where the file exists or cannot be written, or another run is at it.
    KeyboardInterrupt
        After Ctrl-C, once the batch at hand is done.

    Warns
    -----
    CalibrationWarning
        Of layers whose moments are sketched, or not kept, for want of memory.

    References
    ----------
    Ghashami et al. 2016 (sketches).

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> moments = tensorlrf.calibrate(model, [torch.rand(256, 64)], skip=[])
    >>> small, report = tensorlrf.compress(model, keep_params=0.5, skip=[], moments=moments)
    >>> report.target, report.layer("2").data_aware
    ('independent', True)
    """
    if calibration is None:
        raise ArgumentError("calibration=None: give batches, such as tensors in a list")
    with ranks_here() as group:
        model = shared_model(model, group)
        target = _target(path, add, threads, overwrite=overwrite, restart=restart)
        kinds = included(include)
        added = [] if target is None else [one.checksum() for one in target.others]
        asked: dict[str, Any] = {
            "call": "calibrate", "path": None if path is None else f"{path}", "add": added,
            "skip": skip, "include": kinds, "memory_limit": memory_limit, "threads": threads,
            "overwrite": overwrite, "restart": restart,
        }  # fmt: skip
        check_alike(group, model, asked)
        data = Calibration.read(calibration, model, 0.0, memory_limit, group=group)
        assert data is not None
        return _summed(model, data, skip, kinds, memory_limit, target, progress and group.is_first)


def _summed(
    model: nn.Module,
    data: Calibration,
    skip: str | Sequence[str] | None,
    include: Sequence[str],
    limit: int | None,
    target: Target | None,
    progress: bool,
) -> Moments:
    with torch.inference_mode(False), without_autocast(), lowered_by(_less):
        watched = Watched.of(model, data, skip, include, limit)
        if target is not None:
            return summed_into(target, watched, progress)
        with progress_bar("calibrate", len(data.batches), progress) as advance:
            part = Part(watched, watched.names)
            while True:
                try:
                    part.run(advance, _nothing)
                    break
                except Parted as found:
                    part = Part(part.watched.without(found.names), watched.names)
        own = Moments(tuple(part.rows()), part.done, InMemory(part.settled(Tensor.cpu)))
        return own if data.group.size == 1 else over_ranks(own, data.group)


def _less() -> str:
    """What lowers the memory of collecting moments."""
    return (
        "while moments were summed up: smaller batches (--batch-size) take less, and memory_limit= "
        "(--memory-limit) bounds the moments of a layer; into a file (path=) they are summed up "
        "some layers at a time"
    )


def _target(
    path: PathLike | None,
    add: Sequence[PathLike | Moments],
    threads: int | None,
    *,
    overwrite: bool,
    restart: bool,
) -> Target | None:
    """Where moments go; None where they stay in memory. Raises ArgumentError, and what
    `Moments.load` raises."""
    if path is None:
        given = {"add": add, "threads": threads, "overwrite": overwrite, "restart": restart}
        for name, value in given.items():
            if value:
                raise ArgumentError(f"{name}={value!r} is of a file; give path=")
        return None
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise ArgumentError(f"threads={threads!r} must be an int of at least 1")
    others = [one if isinstance(one, Moments) else Moments.load(one) for one in add]
    others.sort(key=Moments.checksum)  # so that the order in which they are named does not matter
    own = torch.get_num_threads() if threads is None else threads
    return Target(as_path(path), others, own, overwrite, restart)


def _nothing() -> None:
    pass
