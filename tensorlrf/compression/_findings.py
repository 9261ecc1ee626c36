"""What a fit to inputs found out about layers that a user should know, told once for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tensorlrf.compression.calibration._memory import some
from tensorlrf.compression.fit._factor import SAMPLES_PER_COLUMN
from tensorlrf.errors import CalibrationWarning, ConvergenceWarning, warn


@dataclass(frozen=True)
class Findings:
    """room  sentences on layers without room for all of their moments
    missed   layers that no batch reaches, and that got the plain method
    pooled   those that were fitted to what reaches the other experts of their stack
    thin     of layers with few samples, what is to be said of each
    early    layers whose sweeps were not near their end
    """

    room: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()
    early: tuple[str, ...] = ()

    @classmethod
    def together(cls, found: Iterable[Findings]) -> Findings:
        """Of all of them."""
        parts = [one.to_dict() for one in found]
        return cls.of({own.name: [x for p in parts for x in p[own.name]] for own in fields(cls)})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Findings:
        """Inverse of `to_dict`."""
        return cls(**{own.name: tuple(values[own.name]) for own in fields(cls)})

    def to_dict(self) -> dict[str, list[str]]:
        """For JSON."""
        return {own.name: list(getattr(self, own.name)) for own in fields(self)}

    def tell(self) -> None:
        """One warning for all layers of a kind, not one a layer."""
        for message in self.room:
            warn(message, CalibrationWarning)
        words = {
            self.missed: "the plain method is used there",
            self.pooled: "they are fitted to what reaches the other experts of their stack",
        }
        for names, told in words.items():
            if names:
                warn(
                    f"calibration does not reach {some(names)}: {told}; give batches that take "
                    "the model through these layers, or skip= them",
                    CalibrationWarning,
                )
        if self.thin:
            warn(
                f"calibration is thin for {some(self.thin)}: with fewer than {SAMPLES_PER_COLUMN} "
                "n samples (rows, or patches of a conv) the factors fit the samples more than the "
                "data; give more batches",
                CalibrationWarning,
            )
        if self.early:
            warn(
                f"the sweeps of {some(self.early)} have over 2% of the error still to gain; give "
                "more with n_iter_max= of the method, such as CP(n_iter_max=300)",
                ConvergenceWarning,
            )
