"""The weight that factors stand for, rebuilt for one call."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import Factors
from tensorlrf.ops.forms._form import form_of


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
    return form_of(factors).dense(factors, channels_last)
