"""In which form the second moments of a layer's inputs are kept, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tensorlrf.compression.calibration.moments._directions import Directions
from tensorlrf.compression.calibration.moments._sums import Blocks, Sums, Whole


@dataclass(frozen=True)
class Form:
    """kind  "full": all n^2; "blocks": those of blocks of columns alone; "sketch": frequent
          directions, and variances; "counts": of indicators, which have no others than variances
    size  columns of a block, or rows of the sketch
    """

    kind: str
    size: int = 0

    def __str__(self) -> str:
        if self.kind in ("full", "counts"):
            return self.kind
        return f"{self.kind} of {self.size:,}"

    def sums(self, n: int, device: torch.device) -> Sums:
        """Of rows with n columns, empty."""
        if self.kind == "sketch":
            return Directions(n, self.size, device)
        return Whole(n, device) if self.kind == "full" else Blocks(n, self.size, device)

    def numbers(self, n: int) -> int:
        """That the matrix has once it is made of its sums."""
        a_column = {"full": n, "blocks": self.size, "sketch": 2 * self.size + 1, "counts": 1}
        return n * a_column[self.kind]

    def held(self, n: int) -> int:
        """Bytes while sums are taken, and the matrix is made of them."""
        if self.kind != "sketch":
            return 16 * self.numbers(n)
        # The rows, what they are turned into, and the variances; inner products and vectors.
        return 8 * (4 * self.size * n + 4 * n) + 8 * 4 * (2 * self.size) ** 2


FULL = Form("full")

COUNTS = Form("counts")
