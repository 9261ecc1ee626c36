"""`tensorlrf.calibrate`: what the layers of a model are fed, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._survey import included
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.moments._kept import InMemory, moved
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._passes import Part, Parted, Watched
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast


def calibrate(
    model: nn.Module,
    calibration: Any,
    *,
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    memory_limit: int | None = None,
    progress: bool = True,
) -> Moments:
    """Sum up the first and second moments of the inputs of a model's layers.

    One pass a batch of the given model, whose activations are alive a batch at a time. What comes
    of it serves `compress`, `plan` and `compress_checkpoint` as ``moments=``, in place of the
    batches, again and again, on other machines, and added to those of other batches.

    Parameters
    ----------
    model : Module
        It runs in eval mode without grad, and stays as it is.
    calibration : iterable of batches, DataLoader or callable
        As in `apply`. Nothing is held out.
    skip, include
        Which layers, as in `plan`: by default all that could be factored but heads and embeddings.
    memory_limit : int, optional
        Bytes that the fit of a layer may take later, as in `apply`; a layer that would take more
        has a sketch of its second moments. By default half of the memory that is free: give the
        same number wherever moments are collected that are to be added.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    Moments

    Raises
    ------
    ArgumentError
        Where no layer is eligible, a glob matches nothing, the model cannot take the batches, or a
        limit is below what a layer takes at the least.

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
    model = unpacked_model(model)
    if calibration is None:
        raise ArgumentError("calibration=None: give batches, such as tensors in a list")
    data = Calibration.read(calibration, model, 0.0)
    assert data is not None
    with torch.inference_mode(False), without_autocast():
        watched = Watched.of(model, data, skip, included(include), memory_limit)
        with progress_bar("calibrate", len(data.batches), progress) as advance:
            part = Part(watched, watched.names)
            while True:
                try:
                    part.run(advance, _nothing)
                    break
                except Parted as found:
                    part = Part(part.watched.without(found.names), watched.names)
    rows = part.rows()
    sums = {
        row.name: tuple(moved(row, one, Tensor.cpu) for one in part.sums.pop(row.name).sums)
        for row in rows
        if row.count and not row.like
    }
    return Moments(tuple(rows), len(data.batches), InMemory(sums))


def _nothing() -> None:
    pass
