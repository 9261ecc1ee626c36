"""Block terms of a kernel: a chain of three convolutions whose middle one has a group a term."""

from __future__ import annotations

import math

from torch import Tensor

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import BlockTerm
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms.shared._slide import Conv, Taps
from tensorlrf.ops.forms.stages import Paths


class BlockTermForm(Form[BlockTerm]):
    """Into the ranks of all terms by one product, a convolution with as many groups as terms, out
    of them by another product, which adds the terms up (Chen et al. 2018, section 3.2)."""

    def conv(self, f: BlockTerm, conv: Conv) -> Paths:
        if tuple(f.modes) != (0, 1):
            raise UnsupportedError(
                f"a convolution runs on block terms of its channels, modes (0, 1); got {f.modes}"
            )
        outputs, inputs = f.factors  # (S, O, r_0) and (S, I, r_1), or stacks of g such
        kernel = f.cores.reshape(-1, *f.cores.shape[-1 - conv.axes :])  # (g S r_0, r_1, *k)
        terms = conv.groups * int(outputs.shape[-3])
        return {
            "chain": (
                conv.pointwise(_joined(inputs).mT, inner=True),
                Taps(kernel, terms, range(conv.axes), conv.geometry),
                conv.pointwise(_joined(outputs)),
            )
        }

    def kernels(self, f: BlockTerm, conv: Conv) -> dict[str, tuple[int, ...]]:
        *counts, r_0, r_1 = f.cores.shape[: f.cores.ndim - conv.axes]
        return {"cores": (math.prod(counts) * r_0, r_1, *f.cores.shape[-conv.axes :])}


def _joined(factors: Tensor) -> Tensor:
    """(..., S, n, r) as (..., n, S r), the columns of one term after another."""
    return factors.transpose(-3, -2).flatten(-2)
