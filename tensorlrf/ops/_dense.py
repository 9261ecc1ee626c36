"""The weight that factors stand for, rebuilt for one call."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import CPFactors, Factors
from tensorlrf.factors.algebra import khatri_rao


def dense_weight(factors: Factors, *, channels_last: bool = False) -> Tensor:
    """The `to_dense()` of a weight, under autocast in the dtype that layers run in.

    Parameters
    ----------
    factors : Factors
        Of a weight (out, in) or (out, in, kh, kw).
    channels_last : bool
        Has the kernel of CPFactors made in that memory format, at no further cost; other formats
        keep theirs.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> torch.equal(tensorlrf.ops.dense_weight(f), f.to_dense())
    True
    """
    if not channels_last or not isinstance(factors, CPFactors):
        return factors._dense()
    out_factor, in_factor, *taps = factors.factors
    matrix = out_factor @ khatri_rao((*taps, in_factor * factors.weights)).T  # (O, kh kw I)
    sizes = [t.shape[0] for t in (*taps, in_factor)]
    return matrix.reshape(-1, *sizes).permute(0, 3, 1, 2)
