"""Weights that somebody else computes with: their layers must stay what they are.

A parent may pass `child.weight` to a function instead of calling the child. No look at the child
tells; a pass of the model does, in which every call of a torch function is watched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

# Functions that look at a tensor without computing with it.
_LOOKS = frozenset(
    ["__get__", "__set__", "size", "dim", "stride", "numel", "is_floating_point", "detach",
     "requires_grad_", "is_inference", "is_contiguous", "data_ptr", "untyped_storage",
     "element_size", "__repr__"]
)  # fmt: skip

# Attributes that are the tensor the other way round, on which to compute.
_TURNS = frozenset(["T", "mT", "H", "mH"])


class Readers(TorchFunctionMode):
    """Notes each weight that a function takes outside its own layer's forward."""

    def __init__(self, layers: Mapping[str, nn.Module], names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.running: list[nn.Module] = []
        self._names = names
        self._layers = {
            id(p): name for name, layer in layers.items() for p in layer.parameters(recurse=False)
        }
        # A head may have the weight of an embedding for its own.
        self._owners: dict[int, list[nn.Module]] = {}
        for module in names:
            for p in module.parameters(recurse=False):
                self._owners.setdefault(id(p), []).append(module)

    def enter(self, module: nn.Module, _: Any) -> None:
        """A hook before its forward."""
        self.running.append(module)

    def leave(self, module: nn.Module, _: Any, __: Any) -> None:
        """A hook behind it."""
        if self.running and self.running[-1] is module:
            self.running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not _looks(func):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) in self._layers:
                    name, owners = self._layers[id(leaf)], self._owners[id(leaf)]
                    if not any(owner in self.running for owner in owners):
                        reader = self.running[-1] if self.running else None
                        who = "the model" if reader is None else self._names.get(reader, "")
                        self.found.setdefault(name, who or type(reader).__name__)
        return func(*args, **(kwargs or {}))


def _looks(func: Any) -> bool:
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    return getattr(func, "__name__", "") in _LOOKS and attribute not in _TURNS


@contextmanager
def watch_readers(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[Readers]:
    """While it is entered, the model may be run. What it yields has `found`: for each layer whose
    parameters were taken outside its own forward, which module took them."""
    names = {module: name for name, module in model.named_modules()}
    readers = Readers(layers, names)
    handles = []

    for module in names:
        handles.append(module.register_forward_pre_hook(readers.enter))
        handles.append(module.register_forward_hook(readers.leave, always_call=True))
    try:
        with readers:
            yield readers
    finally:
        for handle in handles:
            handle.remove()
