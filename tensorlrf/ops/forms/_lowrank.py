"""Two matrices."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tensorlrf.factors import LowRank
from tensorlrf.ops.forms._form import Form, Terms
from tensorlrf.ops.forms.shared._kernels import TwoMatrices, behind_a_convolution
from tensorlrf.ops.forms.shared._lookup import lookups
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Matrix, Paths


class LowRankForm(Form[LowRank]):
    """Down to r and up again; the kernel of a convolution is the right factor."""

    def linear(self, f: LowRank) -> Paths:
        return {
            "chain": (Matrix(f.right), Matrix(f.left)),
            "fused": (TwoMatrices((f.right, f.left)),),
        }

    def conv(self, f: LowRank, conv: Conv) -> Paths:
        right = f.right.reshape(-1, *conv.shape[1:])  # (g r, I, *k)
        paths: Paths = {"chain": (conv.taps(right), conv.pointwise(f.left))}
        return {**paths, **behind_a_convolution(conv, right, f.left)}

    def embedding(self, f: LowRank, padding_idx: int | None) -> Paths:
        return lookups((f.left, f.right), padding_idx)

    def kernels(self, f: LowRank, conv: Conv) -> dict[str, tuple[int, ...]]:
        return {"right": (conv.groups * f.right.shape[-2], *conv.shape[1:])}

    def bag(self, f: LowRank, rows: Tensor) -> Tensor:
        return rows @ f.right

    def transposed(self, f: LowRank) -> LowRank:
        return LowRank(f.right.T, f.left.T)

    def rows_of(self, f: LowRank) -> str:
        return "left"

    def along(self, f: LowRank, axis: int) -> dict[str, int]:
        return {"right": 1} if axis else {"left": 0}

    def network(self, f: LowRank, modes: str, fresh: Iterator[str]) -> Terms:
        r = next(fresh)
        right = f.right.reshape(f.rank, *f.shape[1:])
        return [(modes[0] + r, f.left), (r + modes[1:], right)]
