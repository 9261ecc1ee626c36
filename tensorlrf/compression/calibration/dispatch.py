"""A look at every operation of torch that a thread runs."""

from __future__ import annotations

from typing import Self

from torch._C import _pop_torch_dispatch_stack, _push_on_torch_dispatch_stack
from torch.utils._python_dispatch import TorchDispatchMode


class ThreadMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own has no types
    """A mode of one thread, without the flags of the base, which are of the whole process: passes
    take turns in threads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would be imported to tell it that this is not to be compiled

    def __enter__(self) -> Self:
        _push_on_torch_dispatch_stack(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _pop_torch_dispatch_stack(None)
