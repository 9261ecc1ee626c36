"""What all operands that tests draw have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

from torch import Tensor


class Drawn:
    """Of a dataclass of tensors, some of which may be None, and of what is none."""

    def each(self) -> tuple[Any, ...]:
        """Its fields."""
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """The same with f of every tensor."""
        return type(self)(*(f(t) if isinstance(t, Tensor) else t for t in self.each()))

    def wide(self) -> Self:
        """In float64 on the CPU."""
        return self.map(lambda t: t.detach().double().cpu())
