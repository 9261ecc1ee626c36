"""How much memory one tensor takes of those that a computation makes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """The most numbers of eight bytes that a result has; views that repeat one take no more."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = (one for one in tree_leaves(result) if isinstance(one, Tensor))
        self.numbers = max([self.numbers, *(t.untyped_storage().nbytes() // 8 for t in made)])
        return result
