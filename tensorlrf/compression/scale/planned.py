"""The plan for a checkpoint, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from tensorlrf.compression.checkpoint.by_name import NamedLayers
from tensorlrf.compression.methods import Given
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planning import plan


def checkpoint_plan(
    layers: NamedLayers,
    *,
    keep_params: float | None = None,
    error: float | None = None,
    method: Given = "svd",
    skip: str | Sequence[str] | None = None,
) -> Plan:
    """What `compress_checkpoint` would do to layers on meta. Raises as `tensorlrf.plan`."""
    made = plan(
        layers.model, keep_params=keep_params, error=error, method=method, skip=skip,
        progress=False,
    )  # fmt: skip
    return layers.explained(made)
