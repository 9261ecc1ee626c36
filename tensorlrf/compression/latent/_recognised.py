"""Which modules of a model hand keys and values to a cache, and how they make them.

Nothing is taken by the name of a class. In one pass on the first calibration batch, with a cache,
every module is watched that gets one, whatever offers `update` and `get_seq_length`. What a module
hands to `update` is compared with what its linear layers put out, as it is and turned by the tables
of cosines and sines among its arguments, in one way and the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica
from tensorlrf.nn.latent.attention import Latents
from tensorlrf.nn.latent.turns import TURNS, turned

SAME = 8
"""Times the rounding of the dtype, of the largest number, that tensors which are the same differ
by: they come of the same products. Some attentions turn in float32 whatever their dtype is."""

USE_CACHE = "use_cache"
"""Keyword by which models of transformers are asked to keep a cache."""


@dataclass(frozen=True)
class Site:
    """An attention that is known.

    name    qualified
    made    how it makes what it caches
    tables  qualified name of the module that makes the rotary tables; "" for none
    """

    name: str
    made: Latents
    tables: str = ""

    @property
    def keys(self) -> str:
        """Qualified name of the layer of keys."""
        return f"{self.name}.{self.made.keys}"

    @property
    def values(self) -> str:
        """Qualified name of the layer of values."""
        return f"{self.name}.{self.made.values}"


@dataclass(frozen=True)
class Unknown:
    """A module that caches something, made in another way.

    numbers  that it caches of a token
    """

    name: str
    why: str
    numbers: int


def recognised(
    model: nn.Module, linear: Sequence[str], batch: Batch
) -> tuple[list[Site], list[Unknown]]:
    """(the attentions that are known, in order of execution; the others that cache something).

    linear  names of the layers that may be of keys and values

    Raises ArgumentError for a model that knows no cache, or cannot take the batch.
    """
    watch = _Watch(set(linear))
    own = replica(model)
    names = {module: name or ROOT for name, module in own.named_modules()}
    asked = Batch(batch.args, {**batch.kwargs, USE_CACHE: True}, batch.index, batch.names)
    with ExitStack() as stack:
        for module, name in names.items():
            before, after = partial(watch.before, name), partial(watch.after, name)
            for handle in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        try:
            call(own, asked)
        except ArgumentError as error:
            _check_knows_cache(model, error)
            raise
    found = [(frame, _site(frame, watch.tables)) for frame in watch.cached]
    return (
        [site for _, site in found if isinstance(site, Site)],
        [Unknown(f.name, why, f.numbers) for f, why in found if isinstance(why, str)],
    )


def _check_knows_cache(model: nn.Module, error: ArgumentError) -> None:
    """Raise ArgumentError where the model failed since it cannot be asked to keep a cache."""
    cause = error.__cause__
    unknown = f"unexpected keyword argument '{USE_CACHE}'"
    if isinstance(cause, TypeError) and unknown in str(cause):
        raise ArgumentError(
            f"model: a {type(model).__name__} keeps no cache of keys and values, since its forward "
            f"knows no {USE_CACHE}= ({cause}). A latent cache is for decoders that generate with "
            "one, as those of transformers do: give such a model, or the decoder within yours; to "
            "make any other smaller use tensorlrf.compress"
        ) from error


# ---- one pass ---------------------------------------------------------------------------------


@dataclass
class _Call:
    """Of a module, of its name in the model, on one tensor."""

    name: str
    source: Tensor
    output: Tensor


@dataclass
class _Frame:
    """A call of a module.

    arguments  of its forward, by their names
    cache      the name of that which is a cache; "" for none
    linear, others  calls within it, of layers that may be of keys and values, and of other modules
    kept       (keys, values) that it has handed to the cache
    """

    name: str
    arguments: dict[str, Any]
    cache: str
    linear: list[_Call] = field(default_factory=list)
    others: list[_Call] = field(default_factory=list)
    kept: tuple[Tensor, Tensor] | None = None
    updates: int = 0

    @property
    def numbers(self) -> int:
        """That it caches of a token, where heads are in one dimension and tokens in another."""
        return sum(one.shape[1] * one.shape[-1] for one in self.kept or () if one.ndim > 1)


@dataclass
class _Tables:
    """A call that gave two tensors of one shape."""

    name: str
    arguments: dict[str, Any]
    output: tuple[Tensor, Tensor]


class _Watch:
    """Follows a pass."""

    def __init__(self, linear: set[str]) -> None:
        self._linear, self._stack = linear, list[_Frame]()
        self.cached: list[_Frame] = []
        self.tables: list[_Tables] = []

    def before(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A hook before the forward of a module of this name."""
        arguments = _bound(module, args, kwargs)
        cache = next((key for key, value in arguments.items() if _is_cache(value)), "")
        self._stack.append(_Frame(name, arguments, cache))
        if not cache:
            return None
        given = arguments[cache]
        spy = given if isinstance(given, _Spy) else _Spy(given, self)
        return (
            tuple(spy if _is_cache(one) else one for one in args),
            {key: spy if _is_cache(one) else one for key, one in kwargs.items()},
        )

    def after(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A hook behind it."""
        own = self._stack.pop()
        pair = _pair(output)
        if pair is not None:
            self.tables.append(_Tables(name, own.arguments, pair))
        source = args[0] if args else next(iter(kwargs.values()), None)
        around = next((one for one in reversed(self._stack) if one.cache), None)
        if around is None or not isinstance(source, Tensor) or not isinstance(output, Tensor):
            return
        calls = around.linear if name in self._linear else around.others
        calls.append(_Call(name, source, output))

    def update(self, keys: Tensor, values: Tensor) -> None:
        """A cache is given keys and values."""
        frame = next(one for one in reversed(self._stack) if one.cache)
        frame.updates += 1
        frame.kept = keys, values
        if frame.updates == 1:
            self.cached.append(frame)


class _Spy:
    """Stands for a cache, and tells of what it is given."""

    def __init__(self, cache: Any, watch: _Watch) -> None:
        self._cache, self._watch = cache, watch

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._watch.update(keys, values)
        return self._cache.update(keys, values, *args, **kwargs)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        return self._cache.get_seq_length(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _is_cache(value: Any) -> bool:
    """One of tokens, and not of two kinds, as of an encoder and a decoder."""
    known = all(callable(getattr(value, name, None)) for name in ("update", "get_seq_length"))
    return known and not hasattr(value, "cross_attention_cache")


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value, those in **kwargs among them."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # of a forward that is not written in Python
        return dict(kwargs)
    by_place = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, _EITHER)]
    return {**dict(zip(by_place, args, strict=False)), **kwargs}


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _pair(value: Any) -> tuple[Tensor, Tensor] | None:
    if not isinstance(value, tuple) or len(value) != 2:
        return None
    cos, sin = value
    tensors = isinstance(cos, Tensor) and isinstance(sin, Tensor)
    return (cos, sin) if tensors and cos.shape == sin.shape and cos.ndim == 3 else None


# ---- what it tells ----------------------------------------------------------------------------


def _site(frame: _Frame, tables: Sequence[_Tables]) -> Site | str:
    """The attention that a frame is of; else why it is not known."""
    if frame.updates > 1:
        return "it is called several times, or caches several things"
    if frame.kept is None:
        return "it caches nothing"
    keys, values = (_flat(one) for one in frame.kept)
    if keys is None or values is None or frame.kept[0].shape[1] != frame.kept[1].shape[1]:
        return "it caches no heads of keys and values, (batch, heads, tokens, numbers)"
    if keys.shape[1] < 2:
        raise ArgumentError(
            "calibration: the first batch has one token a sample, by which nothing turns; give "
            "two or more"
        )
    last = next((one for one in frame.linear if _same(one.output, values)), None)
    if last is None:
        return "its values are not what one linear layer of its own puts out"
    around = _argument(frame, last.source)
    if not around:
        return "its layer of values reads something else than an argument of its forward"
    heads = frame.kept[0].shape[1]
    pairs = [pair for value in frame.arguments.values() if (pair := _pair(value))]
    for first in frame.linear:
        if first.source is not last.source or first is last:
            continue
        for keys_before, norm, by_head in _on_the_way(frame, first, heads):
            made: dict[str, Any] = {
                "keys": _within(frame, first.name), "values": _within(frame, last.name),
                "heads": heads, "cache": frame.cache, "source": around,
                "norm": norm, "by_head": by_head,
            }  # fmt: skip
            for pair in pairs:
                for turn in TURNS:
                    if _turns(keys_before, pair, turn, frame.kept[0]):
                        return _turning(frame, made, pair, turn, tables)
            if _same(keys_before.transpose(1, 2), frame.kept[0]):
                return Site(frame.name, Latents(**made))
    return (
        "its keys are not what one linear layer on the input of its values puts out, turned by "
        "rotary tables or not"
    )


def _on_the_way(frame: _Frame, layer: _Call, heads: int) -> Iterator[tuple[Tensor, str, bool]]:
    """(batch, n, heads, d) that the outputs of a layer may become before they are turned: with the
    module they go through, and whether this sees heads apart."""
    shape = (*layer.output.shape[:-1], heads, -1)
    if layer.output.ndim != 3 or layer.output.shape[-1] % heads:
        return
    yield layer.output.reshape(shape), "", False
    start = layer.output.untyped_storage().data_ptr()
    for one in frame.others:
        if one.source.untyped_storage().data_ptr() == start and one.output.ndim in (3, 4):
            yield one.output.reshape(shape), _within(frame, one.name), one.source.ndim == 4


def _turns(keys: Tensor, pair: tuple[Tensor, Tensor], turn: str, kept: Tensor) -> bool:
    width = pair[0].shape[-1]
    if width > keys.shape[-1] or width % 2 or pair[0].shape[1] != keys.shape[1]:
        return False
    return _same(turned(keys.transpose(1, 2), pair, turn), kept)


def _turning(
    frame: _Frame,
    made: dict[str, Any],
    pair: tuple[Tensor, Tensor],
    turn: str,
    tables: Sequence[_Tables],
) -> Site | str:
    """With where its tables come from, and where its positions do."""
    source = next((one for one in tables if one.output[0] is pair[0]), None)
    if source is None:
        return "its rotary tables come from no module of the model"
    given = [one for one in source.arguments.values() if one is not None]
    whole = [one for one in given if isinstance(one, Tensor) and not one.is_floating_point()]
    if len(given) != 2 or len(whole) != 1 or whole[0].ndim != 2:
        return f"{source.name} makes its rotary tables of something else than positions"
    positions = _argument(frame, whole[0])
    if not positions:
        return f"it is not given the positions that {source.name} makes its rotary tables of"
    return Site(frame.name, Latents(**made, positions=positions, turn=turn), source.name)


def _argument(frame: _Frame, tensor: Tensor) -> str:
    """The name of the argument of a frame's module that is this tensor; "" for none."""
    return next((key for key, value in frame.arguments.items() if value is tensor), "")


def _within(frame: _Frame, name: str) -> str:
    """The name of a module in that of a frame."""
    return name.removeprefix(f"{frame.name}.")


def _flat(kept: Tensor) -> Tensor | None:
    """(batch, n, heads d) of (batch, heads, n, d)."""
    return kept.transpose(1, 2).flatten(2) if kept.ndim == 4 else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same up to rounding."""
    if one.shape != other.shape or not other.numel():
        return False
    apart, most = (one - other).abs().max(), other.abs().max()
    eps = max(torch.finfo(dtype).eps for dtype in (other.dtype, torch.float32))
    return bool(apart <= SAME * eps * most)
