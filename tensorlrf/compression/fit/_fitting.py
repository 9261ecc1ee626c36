"""How a plan is fitted to data, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tensorlrf.compression.bases._words import words_of
from tensorlrf.compression.calibration._layer_moments import check_holdout
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, unknown

TARGETS = ("original", "prefix", "independent")

OUTPUTS, LOSS, AUTO = "outputs", "loss", "auto"

METRICS = (OUTPUTS, LOSS, AUTO)


@dataclass(frozen=True)
class Fitting:
    """The arguments of `apply` beside the model, the plan and the calibration inputs."""

    target: str
    affine: bool
    batch_norm: bool
    holdout: float
    rerun: bool
    memory_limit: int | None
    random_state: int | torch.Generator | None
    progress: bool
    metric: str = AUTO
    loss: str = AUTO
    readout: Readout | None = None
    groups: Any = None
    shared: Any = None

    def check(self, *, calibrated: bool) -> None:
        """Raise ArgumentError for a value that cannot be, or that is of a fit to inputs where there
        are none."""
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        given = (("target", self.target), ("affine", self.affine), ("metric", self.metric))
        for name, value in given:
            if not calibrated and value not in (TARGETS[0], False, OUTPUTS, AUTO):
                raise ArgumentError(
                    f"{name}={value!r} is of a fit to inputs; give calibration=, or leave it out"
                )
        words_of(self.shared, calibrated=calibrated)
        check_holdout(self.holdout)
        most = self.memory_limit
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise ArgumentError(
                f"memory_limit={most!r} must be None, for half of the memory that is free, or a "
                "number of bytes such as 8 * 2**30"
            )
        if not isinstance(self.random_state, torch.Generator):
            generator(self.random_state, torch.device("cpu"))
