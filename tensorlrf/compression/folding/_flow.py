"""What reads the outputs of layers in a pass of the model.

Every call of a torch function is watched, and whichever module's forward it is made in is the
reader. What passes a tensor on without computing with it, as containers do, reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.nn.copies import replica

# What looks at a tensor and makes none of its numbers.
_LOOKS = frozenset(
    ["shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "grad_fn", "size",
     "dim", "stride", "numel", "is_floating_point", "is_contiguous", "element_size", "get_device",
     "__len__", "is_meta", "is_sparse", "is_quantized", "is_mkldnn", "is_nested"]
)  # fmt: skip


@dataclass
class Passed:
    """What a pass did with one layer.

    calls    how often it was called
    output   of its last call
    ndim     of it
    version  of its numbers, then
    readers  names of the modules that read it; "" for the model itself
    """

    calls: int = 0
    output: Any = None
    ndim: int = 0
    version: int = 0
    readers: set[str] = field(default_factory=set)


@dataclass
class Flow:
    """Of one pass.

    layers  name -> what became of its output
    inputs  name of a reader -> the name of the layer whose very output it was called with; None for
            anything else
    calls   name of a reader -> how often it was called
    """

    layers: dict[str, Passed]
    inputs: dict[str, str | None]
    calls: dict[str, int]


def flow(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    readers: Mapping[str, nn.Module],
    batch: Batch,
) -> Flow:
    """Run a replica of the model on the batch, and see which of the `readers` are called with the
    output of one of the `layers`, and who else reads that. Raises ArgumentError where the model
    cannot take the batch."""
    own = replica(model)
    found = Flow({name: Passed() for name in layers}, {}, dict.fromkeys(readers, 0))
    watch = _Watch(found, {module: name for name, module in own.named_modules()})
    handles = []
    for module in own.modules():
        handles.append(module.register_forward_pre_hook(watch.enter))
        handles.append(module.register_forward_hook(watch.leave, always_call=True))
    handles += [own.get_submodule(name).register_forward_hook(watch.made) for name in layers]
    for name in readers:
        module = own.get_submodule(name)
        handles.append(module.register_forward_pre_hook(watch.read, with_kwargs=True))
    try:
        with watch:
            result = call(own, batch, argument="example")
    finally:
        for handle in handles:
            handle.remove()
    for one in tensors_of(result):
        watch.note(one, "")
    for passed in found.layers.values():
        if isinstance(passed.output, Tensor) and passed.output._version != passed.version:
            passed.readers.add("")  # it was written to
        passed.output = None
    return found


class _Watch(TorchFunctionMode):
    """Fills a `Flow`."""

    def __init__(self, found: Flow, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self._found, self._names = found, names
        self._running: list[nn.Module] = []
        self._made: dict[int, str] = {}  # outputs, which are held until the end, by their identity
        self._held: list[Tensor] = []

    def enter(self, module: nn.Module, _: Any) -> None:
        """A hook before every forward."""
        self._running.append(module)

    def leave(self, module: nn.Module, _: Any, __: Any) -> None:
        """A hook behind it."""
        if self._running and self._running[-1] is module:
            self._running.pop()

    def made(self, module: nn.Module, _: Any, output: Any) -> None:
        """A hook behind a layer."""
        passed = self._found.layers[self._names[module]]
        passed.calls += 1
        if isinstance(output, Tensor):
            passed.output, passed.ndim, passed.version = output, output.ndim, output._version
            self._made[id(output)] = self._names[module]
            self._held.append(output)

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A hook before a reader."""
        name = self._names[module]
        x = next(iter((*args, *kwargs.values())), None)
        self._found.inputs[name] = self._made.get(id(x))
        self._found.calls[name] += 1

    def note(self, value: Any, reader: str) -> None:
        """The value is read, where it is the output of a layer."""
        layer = self._made.get(id(value)) if isinstance(value, Tensor) else None
        if layer is not None:
            self._found.layers[layer].readers.add(reader)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name not in _LOOKS:
            reader = self._names.get(self._running[-1], "") if self._running else ""
            for leaf in pytree.tree_leaves((args, kwargs)):
                self.note(leaf, reader)
        return func(*args, **(kwargs or {}))
