"""What each layer can lose, as a section of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensorlrf.compression.page.document import Section
from tensorlrf.compression.page.heat_map import heat_map
from tensorlrf.compression.page.parts import note
from tensorlrf.compression.page.tables import NAME, NUMBER, WORDS, Cell, Number, table


@dataclass(frozen=True)
class LossRow:
    """A layer: its name, kind and number of parameters, and what is lost at each of the shares."""

    name: str
    kind: str
    params: int
    losses: tuple[float, ...]


def sensitivity_section(
    rule: str, unit: str, shares: Sequence[float], at: int, rows: Sequence[LossRow]
) -> Section:
    """With a map of the losses at the share of index `at`."""
    half = f"{shares[at]:.0%}"
    said = (
        f"What the model loses, in {unit}, where one layer keeps {half} of its parameters and all "
        f"others are whole, by the rule {rule}. Colours go by the logarithm, and the stronger they "
        "are, the more is lost: pale layers can go first, the strongest should stay."
    )
    columns = [("Layer", NAME), ("Kind", WORDS), ("Parameters", NUMBER)]
    columns += [(f"Loss at {share:.0%}", NUMBER) for share in shares]
    caption = f"Loss with {half} of one layer kept: a row for each block, a column for each kind."
    picture = heat_map(
        "sensitivity-map",
        caption,
        "Loss of each layer; the table below has the numbers.",
        {row.name or "(model)": row.losses[at] for row in rows},
    )
    listed = table(
        "sensitivity-table",
        f"Losses in {unit}.",
        columns,
        map(_cells, rows),
        searched="layers",
    )
    return Section("sensitivity", "What each layer can lose", (note(said), picture, listed))


def _cells(row: LossRow) -> list[Cell]:
    numbers = [Number(loss, f"{loss:.3g}") for loss in row.losses]
    params = Number(row.params, f"{row.params:,}")
    return [row.name or "(model)", row.kind, params, *numbers]
