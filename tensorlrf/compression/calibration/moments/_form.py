"""In which form the second moments of a layer's inputs are kept, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.compression.calibration.moments._directions import Directions
from tensorlrf.compression.calibration.moments._images import Images
from tensorlrf.compression.calibration.moments._sums import Blocks, Sums, Whole


@dataclass(frozen=True)
class Form:
    """kind  "full": all n^2; "blocks": those of blocks of columns alone; "sketch": frequent
          directions, and variances; "image": products with the weight, and variances; "counts": of
          indicators, which have no others than variances
    size  columns of a block, rows of the sketch, or outputs of the weight
    """

    kind: str
    size: int = 0

    def __str__(self) -> str:
        if self.kind in ("full", "counts"):
            return self.kind
        if self.kind == IMAGE:
            return f"image on {self.size:,} outputs"
        return f"{self.kind} of {self.size:,}"

    def sums(self, n: int, device: torch.device, weight: Tensor | None = None) -> Sums:
        """Of rows with n columns, empty; of an image that is to take any the layer's `weight`."""
        if self.kind == IMAGE:
            return Images(n, self.size, device, weight)
        if self.kind == "sketch":
            return Directions(n, self.size, device)
        return Whole(n, device) if self.kind == "full" else Blocks(n, self.size, device)

    def numbers(self, n: int) -> int:
        """That the matrix has once it is made of its sums."""
        a_column = {"full": n, "blocks": self.size, "sketch": 2 * self.size + 1, "counts": 1}
        return n * (self.size + 1 if self.kind == IMAGE else a_column[self.kind])

    def held(self, n: int) -> int:
        """Bytes while sums are taken, and the matrix is made of them."""
        if self.kind == IMAGE:  # the sums, and what they are turned into
            return 8 * (2 * self.size * n + 3 * self.size**2 + 4 * n)
        if self.kind != "sketch":
            return 16 * self.numbers(n)
        # The rows, what they are turned into, and the variances; inner products and vectors.
        return 8 * (4 * self.size * n + 4 * n) + 8 * 4 * (2 * self.size) ** 2


IMAGE = "image"

FULL = Form("full")

COUNTS = Form("counts")
