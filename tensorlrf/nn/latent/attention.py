"""An attention that caches what its keys and values are made of.

Keys K = L_k z + b_k and values V = L_v z + b_v of a token are made of one z = R x of r numbers. The
attention is of its type as before, and calls the same forward. Only what it hands to the cache is
z, and what it gets back are the keys and values of all that the cache holds, made anew (Chang et
al. 2024, "Palu"; DeepSeek-AI 2024, "DeepSeek-V2"). So the cache may be any that keeps numbers as
they are; it holds z where keys would be, (batch, 1, tokens, r), and no values.

With rotary positions keys turn by where their tokens are. These are kept behind z, in digits: a
cache is cut, reordered and padded on the left, and no count of its tokens tells their positions.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.derived import Derived, derive, type_of, underive
from tensorlrf.nn.latent.positions import digits_in, joined, parted
from tensorlrf.nn.latent.turns import turned


@dataclass(frozen=True)
class Latents:
    """What an attention is to know for that.

    keys, values  its layers of these, by their names in it
    heads         how many heads of keys there are
    cache, source, positions  arguments of its forward: the cache, what both layers read, and where
                  the tokens are; "" for no positions
    turn          which numbers of a head turn together; "" for none
    norm          what keys go through before they turn, by its name in it; "" for nothing
    by_head       whether that sees heads apart
    """

    keys: str
    values: str
    heads: int
    cache: str
    source: str
    positions: str = ""
    turn: str = ""
    norm: str = ""
    by_head: bool = False


class LatentAttention(Derived):
    """What such an attention has beside its type, of which it is made a subclass.

    latents          what it knows
    latent_tables    the module of the model that makes the rotary tables, of (a tensor of their
                     dtype, positions); None where keys do not turn
    latent_places    of the arguments cache, source and positions of its forward, counted without
                     self; -1 where they come by their names only
    """

    latents: Latents
    latent_tables: nn.Module | None
    latent_places: dict[str, int]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """That of its type, on a cache that takes and gives keys and values."""
        name = self.latents.cache
        cache = self._given(name, args, kwargs)
        if cache is None:
            return super().forward(*args, **kwargs)
        source = self._given(self.latents.source, args, kwargs)
        positions = self._given(self.latents.positions, args, kwargs)
        between = _Between(self, cache, source, positions)
        if name in kwargs:
            return super().forward(*args, **{**kwargs, name: between})
        at = self.latent_places[name]
        return super().forward(*args[:at], between, *args[at + 1 :], **kwargs)

    def _given(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An argument of its forward; None where it is not given."""
        at = self.latent_places.get(name, -1)
        return kwargs.get(name, args[at] if 0 <= at < len(args) else None)

    def _layer(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """The left and the right factor, and the bias, of a layer."""
        layer = self.get_submodule(name)
        if isinstance(layer, FactoredLinear):
            two = two_matrices(layer.factors)
            if two is not None:
                return *two, layer.bias
        raise UnsupportedError(
            f"{name} of a {type(self).__name__} whose cache is latent is a {type(layer).__name__}, "
            "and no longer of low rank; densify(model) first"
        )

    def _latent(self, source: Tensor, positions: Tensor | None) -> Tensor:
        """What is cached of tokens (batch, n, features): (batch, 1, n, r + digits)."""
        z = F.linear(source, self._layer(self.latents.keys)[1])
        if self.latents.turn:
            if positions is None:
                raise ArgumentError(
                    f"{self.latents.positions}=None: a {type(self).__name__} whose cache is latent "
                    "turns keys by them; pass the positions of the tokens"
                )
            digits = joined(positions, z.dtype).to(z.device)
            z = torch.cat((z, digits.expand(*z.shape[:-1], -1)), -1)
        return z.unsqueeze(1)

    def _rebuilt(self, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, tokens, d) of what the cache holds."""
        latents, cached = self.latents, cached.squeeze(1)
        into_keys, _, bias_of_keys = self._layer(latents.keys)
        into_values, _, bias_of_values = self._layer(latents.values)
        rank = into_keys.shape[1]
        z = cached[..., :rank]
        keys = F.linear(z, into_keys, bias_of_keys)
        if latents.norm and not latents.by_head:
            keys = self.get_submodule(latents.norm)(keys)
        keys = _by_heads(keys, latents.heads)
        if latents.norm and latents.by_head:
            keys = self.get_submodule(latents.norm)(keys)
        keys = keys.transpose(1, 2)
        if latents.turn:
            assert self.latent_tables is not None
            tables = self.latent_tables(z, parted(cached[..., rank:]))
            keys = turned(keys, tables, latents.turn)
        values = F.linear(z, into_values, bias_of_values)
        return keys, _by_heads(values, latents.heads).transpose(1, 2)


class _Between:
    """Stands for a cache in the forward of one attention."""

    def __init__(
        self, attention: LatentAttention, cache: Any, source: Tensor, positions: Tensor | None
    ) -> None:
        self._attention, self._cache = attention, cache
        self._source, self._positions = source, positions

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Cache what the keys and values (batch, heads, n, d) of n tokens are made of; those of all
        tokens that are cached."""
        z = self._attention._latent(self._source, self._positions)
        if self._attention.latents.turn:
            _refuse_rounding(self._cache, layer)
        cached, _ = self._cache.update(z, z[..., :0], layer, *args, **kwargs)
        if cached.shape[2] == keys.shape[2]:  # no other tokens than these
            return keys, values
        return self._attention._rebuilt(cached)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _by_heads(outputs: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads, d) of (batch, tokens, heads d)."""
    return outputs.reshape(*outputs.shape[:-1], heads, outputs.shape[-1] // heads)


def _refuse_rounding(cache: Any, layer: int) -> None:
    """A cache of few bits would round positions."""
    layers = getattr(cache, "layers", ())
    if layer < len(layers) and hasattr(layers[layer], "nbits"):
        raise UnsupportedError(
            f"a cache of {layers[layer].nbits} bits would round the positions that a latent cache "
            "keeps with each token; use one that keeps numbers as they are, such as DynamicCache"
        )


# ---- from an attention and back ---------------------------------------------------------------


def latents_of(module: nn.Module) -> Latents | None:
    """What an attention with a latent cache knows; None of any other module."""
    return module.latents if isinstance(module, LatentAttention) else None


def digits_of(latents: Latents, dtype: torch.dtype) -> int:
    """Numbers that are cached of a token beside z."""
    return digits_in(dtype) if latents.turn else 0


def with_latents(module: Any, latents: Latents, tables: nn.Module | None) -> None:
    """Have an attention cache latents, in place. Its two layers are on low-rank factors with one
    right factor.

    Raises AttributeError where they are not, or where its forward has no such arguments.
    """
    layers = [module.get_submodule(name) for name in (latents.keys, latents.values)]
    two = [two_matrices(one.factors) for one in layers if isinstance(one, FactoredLinear)]
    rights = [one[1] for one in two if one is not None]
    if len(rights) < 2 or rights[0] is not rights[1]:
        raise AttributeError(
            f"{latents.keys!r} and {latents.values!r} have no right factor in common"
        )
    if latents.norm:
        module.get_submodule(latents.norm)
    kind = type_of(module) if isinstance(module, LatentAttention) else type(module)
    names = list(inspect.signature(kind.forward).parameters)[1:]
    wanted = [name for name in (latents.cache, latents.source, latents.positions) if name]
    derive(module, LatentAttention)
    module.latents = latents
    # It is the model's, and none of this module's own.
    vars(module)["latent_tables"] = tables
    module.latent_places = {name: names.index(name) if name in names else -1 for name in wanted}


def without_latents(model: nn.Module) -> None:
    """Have all attentions of a model cache keys and values again, in place."""
    for module in model.modules():
        if isinstance(module, LatentAttention):
            _plain(module)


def _plain(module: Any) -> None:
    underive(module)
    for name in ("latents", "latent_tables", "latent_places"):
        vars(module).pop(name)
