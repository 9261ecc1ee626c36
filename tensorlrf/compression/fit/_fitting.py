"""How a plan is fitted to data, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.bases._words import words_of
from tensorlrf.compression.calibration._layer_moments import check_holdout
from tensorlrf.compression.losses._output_loss import LOSSES, Readout
from tensorlrf.compression.moments._fitted import moments_for
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.files.arguments import PathLike

INDEPENDENT = "independent"

TARGETS = ("original", "prefix", INDEPENDENT)

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
    moments: Moments | PathLike | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """Argument -> value, of those that tell a call; moments and groups are told apart."""
        apart = ("moments", "groups", "progress")
        return {key: value for key, value in vars(self).items() if key not in apart}

    def check(self, *, calibrated: bool) -> None:
        """Raise ArgumentError for a value that cannot be, or that is of a fit to inputs where there
        are none."""
        if self.moments is not None:
            self._check_moments(calibrated=calibrated)
            calibrated = True
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
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

    def _check_moments(self, *, calibrated: bool) -> None:
        """Raise ArgumentError for what takes batches, in the place of which there are moments."""
        if calibrated:
            raise ArgumentError(
                "moments= are in the place of calibration=; give one of them (calibrate the "
                "batches as well, and add both moments)"
            )
        given = (
            ("target", self.target, (TARGETS[0], INDEPENDENT)),
            ("metric", self.metric, (AUTO, OUTPUTS)),
            ("shared", self.shared, (None,)),
            ("groups", self.groups, (None,)),
            ("rerun", self.rerun, (False,)),
        )
        for name, value, known in given:
            if value not in known:
                raise ArgumentError(
                    f"{name}={value!r} takes passes over batches, and moments= are those of the "
                    "given model, layer by layer; leave it out, or give calibration="
                )

    def of_moments(self, model: nn.Module) -> Fitting:
        """The same with the moments read, if any are given, and the one target that they serve.
        Raises ArgumentError where they are of another model, and what `Moments.load` raises."""
        found = moments_for(self.moments, model)
        return self if found is None else replace(self, moments=found, target=INDEPENDENT)

    @property
    def known(self) -> Moments | None:
        """The moments, once they are read."""
        return self.moments if isinstance(self.moments, Moments) else None
