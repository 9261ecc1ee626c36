"""What a model adds to the outputs of a layer before anybody uses them, as a block does around an
attention: the input that another module has had. A layer may then be fitted to the sum, and make
good what is behind in both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at


class Beside:
    """Keeps these inputs during a pass, while it is entered, until the layer is called.

    sources  layer -> the module whose input is added to its outputs
    """

    def __init__(self, model: nn.Module, names: Iterable[str], sources: Mapping[str, str]) -> None:
        self._sources = {name: sources[name] for name in names if name in sources}
        self._modules = {one: module_at(model, one) for one in self._sources.values()}
        self._dims = {name: dense_layer_at(model, name).channel_dim for name in self._sources}
        self._kept: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Beside:
        for name, module in self._modules.items():
            keep = partial(self._keep, name)
            self._handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        x = first_input(args, kwargs)
        if x is not None:
            self._kept[name] = x

    def take(self, name: str) -> Tensor | None:
        """Of the layer that is called now; None where nothing is known to be added."""
        source = self._sources.get(name)
        return None if source is None else self._kept.pop(source, None)

    def with_lag(
        self, name: str, x0: Tensor | None, r0: Tensor | None, r: Tensor | None
    ) -> Tensor | None:
        """What the given model has where the layer is called, n0 channels, and m beside them of
        what the sum is behind already: inputs of a layer that hands these on."""
        if x0 is None or r0 is None or r is None or r0.shape != r.shape:
            return x0
        dim = self._dims[name]
        sizes = [[*t.shape[:dim], *t.shape[dim:][1:]] for t in (x0, r)]
        return torch.cat([x0, r0 - r], dim=dim) if sizes[0] == sizes[1] else x0


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Of what a module is called with, the first; None where that is no tensor."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    return x if isinstance(x, Tensor) else None
