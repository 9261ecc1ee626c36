"""How a student is refined, as a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensorlrf.compression.refinement._phases import PHASES
from tensorlrf.errors import ArgumentError, unknown


@dataclass(frozen=True)
class Settings:
    """The arguments of `refine` that are numbers and words."""

    seconds: float | None = None
    steps: int | None = None
    phases: Sequence[str] | None = None
    look_ahead: bool = False
    lr: float = 2e-3
    patience: int = 4
    holdout: float = 0.1
    accumulate: int = 1
    dtype: torch.dtype | None = None
    checkpointing: bool = False
    lora: int | None = None

    def check(self, seconds: str = "seconds") -> None:
        """Raise ArgumentError for a value that cannot be; `seconds` is what the user knows those
        by."""
        if (self.seconds is None) == (self.steps is None):
            raise ArgumentError(
                "give one budget: seconds=, such as 600, or steps= of the optimiser"
            )
        if self.seconds is not None:
            _check_number(seconds, self.seconds, "a number of seconds above 0")
        for name in ("steps", "patience", "accumulate", "lora"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and (not whole or value < 1):
                raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1")
        _check_number("lr", self.lr, "a number above 0, such as 0.001")
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise ArgumentError(
                f"dtype={self.dtype!r} must be None, torch.bfloat16 or torch.float16, in which "
                "autocast runs the models"
            )
        share = isinstance(self.holdout, (int, float)) and not isinstance(self.holdout, bool)
        if not share or not 0 < self.holdout < 1:
            raise ArgumentError(
                f"holdout={self.holdout!r} must be a share of the batches in (0, 1), such as 0.1: "
                "what is returned is chosen on these"
            )
        if self.phases is None:
            return
        if isinstance(self.phases, str) or not self.phases:
            raise ArgumentError(f"phases={self.phases!r} must be a list of {', '.join(PHASES)}")
        for phase in self.phases:
            if phase not in PHASES:
                raise unknown("phases", phase, tuple(PHASES))
        if self.look_ahead and "block" not in self.phases:
            raise ArgumentError("look_ahead=True is of the phase 'block', which phases= leaves out")

    def ends(self, names: Sequence[str]) -> list[float]:
        """The shares of the budget at which phases end, the last one with all of it."""
        whole, ends = sum(PHASES[name] for name in names), [0.0]
        for name in names:
            ends.append(ends[-1] + PHASES[name] / whole)
        return [*ends[1:-1], 1.0]

    def to_dict(self) -> dict[str, Any]:
        """What makes a course another one, as JSON values."""
        return {**vars(self), "dtype": str(self.dtype), "phases": list(self.phases or PHASES)}


def _check_number(name: str, value: Any, wanted: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ArgumentError(f"{name}={value!r} must be {wanted}")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the entries that are not the same in both."""
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]
