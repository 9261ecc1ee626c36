"""A tensor subclass that wraps another tensor, as quantised and sharded ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing


class Wrapped(Tensor):
    """The values of another tensor; it can be copied, and nothing else."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        made = cast(Wrapped, made)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> Wrapped:
        return cls(inner["inner"])

    @classmethod
    def __torch_dispatch__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function not in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            raise NotImplementedError(f"{function} of a Wrapped")
        made = type(args[0])(function(args[0].inner))
        return return_and_correct_aliasing(function, args, kwargs or {}, made)
