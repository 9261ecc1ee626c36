"""What decompositions of growing data share: the rows of the growing mode, and what fits before."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError


class GrowingRows:
    """Orthonormal columns (n_rows, r) of rows that come piece by piece, none of which is turned
    before somebody looks."""

    def __init__(self) -> None:
        self._tops: list[Tensor] = []  # (r, r') of every update: what became of the columns before
        self._bottoms: list[Tensor] = []  # (m, r') of every update: those of its rows

    def take(self, turn: Tensor, before: int) -> None:
        """An update with orthonormal columns (before + m, r') upon `before` columns so far."""
        self._tops.append(turn[:before])
        self._bottoms.append(turn[before:])

    def whole(self) -> Tensor:
        """(n_rows, r)."""
        last = self._bottoms[-1]
        turn = torch.eye(last.shape[1], dtype=last.dtype, device=last.device)
        blocks = []
        for top, bottom in zip(reversed(self._tops), reversed(self._bottoms), strict=True):
            blocks.append(bottom @ turn)
            turn = top @ turn
        rows = torch.cat(blocks[::-1])
        # What it was made of is kept as one update, so that the next look is no dearer.
        self._tops, self._bottoms = [turn], [rows]
        return rows


def check_alike(name: str, given: Tensor, dtype: torch.dtype | None, device: torch.device) -> None:
    """Raise ArgumentError where a piece is of another dtype or elsewhere than those before."""
    if given.dtype != dtype or given.device != device:
        raise ArgumentError(
            f"{name} is {given.dtype} on {given.device}, those before are {dtype} on {device}; "
            "bring them together with .to()"
        )
