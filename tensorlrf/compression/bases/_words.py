"""The words of `shared=`."""

from __future__ import annotations

from typing import Any

from tensorlrf.errors import ArgumentError

INPUTS, EXPERTS, LAYERS = "inputs", "experts", "layers"

WORDS = (INPUTS, EXPERTS, LAYERS)


def words_of(shared: Any, *, calibrated: bool) -> tuple[str, ...]:
    """Those of `shared=`, words and globs. Raises ArgumentError for anything else."""
    if shared is None:
        return ()
    given = (shared,) if isinstance(shared, str) else shared
    if not isinstance(given, (list, tuple)) or not all(isinstance(w, str) and w for w in given):
        raise ArgumentError(
            f"shared={shared!r} must be one of {', '.join(WORDS)}, a glob of layer names, or a "
            "list of these"
        )
    if INPUTS in given and not calibrated:
        raise ArgumentError(
            f"shared={shared!r} asks which layers are fed one tensor; give calibration=, or globs "
            "such as '*.0.attention.*'"
        )
    return tuple(given)
