"""Models to files and back: safetensors with a header from which the layers are rebuilt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression.checkpoint import folder
from tensorlrf.compression.checkpoint._reading import reading
from tensorlrf.compression.checkpoint._rebuild import unpack
from tensorlrf.compression.checkpoint._store import pack, pack_checkpoint
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.files.arguments import PathLike, as_device, as_path
from tensorlrf.files.replace import check_target
from tensorlrf.files.sealed import write_sealed
from tensorlrf.nn.whole import check_whole


def save(model: nn.Module, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a whole model, its factored layers included, to one file; `load` reads it.

    Written to a temporary name and renamed, so that no half of a file is ever seen. Nothing is
    pickled.

    Parameters
    ----------
    model : Module
        Any module. Kept are parameters, buffers (those that are not persistent too), tensors kept
        as plain attributes, what get_extra_state returns where that is JSON, ties between tensors;
        of factored layers also the recipe and the measured path tables; the table that
        `rank_table` has made. Not kept: hooks, and
        tensors in lists or dicts of a module.
    path : str or path
        A file, by custom with the suffix .safetensors. For a model of transformers also a folder,
        one that exists or a name without suffix: it gets model.safetensors, config.json,
        generation_config.json, tensorlrf.safetensors (checksums, and what no state dict has) and,
        where there is none of your own, a README.md. It loads without a `model`, and after `import
        tensorlrf.hf` by `from_pretrained` too.
    overwrite : bool
        Whether what is there may be replaced.

    Raises
    ------
    FileError
        Where `path` exists or cannot be written.
    UnsupportedError, ArgumentError
        That names the tensor or module that a file cannot hold.

    Examples
    --------
    >>> import os, tempfile
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(model, keep_params=0.5)
    >>> x = torch.rand(3, 64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     tensorlrf.save(small, path)
    ...     torch.equal(tensorlrf.load(path, model)(x), small(x))
    True
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    model = uncompiled(model)
    check_whole(model, "a file")
    target = as_path(path)
    if folder.is_for(model, target):
        folder.save(model, target, overwrite=overwrite)
        return
    check_target(target, overwrite)
    tensors, header = pack(model)
    write_sealed(target, KEY, header.to_text(), tensors, overwrite=overwrite)


def load(
    path: PathLike,
    model: nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The model that `save` wrote.

    dtypes are those of the file; training flags and requires_grad those of `model`. Buffers that
    are not persistent and tensors in plain attributes are those of `model` where it has values for
    them, in the dtype of the file, else those of the file.

    Parameters
    ----------
    path : str or path
        The file, or a folder with a model of transformers (needs the extra `hf`), whoever wrote it,
        `save` or `save_pretrained`. No code of it is run, and no link that leads out is followed,
        but for those from the snapshot of a Hugging Face cache into its blobs.
    model : Module, optional
        The architecture: the dense model, with any weights or on the meta device (`with
        torch.device("meta"): Net()`), or the compressed model itself. It stays as it is. None for a
        folder only.
    device : device or str, optional
        Where the tensors go; by default each where its like in `model` is, from meta to the CPU.

    Returns
    -------
    Module

    Raises
    ------
    FileError
        Where there is nothing to read.
    FileFormatError
        That names the tensor or module where the file is damaged, from a later version, or made for
        another architecture.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    model = None if model is None else uncompiled(model)
    if model is not None:
        check_whole(model, "a file")
    target = None if device is None else as_device(device)
    if os.path.isdir(as_path(path)):
        return folder.load(as_path(path), model, target)
    if model is None:
        raise ArgumentError(
            f"model=None, but path={os.fspath(path)!r} is a file: pass the architecture, for "
            'instance built under `with torch.device("meta"):`'
        )
    with reading(path) as file:
        return unpack(file.header, file.tensor, model, target, os.fspath(path))


def write_checkpoint(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    *,
    plan: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint whose model is not at hand, with factors in place of some weights.

    `load(path, model)` finds the layers by these names, and checks names and shapes alone.

    Parameters
    ----------
    path : str or path
    tensors : Mapping
        Name -> tensor, of all others.
    factors : Mapping
        Name of a weight, "blocks.0.weight" -> its factors.
    plan : Mapping, optional
        Name of a layer, "blocks.0" -> how its factors were made, as JSON values.
    overwrite : bool
        Whether what is there may be replaced.

    Raises
    ------
    FileError, ArgumentError, UnsupportedError
        As `save` does.

    Examples
    --------
    >>> import os, tempfile
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 8))
    >>> f = tensorlrf.svd(model[0].weight.detach(), 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     tensorlrf.compression.write_checkpoint(
    ...         path, {"0.bias": model[0].bias.detach()}, {"0.weight": f}
    ...     )
    ...     tensorlrf.load(path, model)[0].factors.rank
    2
    """
    check_target(as_path(path), overwrite)
    written, header = pack_checkpoint(tensors, factors, plan or {})
    write_sealed(path, KEY, header.to_text(), written, overwrite=overwrite)
