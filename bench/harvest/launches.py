"""The launches that a piece of work makes, found without making them, and without a GPU.

The work runs on fake tensors, which have shapes and strides and no memory. Where it reaches an op
of ours, the op's own code for a GPU runs, up to the launch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tensorlrf_kernels import launches
from tensorlrf_kernels._aot import source_of
from tensorlrf_kernels._library import NAMESPACE, gradients, on_gpu
from tensorlrf_kernels._tables import choose
from tensorlrf_kernels.chips import Chip, chip_of
from tensorlrf_kernels.launches import Call

ALIGNMENT = 16  # bytes: what a compiler is told of addresses


@dataclass(frozen=True)
class Pointer:
    """A tensor as far as a compiler sees it: it travels between processes, and holds nothing."""

    dtype: torch.dtype
    remainder: int  # of its address

    def data_ptr(self) -> int:
        """An address of that remainder."""
        return ALIGNMENT + self.remainder


def recorded(work: Callable[[], object], chip: Chip) -> list[Call]:
    """The launches that `work` makes on a GPU of that kind, in their order; tensors are `Pointer`s.

    `work` makes its own tensors, on "cuda:0". Where a leaf among them requires a gradient, the
    launches of the ops' gradients follow; `work` calls no autograd itself. Raises what it raises.
    """
    calls: list[Call] = []
    mode = _OnGpu()
    with ExitStack() as stack:
        stack.enter_context(_pretending(chip))
        stack.enter_context(mock.patch.object(launches, "launch", calls.extend))
        stack.enter_context(_Fake())
        stack.enter_context(mode)
        # Each op's gradient is a function, which is called below.
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        # Ops compare addresses, to know what they were given from what they made.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        work()
        mode.differentiate()
        return [replace(call, args=_pointers(call.args)) for call in calls]


def distinct(calls: Iterable[Call], chip: Chip) -> dict[str, Call]:
    """What the compiler sees of the launches -> the first launch of each kind, in their order."""
    found: dict[str, Call] = {}
    for call in calls:
        found.setdefault(seen(call, chip), call)
    return found


def seen(call: Call, chip: Chip) -> str:
    """What the compiler sees of a launch: the kernel, its constants, its options, and of its
    arguments the types, and which are multiples of 16 or equal to one."""
    source, _, options = source_of(call, chip)
    return f"{call.op} {source.hash()} {options.hash()}"


def compiled(call: Call, chip: Chip) -> tuple[float, str]:
    """Compile a launch into Triton's cache; returns the seconds that it took, and why it failed."""
    import triton

    start, reason = time.monotonic(), ""
    try:
        source, target, options = source_of(call, chip)
        triton.compile(source, target=target, options=options.__dict__)
    except Exception as error:  # whatever a compiler may raise, which need not be picklable
        reason = f"{type(error).__name__}: {error}"[:300]
    return time.monotonic() - start, reason


class _Fake(FakeTensorMode):
    """Without the values of constants, which would be computed with, and without the GPU that may
    be there: what is found must not depend on it."""

    avoid_device_init = True  # type: ignore[assignment]

    def may_turn_const(self, t: Tensor) -> bool:
        return False


class _OnGpu(TorchDispatchMode):
    """Ops of ours run their code for a GPU, those inside them too; all others are as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[str, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != NAMESPACE:
            return func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        with self:
            output = on_gpu[name](*args)
        if any(isinstance(t, Tensor) and t.requires_grad for t in _flat(args)):
            self.tape.append((name, args, output))
        return output

    def differentiate(self) -> None:
        """Run the gradients of the ops that had a leaf with one, the last op first."""
        for name, inputs, output in reversed(self.tape):
            backward, setup_context = gradients[name]
            context = _Context(tree_map(_has_gradient, tuple(map(_listed, inputs))))
            setup_context(context, inputs, output)
            first, *others = output if isinstance(output, tuple) else (output,)
            backward(context, torch.empty_like(first), *(None for _ in others))
        self.tape.clear()


@dataclass
class _Context:
    """What an op's gradient is given in place of autograd's own."""

    needs_input_grad: tuple[Any, ...]
    saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *_: Any) -> None:
        pass

    def set_materialize_grads(self, _: bool) -> None:
        pass


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _listed(value: Any) -> Any:
    """Lists of tensors have a flag for each; those of numbers have one."""
    tensors = isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)
    return list(value) if tensors else value if isinstance(value, Tensor) else None


def _flat(args: Iterable[Any]) -> Iterator[Any]:
    for value in args:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _pointers(args: Mapping[str, Any]) -> dict[str, Any]:
    def pointer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # Allocations of a GPU are multiples of 512 bytes.
        return Pointer(value.dtype, value.storage_offset() * value.itemsize % ALIGNMENT)

    return {name: pointer(value) for name, value in args.items()}


@contextmanager
def _pretending(chip: Chip) -> Iterator[None]:
    """As if the driver told of such a GPU, whether or not there is one."""
    properties = SimpleNamespace(
        name=chip.name,
        major=chip.capability[0],
        minor=chip.capability[1],
        multi_processor_count=chip.multiprocessors,
        shared_memory_per_block_optin=chip.shared_memory,
        L2_cache_size=chip.l2,
    )
    answers = {
        "get_device_properties": lambda device=None: properties,
        "is_current_stream_capturing": lambda: False,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
        "synchronize": lambda device=None: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        # What is written in Python sees tensors of a GPU; the methods of a torch that was built
        # without one see tensors of the CPU.
        stack.enter_context(mock.patch.object(FakeTensor, "__new__", staticmethod(_on_cpu)))
        stack.enter_context(mock.patch.object(FakeTensor, "device", property(_device)))
        _forget()
        stack.callback(_forget)
        yield


def _forget() -> None:
    """What was remembered of the GPU, and chosen for it."""
    chip_of.cache_clear()
    choose.cache_clear()


def _on_cpu(cls: Any, fake_mode: Any, elem: Any, device: Any, *rest: Any, **named: Any) -> Any:
    return _new(cls, fake_mode, elem, torch.device("cpu"), *rest, **named)


def _device(self: Any) -> torch.device:
    return torch.device("meta") if self.fake_mode.in_kernel_invocation else _GPU


_new = FakeTensor.__new__
_GPU = torch.device("cuda", 0)
