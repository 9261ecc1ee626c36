"""The sum of factors of several formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors._base import FORMATS, Factors

PARTS = "parts"


@dataclass(frozen=True, eq=False, repr=False)
class Composite(Factors):
    """The sum of factors objects: low rank and sparse, stages of residuals, low rank and quantised.

    Parameters
    ----------
    parts : tuple of Factors
        Of one shape, dtype and device, none of them a Composite.

    Raises
    ------
    ArgumentError, ShapeError
        Where there are none, or where they differ in one of these.

    Examples
    --------
    >>> low = tensorlrf.LowRank(torch.ones(6, 1), torch.ones(1, 4))
    >>> more = tensorlrf.LowRank(torch.ones(6, 2), torch.eye(2, 4))
    >>> whole = tensorlrf.Composite((low, more))
    >>> whole.rank, whole.to_dense()[0]
    ((1, 2), tensor([2., 2., 1., 1.]))
    """

    parts: tuple[Factors, ...]

    format: ClassVar[str] = "composite"

    def __post_init__(self) -> None:
        parts = self.parts
        if isinstance(parts, Factors) or not isinstance(parts, (tuple, list)):
            raise ArgumentError(
                f"parts is a {type(parts).__name__}; pass a tuple of factors objects"
            )
        object.__setattr__(self, "parts", tuple(parts))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def rank(self) -> tuple[int, ...]:
        """The ranks of the parts, one after the other."""
        found: list[int] = []
        for part in self.parts:
            found += part.rank if isinstance(part.rank, tuple) else (part.rank,)
        return tuple(found)

    @property
    def n_params(self) -> int:
        """How many numbers the parts store."""
        return sum(part.n_params for part in self.parts)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{PARTS}.{k}.{name}": tensor
            for k, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }

    def meta(self) -> dict[str, Any]:
        return {PARTS: [[part.format, part.meta()] for part in self.parts]}

    def _context(self) -> dict[str, Any]:
        return {PARTS: [[part.format, part._context()] for part in self.parts]}

    @classmethod
    def index_dtypes(cls, meta: Mapping[str, Any]) -> dict[str, torch.dtype]:
        return {
            f"{PARTS}.{k}.{name}": dtype
            for k, (format, inner) in enumerate(meta[PARTS])
            for name, dtype in FORMATS[format].index_dtypes(inner).items()
        }

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        parts: list[Factors] = []
        for k, (format, inner) in enumerate(meta[PARTS]):
            if not isinstance(format, str) or format not in FORMATS or FORMATS[format] is cls:
                raise unknown("format", format, [name for name in FORMATS if name != cls.format])
            parts.append(FORMATS[format]._assemble(_Under(tensors, f"{PARTS}.{k}."), inner))
        return {"parts": tuple(parts)}

    def check(self) -> None:
        if not self.parts:
            raise ArgumentError("Composite: parts=() is empty; give one factors object or more")
        first = self.parts[0]
        for k, part in enumerate(self.parts):
            if not isinstance(part, Factors) or isinstance(part, Composite):
                raise ArgumentError(
                    f"Composite: parts[{k}] is a {type(part).__name__}; pass factors objects, and "
                    "the parts of a sum rather than the sum"
                )
            try:
                part.check()
            except ArgumentError as error:
                raise type(error)(f"Composite: parts[{k}]: {error}") from None
            if part.shape != first.shape:
                raise ShapeError(
                    f"Composite: parts[{k}] stands for {part.shape} and parts[0] for "
                    f"{first.shape}; all must have one shape"
                )
            if part.dtype != first.dtype or part.device != first.device:
                raise ArgumentError(
                    f"Composite: parts[{k}] is {part.dtype} on {part.device}, parts[0] "
                    f"{first.dtype} on {first.device}; bring them together with .to()"
                )

    def _dense(self) -> Tensor:
        whole, *others = [part._dense() for part in self.parts]
        for other in others:
            whole = whole + other
        return whole

    def __repr__(self) -> str:
        names = " + ".join(type(part).__name__ for part in self.parts)
        return f"{super().__repr__()[:-1]}, {names}, {self.n_bytes:,} bytes)"


class _Under(Mapping[str, Any]):
    """The tensors of one part by its own names; errors tell the whole name."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Any:
        return self.tensors[f"{self.prefix}{name}"]

    def __iter__(self) -> Any:
        return (
            name.removeprefix(self.prefix) for name in self.tensors if name.startswith(self.prefix)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)
