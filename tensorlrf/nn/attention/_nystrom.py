"""Attention by landmarks (Nystrom): the softmax of all queries over m landmarks of the keys.

With Q, K, V of n rows and landmarks, means of segments, q of p rows and k, v of m, the outputs are

    softmax(Q k^T) z,    z = v + (A^T A + ridge)^-1 A^T (B - A v),

for A = softmax(q k^T) and B = softmax(q K^T) V. Nystromformer (Xiong et al. 2021, eq. 13) has p = m
and z = A^+ B with an iterated A^+. On the queries and keys of a trained encoder that inverse fits
the landmarks and fails between them; twice as many rows as unknowns, and a ridge that draws z to
the mean values v instead of to zero, leave less error at every m. Where each row is a landmark of
its own, B = A v, and the outputs are those of softmax attention whatever the ridge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors.autocast import without_autocast

LANDMARKS = 64
"""Of the keys, by default."""

QUERIES = 2
"""Landmarks of the queries for one of the keys: rows for an unknown of the least squares."""

RIDGE = 0.04
"""In units of the largest singular value of A, which is near one with as many rows as columns."""


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    landmarks: int = LANDMARKS,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention from landmarks of the keys: linear in the lengths, in time and memory.

    Approximate where both lengths exceed the number of landmarks, else exactly
    `torch.nn.functional.scaled_dot_product_attention`. Landmarks are means of segments of what the
    masks leave, so that padding changes nothing.

    Parameters
    ----------
    query : Tensor of shape (..., T, d)
    key : Tensor of shape (..., S, d)
    value : Tensor of shape (..., S, e)
    landmarks : int
        Of the keys, m; there are 2 m of the queries.
    mask : Tensor of bool, optional
        True at the keys that are there, of a shape that broadcasts to (..., S): (batch, 1, S) for
        keys of many heads.
    query_mask : Tensor of bool, optional
        Likewise, to (..., T): queries that are there, which alone make landmarks. The outputs of
        others mean nothing.
    dropout_p : float
        Of the weights of the landmarks.
    is_causal : bool
        Refused where True: means of segments look ahead.
    scale : float, optional
        Of the scores, 1 / sqrt(d) by default.

    Returns
    -------
    Tensor of shape (..., T, e)
        In the dtype of the inputs; the least squares are in float32 at least.

    Raises
    ------
    UnsupportedError
        For causal attention.
    ArgumentError, ShapeError
        Where the arguments do not fit.

    References
    ----------
    Xiong et al. 2021, "Nystromformer", eq. 13; the least squares differ (twice as many rows, and a
    ridge towards the means of the values).

    Examples
    --------
    >>> q, k, v = torch.rand(3, 2, 4, 100, 8)
    >>> y = tensorlrf.nn.nystrom_attention(q, k, v, landmarks=16)
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> y.shape, bool((y - exact).norm() < 0.05 * exact.norm())
    (torch.Size([2, 4, 100, 8]), True)
    """
    if is_causal:
        raise UnsupportedError(
            "is_causal=True: a landmark is a mean over a segment, which looks ahead of its queries;"
            " use torch.nn.functional.scaled_dot_product_attention"
        )
    check_landmarks(landmarks)
    _check(query, key, value)
    mask = _spread("mask", mask, key)
    query_mask = _spread("query_mask", query_mask, query)
    if min(query.shape[-2], key.shape[-2]) <= landmarks:  # linear in the lengths as it is
        shown = None if mask is None else mask.unsqueeze(-2)
        return F.scaled_dot_product_attention(query, key, value, shown, dropout_p, scale=scale)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with without_autocast():
        return _approximate(query, key, value, landmarks, mask, query_mask, dropout_p, scale)


def _approximate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    m: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    dropout_p: float,
    scale: float,
) -> Tensor:
    own = query.dtype
    few, counts = segment_means(key, m, mask)  # (..., m, d)
    means, _ = segment_means(value, m, mask)  # (..., m, e)
    asked, seen = segment_means(query, QUERIES * m, query_mask)  # (..., p, d)
    bias = _log(counts)
    shown = None if mask is None else mask.unsqueeze(-2)
    outputs = F.scaled_dot_product_attention(asked.to(own), key, value, shown, scale=scale)
    inner = ((scale * asked) @ few.mT + bias.unsqueeze(-2)).softmax(-1)  # (..., p, m)
    live = (seen > 0).unsqueeze(-1)  # landmarks of no queries ask nothing
    inner = inner * live
    left = (outputs.to(inner.dtype) - inner @ means).masked_fill(~live, 0.0)
    ridge = RIDGE**2 * inner.shape[-2] / m
    normal = inner.mT @ inner + ridge * torch.eye(m, dtype=inner.dtype, device=inner.device)
    # A ridge of that size leaves no matrix that has no factor: nothing is to be checked.
    factor, _ = torch.linalg.cholesky_ex(normal)
    solved = means + torch.cholesky_solve(inner.mT @ left, factor)
    even = mask is None and key.shape[-2] % m == 0
    added = None if even else bias.unsqueeze(-2).to(own)
    return F.scaled_dot_product_attention(
        query, few.to(own), solved.to(own), added, dropout_p, scale=scale
    )


def segment_means(x: Tensor, m: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means (..., m, d) of m segments of the rows (..., n, d) that the mask leaves, as long as one
    another, in float32 at least; and of how many each is, (..., m)."""
    n, lead = x.shape[-2], x.shape[:-2]
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    if mask is None:
        place = torch.arange(n, device=x.device) * m // n
        kept = torch.ones((), dtype=torch.bool, device=x.device).expand(*lead, n)
    else:
        rank = mask.cumsum(-1)
        place = (rank - 1).clamp(min=0) * m // rank[..., -1:].clamp(min=1)
        kept = mask
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
    place = place.expand(*lead, n)
    counts = x.new_zeros(*lead, m).scatter_add(-1, place, kept.to(x.dtype))
    sums = torch.zeros_like(x[..., :1, :]).expand(*lead, m, x.shape[-1])
    sums = sums.scatter_add(-2, place.unsqueeze(-1).expand_as(x), x)
    return sums / counts.clamp(min=1).unsqueeze(-1), counts


def _log(counts: Tensor) -> Tensor:
    """A landmark counts for the keys that it is the mean of. Where there are none, all count."""
    return torch.where((counts > 0).any(-1, keepdim=True), counts.log(), 0.0)


def check_landmarks(landmarks: object) -> None:
    """Raises ArgumentError for what is no number of landmarks."""
    if isinstance(landmarks, bool) or not isinstance(landmarks, int) or landmarks < 1:
        raise ArgumentError(f"landmarks={landmarks!r} must be an int of at least 1, such as 64")


def _spread(name: str, mask: Tensor | None, rows: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise ArgumentError(
            f"{name} has dtype {mask.dtype}; it must be torch.bool, True at rows that are there: a "
            "mask that is added to scores has no meaning for landmarks"
        )
    lead = rows.shape[:-1]
    try:
        return mask.expand(lead)
    except RuntimeError:
        raise ShapeError(
            f"{name} has shape {tuple(mask.shape)}; it must broadcast to {tuple(lead)}, such as "
            f"{(*lead[:1], *(1 for _ in lead[1:-1]), lead[-1])}"
        ) from None


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    named = {"query": query, "key": key, "value": value}
    for name, t in named.items():
        if t.ndim < 2 or 0 in t.shape:
            raise ShapeError(f"{name} has shape {tuple(t.shape)}; it must be (..., length, size)")
        if not t.is_floating_point() or t.dtype != query.dtype or t.device != query.device:
            raise ArgumentError(
                f"{name} is {t.dtype} on {t.device}; all three must be of one floating dtype, on "
                "one device"
            )
    lead = {t.shape[:-2] for t in named.values()}
    if len(lead) > 1 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        shapes = ", ".join(str(tuple(t.shape)) for t in named.values())
        raise ShapeError(
            f"query, key and value have shapes {shapes}; they must be (..., T, d), (..., S, d) and "
            "(..., S, e), of the same batch and heads"
        )
