"""The weight that factors stand for, rebuilt for one call."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import CPFactors, Factors
from tensorlrf.factors.algebra import khatri_rao


def dense_weight(factors: Factors, *, channels_last: bool = False) -> Tensor:
    """`factors.to_dense()` of a weight, (out, in) or (out, in, kh, kw), under autocast in the dtype
    that layers run in.

    `channels_last` has the kernel of CPFactors made in that memory format, at no further cost;
    other formats keep theirs.
    """
    if not channels_last or not isinstance(factors, CPFactors):
        return factors._dense()
    out_factor, in_factor, *taps = factors.factors
    matrix = out_factor @ khatri_rao((*taps, in_factor * factors.weights)).T  # (O, kh kw I)
    sizes = [t.shape[0] for t in (*taps, in_factor)]
    return matrix.reshape(-1, *sizes).permute(0, 3, 1, 2)
