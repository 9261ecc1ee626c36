"""What two checkpoints differ by, each weight's change of low rank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.adapters._adapter import Adapter, check_asked, cut
from tensorlrf.adapters._merge import dense_weight
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.decomposition import fit_svd
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfWarning, warn
from tensorlrf.factors import LowRank
from tensorlrf.files.arguments import PathLike, as_path

_WEIGHT = ".weight"
TABLES = ("*embed*", "*wte*", "*wpe*", "lm_head", "*.lm_head", "shared")
"""What names of embeddings and heads look like, in a file that says no more of them."""

Checkpoint = nn.Module | Mapping[str, Tensor] | PathLike


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    rank: int | None = None,
    *,
    error: float | None = None,
    skip: str | Sequence[str] = (),
) -> Adapter:
    """The adapter that a fine-tuning amounts to: the SVD of what each weight has changed by.

    Parameters
    ----------
    base, tuned : Module, Mapping of str to Tensor, or path
        Before and after: models, state dicts, or safetensors files and folders of them, of which
        two tensors at a time are read.
    rank : int, optional
        Of each layer at most; or instead
    error : float, optional
        The smallest rank of each layer whose relative error, of the change, is at most this.
    skip : str or sequence of str
        Globs of names of layers to leave out.

    Returns
    -------
    Adapter
        With `errors`, in float32 at least. Layers that have not changed are not in it.

    Raises
    ------
    ArgumentError
        Where nothing has changed, where a glob matches nothing, and unless one of rank and error is
        given.
    ShapeError
        Where the two do not have the same tensors.
    FileError, FileFormatError
        As for any checkpoint.

    Warns
    -----
    TensorlrfWarning
        Where tensors have changed that no adapter has: vectors, norms, embeddings. They are named.

    References
    ----------
    Hu et al. 2022, "LoRA"; Eckart & Young 1936.

    Examples
    --------
    >>> base = torch.nn.Linear(8, 6)
    >>> tuned = torch.nn.Linear(8, 6)
    >>> tuned.load_state_dict(base.state_dict())
    <All keys matched successfully>
    >>> tuned.weight.data += torch.ones(6, 1) @ torch.ones(1, 8)
    >>> tensorlrf.adapters.extract({"up.weight": base.weight}, {"up.weight": tuned.weight}, 1)
    Adapter(1 layer, rank 1, 14 parameters)
    """
    check_asked(rank, error)
    globs = [skip] if isinstance(skip, str) else list(skip)
    before, after = _Weights.of(base, "base"), _Weights.of(tuned, "tuned")
    _check_alike(before, after)
    names = [name.removesuffix(_WEIGHT) for name in before.layers]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ArgumentError(
                f"skip: {glob!r} matches no layer; names are such as {', '.join(names[:3])}"
            )
    terms: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    left_out: list[tuple[str, float]] = []
    for key in before.shapes:
        name, one, other = key.removesuffix(_WEIGHT), before.read(key), after.read(key)
        wide = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)
        change = other.detach().to(wide) - one.detach().to(wide)
        if not bool(change.isfinite().all()):
            raise ArgumentError(f"{key!r} has NaN or Inf in base or tuned; load them anew")
        if not bool(change.any()) or any(fnmatchcase(name, glob) for glob in globs):
            continue
        if key not in before.layers:
            size = torch.linalg.vector_norm(one.detach().to(wide)).clamp(min=1e-30)
            left_out.append((key, float(torch.linalg.vector_norm(change) / size)))
            continue
        terms[name], errors[name] = _nearest(change, rank, error)
    if left_out:
        _tell(left_out)
    if not terms:
        raise ArgumentError("base and tuned have equal weights in all layers; nothing to extract")
    where = os.fspath(base) if isinstance(base, (str, os.PathLike)) else ""
    return Adapter(terms, errors=errors, base=where)


def _nearest(change: Tensor, rank: int | None, error: float | None) -> tuple[LowRank, float]:
    most = min(change.shape[0], change[0].numel())
    if error is None:
        assert rank is not None
        fit = fit_svd(change, min(rank, most))
        return fit.factors, fit.error
    whole = fit_svd(change, most, solver="exact").factors
    return cut(whole, None, error)


def _tell(left_out: list[tuple[str, float]]) -> None:
    left_out.sort(key=lambda one: -one[1])
    some = ", ".join(f"{name} by {size:.2g} of itself" for name, size in left_out[:3])
    n = len(left_out)
    more = "" if n <= 3 else f" and {n - 3} more"
    warn(
        f"{n} tensor{'s have' if n > 1 else ' has'} changed that an adapter does not hold: "
        f"{some}{more}; copy them over beside the adapter",
        TensorlrfWarning,
    )


@dataclass(frozen=True)
class _Weights:
    """Tensors by name, read one at a time.

    shapes  of all; `layers` are the names of those that can be changed by low rank
    """

    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple[str, ...]
    held: Any

    @classmethod
    def of(cls, given: Checkpoint, argument: str) -> _Weights:
        if isinstance(given, nn.Module):
            return cls._of_model(given)
        if isinstance(given, Mapping):
            for name, tensor in given.items():
                if not isinstance(tensor, Tensor):
                    raise ArgumentError(
                        f"{argument}: {name!r} is a {type(tensor).__name__}, and no tensor"
                    )
            shapes = {name: tuple(t.shape) for name, t in given.items()}
            return cls(shapes, tuple(_by_name(shapes)), given)
        stored = StoredTensors.of(as_path(given, argument))
        shapes = {name: tuple(stored.info(name).shape) for name in stored.places}
        return cls(shapes, tuple(_by_name(shapes)), stored)

    @classmethod
    def _of_model(cls, model: nn.Module) -> _Weights:
        held = dict(model.state_dict())
        layers = []
        for name, module in model.named_modules():
            key = f"{name}{_WEIGHT}" if name else "weight"
            weight = dense_weight(module)
            if weight is not None and key in held:
                held[key] = weight.detach()  # (out, in), also where it is stored turned
                layers.append(key)
        return cls({name: tuple(t.shape) for name, t in held.items()}, tuple(layers), held)

    def read(self, name: str) -> Tensor:
        held = self.held
        tensor: Tensor = held.read(name) if isinstance(held, StoredTensors) else held[name]
        return tensor.to(torch.float32) if not tensor.is_floating_point() else tensor


def _by_name(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        layer = name.removesuffix(_WEIGHT)
        inside = layer.rpartition("model.")[2]
        table = any(fnmatchcase(inside, glob) for glob in TABLES)
        if layer != name and len(shape) >= 2 and not table:
            yield name


def _check_alike(before: _Weights, after: _Weights) -> None:
    for one, other, where in ((before, after, "tuned"), (after, before, "base")):
        if missing := [name for name in one.shapes if name not in other.shapes]:
            raise ShapeError(
                f"{where} has no {missing[0]!r}" + (
                    f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
                ) + "; give two checkpoints of one architecture"
            )  # fmt: skip
    for name, shape in before.shapes.items():
        if shape != after.shapes[name]:
            raise ShapeError(
                f"{name!r} has shape {shape} in base, and {after.shapes[name]} in tuned; give two "
                "checkpoints of one architecture"
            )
