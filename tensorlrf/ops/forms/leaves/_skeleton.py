"""Some columns and rows, and what is between them."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import Skeleton
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms.shared._kernels import TwoMatrices, behind_a_convolution
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Matrix, Paths


class SkeletonForm(Form[Skeleton]):
    """C (U (R x)); without a core what a low rank does. The kernel of a convolution is the rows."""

    def linear(self, f: Skeleton) -> Paths:
        rows = _rows(f)
        if f.core is not None:
            return {"chain": (Matrix(rows), Matrix(f.core), Matrix(f.columns))}
        return {
            "chain": (Matrix(rows), Matrix(f.columns)),
            "fused": (TwoMatrices((rows, f.columns)),),
        }

    def conv(self, f: Skeleton, conv: Conv) -> Paths:
        kernel = _rows(f).reshape(-1, *conv.shape[1:])  # (q, I, *k)
        taps = conv.taps(kernel)
        if f.core is not None:
            return {"chain": (taps, conv.pointwise(f.core), conv.pointwise(f.columns))}
        paths: Paths = {"chain": (taps, conv.pointwise(f.columns))}
        return {**paths, **behind_a_convolution(conv, kernel, f.columns)}

    def kernels(self, f: Skeleton, conv: Conv) -> dict[str, tuple[int, ...]]:
        return {} if f.rows is None else {"rows": (int(f.rows.shape[0]), *conv.shape[1:])}


def _rows(f: Skeleton) -> Tensor:
    """(q, n)."""
    return f.columns.transpose(0, 1) if f.rows is None else f.rows
