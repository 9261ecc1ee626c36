"""A picture of a refinement: held-out loss over seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tensorlrf.files.picture import picture

COLORS = {"given": "#718096", "local": "#2f855a", "block": "#2b6cb0", "global": "#c05621"}


def plot_curve(
    path: str | os.PathLike[str], points: Sequence[tuple[str, float, float]], unit: str
) -> None:
    """(phase, seconds, held-out loss) of each checkpoint, in their order."""
    with picture(path, (7, 4), of="refinement.plot") as figure:
        axes = figure.subplots()
        least, falls = float("inf"), []
        for _, _, loss in points:
            least = min(least, loss)
            falls.append(least)
        axes.step([s for _, s, _ in points], falls, where="post", color="#a0aec0", label="best")
        for phase in dict.fromkeys(phase for phase, _, _ in points):
            own = [(s, loss) for name, s, loss in points if name == phase]
            axes.plot(*zip(*own, strict=True), "o-", color=COLORS.get(phase), label=phase)
        axes.set_xlabel("seconds")
        axes.set_ylabel(f"held-out loss ({unit})")
        if least > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
