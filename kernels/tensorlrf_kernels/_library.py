"""What every op registers alike with torch's dispatcher.

Library.define and `impl` cost milliseconds; the decorators that trace through a kernel would
import triton and dynamo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "tensorlrf"
# torch leaves this class without types.
library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_devices = {"cpu": ("CPU", "AutocastCPU"), "cuda": ("CUDA", "AutocastCUDA")}
# What was registered, by the op's name: for those who ask what an op would launch.
on_gpu: dict[str, Callable[..., Any]] = {}
gradients: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}  # backward, its context


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
    autocast: bool = False,
) -> None:
    """Register an op: its schema, what runs on each device, and what it does to shapes.

    `autocast`: its float tensors are cast as those of torch's own matrix products are.
    """
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, cpu, "CPU")
    library.impl(name, cuda, "CUDA")
    on_gpu[name] = cuda
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    if autocast:
        for device in _devices:
            library.impl(name, _autocast_rule(name, device), _devices[device][1])


def differentiate(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]
) -> None:
    """Register the gradient of an op."""
    gradients[name] = (backward, setup_context)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library
    )


def refuse_gradients(name: str, of: str) -> None:
    """Have a backward op say that it cannot be differentiated again."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise NotImplementedError(
            f"{of} has no second derivative; for double backward run its factors as a chain, "
            f"path='chain' or tensorlrf_kernels.{of}.reference"
        )

    differentiate(name, refuse, lambda ctx, inputs, output: None)


def call(op: Any, *args: Any, differentiated: bool) -> Any:
    """The op; where nothing is `differentiated`, without passing its Python autograd layer, which
    in eager mode costs as much as a small kernel."""
    if differentiated or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _autocast_rule(name: str, device: str) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _devices[device][1]))

    def rule(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        op = getattr(getattr(torch.ops, NAMESPACE), name)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(_cast(value, device, dtype) for value in args))

    return rule


def _cast(value: Any, device: str, dtype: torch.dtype) -> Any:
    # As torch's rule for matrix products: float64 is left alone.
    if isinstance(value, (list, tuple)):
        return [_cast(each, device, dtype) for each in value]
    if (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.device.type == device
        and value.dtype is not torch.float64
    ):
        return value.to(dtype)
    return value
