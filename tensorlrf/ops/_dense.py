"""The weight that factors stand for, rebuilt for one call."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import CPFactors, Factors, TuckerFactors
from tensorlrf.factors._cp import khatri_rao
from tensorlrf.factors._tucker import mode_product


def dense_weight(factors: Factors, *, channels_last: bool = False) -> Tensor:
    """`factors.to_dense()` of a weight, (out, in) or (out, in, kh, kw).

    The order of the products is fixed, so that symbolic sizes trace. `channels_last` has the kernel
    of CPFactors made in that memory format, at no further cost; other formats keep theirs.
    """
    if isinstance(factors, TuckerFactors):
        weight = factors.core
        # The last modes are the small ones of a kernel; the output mode grows the most.
        for k, f in zip(reversed(factors.modes), reversed(factors.factors), strict=True):
            weight = mode_product(weight, f, k)
        return weight
    if not isinstance(factors, CPFactors):
        return factors.to_dense()
    out_factor, in_factor, *taps = factors.factors
    weighted = in_factor * factors.weights
    sizes = [t.shape[0] for t in (in_factor, *taps)]
    if not channels_last:
        return (out_factor @ khatri_rao((weighted, *taps)).T).reshape(-1, *sizes)
    matrix = out_factor @ khatri_rao((*taps, weighted)).T  # (O, kh kw I)
    return matrix.reshape(-1, *sizes[1:], sizes[0]).permute(0, 3, 1, 2)
