"""What a plan is asked for, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensorlrf.compression._survey import included
from tensorlrf.compression.journal._kept import NOT_KEPT, Kept
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.methods import MODULAR, Given
from tensorlrf.compression.plan._drafts import chooser
from tensorlrf.compression.plan.allocation import Allocation
from tensorlrf.compression.plan.budget import LATENCY, Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.decomposition.configs import Method
from tensorlrf.errors import ArgumentError

OBJECTIVES = ("size", "latency")


@dataclass(frozen=True)
class Request:
    """The arguments of `plan` beside the model and the calibration inputs, looked at.

    methods  glob -> method; none where whole modules are made smaller
    skip     globs; None for heads
    include  kinds of layers that stay otherwise
    kept     what an earlier call has measured, and where this one keeps it
    """

    budget: Budget | None
    methods: Mapping[str, Method | None]
    skip: Sequence[str] | None
    include: tuple[str, ...]
    objective: str
    example: Any
    allocation: Allocation
    sensitivity: Sensitivity | None
    loss: str
    readout: Readout | None
    random_state: int | torch.Generator | None
    progress: bool
    kept: Kept = NOT_KEPT

    @property
    def asked(self) -> dict[str, Any]:
        """Argument -> value, of those that tell a call; the example is told apart."""
        return {k: v for k, v in vars(self).items() if k not in ("example", "progress", "kept")}

    @property
    def not_shared(self) -> dict[str, Any]:
        """Argument -> value, of those that ranks do not share out: what they take time on."""
        timed = self.budget is not None and self.budget.word == LATENCY
        return {
            "keep_latency": self.budget.value if timed and self.budget is not None else None,
            "objective": None if self.objective == OBJECTIVES[0] else self.objective,
            "method": MODULAR if self.modular else None,
        }

    @property
    def modular(self) -> bool:
        """Whether whole modules are made smaller."""
        return not self.methods

    @classmethod
    def of(
        cls,
        budget: Budget | None,
        method: Given,
        skip: str | Sequence[str] | None,
        include: str | Sequence[str] | None,
        objective: str,
        example: Any,
        allocation: str | Allocation,
        sensitivity: Sensitivity | None,
        loss: str,
        readout: Readout | None,
        random_state: int | torch.Generator | None,
        progress: bool,
        *,
        whole: bool = False,
    ) -> Request:
        """Raises ArgumentError for what cannot be with any model; `whole` where modules may be made
        smaller as a whole."""
        if objective not in OBJECTIVES:
            raise ArgumentError(
                f"objective={objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}"
            )
        if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
            raise ArgumentError(
                f"sensitivity is a {type(sensitivity).__name__}; pass what "
                "tensorlrf.sensitivity(model, ...) or Sensitivity.from_json(text) gives"
            )
        globs = [skip] if isinstance(skip, str) else skip
        modular = isinstance(method, str) and method == MODULAR
        if modular and not whole:
            raise ArgumentError(
                f"method={MODULAR!r} makes whole modules smaller, which no plan of layers tells; "
                f"use tensorlrf.compress(model, method={MODULAR!r}, keep_params=, calibration=)"
            )
        methods = {} if modular else chooser(method)
        return cls(
            budget, methods, globs, included(include), objective, example,
            Allocation.of(allocation), sensitivity, loss, readout, random_state, progress,
        )  # fmt: skip
