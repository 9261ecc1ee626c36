"""Calibration batches: what a user may give, and how the model is called with one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration.draws import OwnDraws
from tensorlrf.errors import ArgumentError, TensorlrfError, is_out_of_memory

MASK = "attention_mask"
"""Keyword under which models take a mask of tokens, 1 for a token and 0 for padding."""


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of the model.

    names  what the model calls those without a keyword, as far as that is known
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    index: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any, index: int = 0) -> Batch:
        """A tensor, a tuple or list (positional arguments) or a mapping (keyword arguments)."""
        if isinstance(value, Batch):
            return value
        if isinstance(value, Mapping):
            return cls((), dict(value), index)
        if isinstance(value, (tuple, list)):
            return cls(tuple(value), {}, index)
        return cls((value,), {}, index)

    @property
    def mask(self) -> Tensor | None:
        """(batch, tokens), True for tokens: what padding adds is none of the layers' inputs."""
        mask = {**dict(zip(self.names, self.args, strict=False)), **self.kwargs}.get(MASK)
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.is_floating_point():
            return None
        return mask != 0

    @property
    def samples(self) -> int:
        """How many there are, by the first tensor."""
        values = (*self.args, *self.kwargs.values())
        first = next((v for v in values if isinstance(v, Tensor) and v.ndim > 0), None)
        return 1 if first is None else max(1, int(first.shape[0]))

    def tokens_of(self, x: Tensor) -> Tensor:
        """The rows of a linear layer's input (..., n) that stand for tokens: (N, n). An input that
        is not laid out by tokens stays as it is."""
        mask = self.mask
        if mask is None or mask.device != x.device or mask.all():
            return x
        if x.shape[:-1] == mask.shape:
            return x[mask]
        if x.ndim == 2 and x.shape[0] == mask.numel() and min(mask.shape) > 1:
            return x[mask.flatten()]
        return x


REMEDY = (
    "pass an iterable of batches: tensors, tuples (positional arguments) or dicts (keyword "
    "arguments); or a function that runs the model it is given"
)


NOTHING = f"yields nothing (was an iterator used up?); {REMEDY}"


def list_batches(
    calibration: Any, model: nn.Module, argument: str = "calibration", *, some: bool = True
) -> list[Batch]:
    """All batches of an iterable or DataLoader, drawn once; or the calls that a function makes of
    `model`, a replica in eval mode; `argument` is what the user knows them by.

    some  whether there has to be one

    Raises ArgumentError where there is none, and for anything else.
    """
    is_function = callable(calibration) and not isinstance(calibration, (nn.Module, type))
    if is_function and not isinstance(calibration, Iterable):
        return _calls_of(calibration, model, argument)
    if isinstance(calibration, (Tensor, Mapping, str, bytes)) or not isinstance(
        calibration, Iterable
    ):
        hint = f"; for one batch write {argument}=[batch]"
        raise ArgumentError(f"{argument} is a {type(calibration).__name__}; {REMEDY}{hint}")
    with OwnDraws():  # a DataLoader draws an order, and its data may be drawn as well
        values = list(calibration)
    if not values and some:
        raise ArgumentError(f"{argument} {NOTHING}")
    for k, value in enumerate(values):
        if not isinstance(value, (Tensor, tuple, list, Mapping)):
            raise ArgumentError(f"{argument}: batch {k} is a {type(value).__name__}; {REMEDY}")
    names = names_of(model)
    return [replace(Batch.of(value, k), names=names) for k, value in enumerate(values)]


def names_of(model: nn.Module) -> tuple[str, ...]:
    """What the model calls its positional arguments, so that a mask is found without keyword."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of a forward that is not written in Python
        return ()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, _BY_PLACE_OR_NAME))


_BY_PLACE_OR_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _calls_of(function: Callable[[nn.Module], Any], model: nn.Module, argument: str) -> list[Batch]:
    """The arguments of every call of the model itself while the function runs it."""
    calls = _Calls(names_of(model))
    handle = model.register_forward_pre_hook(calls.note, with_kwargs=True, prepend=True)
    try:
        with torch.no_grad(), OwnDraws():
            function(model)
    except TensorlrfError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"{argument}: the function fails on the model"
            f"{_where(model, error.__traceback__)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        handle.remove()
    if not calls.found:
        raise ArgumentError(
            f"{argument}: the function returned without a call of model(...); calls of its parts "
            "or of its methods are not seen, so call the model itself"
        )
    return calls.found


@dataclass(frozen=True)
class _Calls:
    """Those of a model, whose positional arguments have these names."""

    names: tuple[str, ...]
    found: list[Batch] = field(default_factory=list)

    def note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the forward of the model."""
        # What comes in may be written to, by the function or by the model: a cache grows.
        args, kwargs = fresh((args, dict(kwargs)))
        self.found.append(Batch(args, kwargs, len(self.found), self.names))


def fresh(value: Any) -> Any:
    """A copy of arguments in lists, tuples and dicts, so that a model that works in place, or fills
    a cache, leaves the given ones alone. What cannot be copied, such as a lock, stays itself."""
    memo: dict[int, Any] = {}

    def copied(leaf: Any) -> Any:
        try:
            with _Clones():
                return copy.deepcopy(leaf, memo)
        except Exception:
            return leaf

    # Whatever else is registered as a pytree may be more than its leaves.
    plain = (dict, list, tuple)
    return pytree.tree_map(copied, value, is_leaf=lambda v: type(v) not in plain)


class _Clones(TorchFunctionMode):
    """Deepcopy makes clones of tensors: its own would take their whole storage, of which a batch
    may be a small part, and refuses those with a graph."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())


def call(
    model: nn.Module,
    batch: Any,
    index: int = 0,
    argument: str = "calibration",
    draws: AbstractContextManager[Any] | None = None,
    grad: bool = False,
) -> Any:
    """One forward pass on a `Batch`, or on what `Batch.of` takes, without grad unless `grad`;
    returns what the model returns. The model gets a copy of the arguments, and what it draws is
    drawn in `draws`: by default from generators seeded by the index of the batch.

    Raises ArgumentError, with the layer and the model's own error in it, where the model cannot
    take the batch; `argument` is what the user knows it by.
    """
    batch = Batch.of(batch, index)
    args, kwargs = fresh((batch.args, dict(batch.kwargs)))
    try:
        with torch.set_grad_enabled(grad), OwnDraws(batch.index) if draws is None else draws:
            return model(*args, **kwargs)
    except TensorlrfError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ArgumentError(
                f"{argument}: memory ends in the pass of batch {batch.index} ({_describe(batch)})"
                f"{_where(model, error.__traceback__)}, and smaller batches take less: {error}"
            ) from error
        raise ArgumentError(
            f"{argument}: the model cannot take batch {batch.index} ({_describe(batch)})"
            f"{_where(model, error.__traceback__)}: {type(error).__name__}: {error}"
            f"{_advice(model, batch)}"
        ) from error


def _where(model: nn.Module, trace: TracebackType | None) -> str:
    """The innermost module of the model whose forward the error came through."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    while trace is not None:
        name = names.get(id(trace.tb_frame.f_locals.get("self")))
        found = name or found
        trace = trace.tb_next
    return f", at {found}" if found else ""


def _describe(value: Any) -> str:
    if isinstance(value, Batch):
        if not value.kwargs and len(value.args) == 1:
            return _describe(value.args[0])
        return _describe(value.args if value.args else value.kwargs)
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_describe(v) for v in value) + ")"
    return type(value).__name__


def _advice(model: nn.Module, batch: Batch) -> str:
    """What is probably wrong, as the end of a sentence."""
    homes = {p.device for p in model.parameters()}
    leaves = pytree.tree_leaves((batch.args, dict(batch.kwargs)))
    if len(homes) == 1 and any(isinstance(t, Tensor) and t.device not in homes for t in leaves):
        return f". The model is on {homes.pop()}: move the batches there"
    if len(batch.args) > 1:
        return (
            ". A tuple holds the positional arguments of the model: leave out labels, as in "
            "[(x,) for x, label in loader]"
        )
    return ""
