"""Linear layers whose weight is a matrix of blocks: low rank, hierarchical, Monarch and BLAST.

Every weight is a right and a left side of panels with an intermediate between them, so that all
formats run in the same two grouped kernels, `shrink` and `expand`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from tensorlrf_kernels.blr_linear._op import linear
from tensorlrf_kernels.blr_linear.forms import words

__all__ = ["blast_linear", "blr_linear", "monarch_linear", "words"]


def blr_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    dense: Tensor,
    blocks: str | Iterable[Sequence[int | None]],
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias)` for blocks of unequal rank that tile W (m, n).

    On a grid or as a tree, in two launches on an NVIDIA GPU, or in one for at most 128 rows.
    Differentiable once, in all tensors; every sum of the gradients is made in a fixed order. Blocks
    are checked the first time that they are met, and only the sizes of tensors after that.

    Parameters
    ----------
    x : Tensor of shape (..., n)
        May have any strides.
    left : Tensor of shape (sum of rows_b r_b,)
        The left panels, each (r_b, rows_b), by rows of blocks.
    right : Tensor of shape (sum of r_b columns_b,)
        The right panels, each (r_b, columns_b), by columns of blocks: ascending (column, columns,
        row, rows). Panels that are not contiguous are copied.
    dense : Tensor of shape (sum of rows_b columns_b,)
        The dense blocks, by rows of blocks.
    blocks : iterable of (row, column, rows, columns, rank), or str
        Ascending (row, rows, column, columns), the rank None for a dense block; or `words` of them,
        which is faster.
    shape : (m, n)
    bias : Tensor of shape (m,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices, blocks or the activation do not fit together.

    Notes
    -----
    Sums are made in float32, and the intermediate is rounded to the dtype once, or kept in float32
    for float16; float32 operands are multiplied in TF32 where torch's own switch allows it.

    Library products, one a strip of blocks, run in its place on a CPU, in float64, where a side of
    W is below 16 or tiles would be mostly mask, and where the kernel does not compile.

    References
    ----------
    Amestoy et al. 2015; Hackbusch 1999.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import blr_linear
    >>> x, left, right = torch.ones(3, 8), torch.ones(4), torch.ones(4)
    >>> blocks = [(0, 0, 4, 4, None), (0, 4, 4, 4, 1)]
    >>> blr_linear(x, left, right, torch.eye(4).flatten(), blocks, (4, 8))[0]
    tensor([5., 5., 5., 5.])
    """
    text = blocks if isinstance(blocks, str) else words(blocks, shape)
    return linear(x, left, right, dense, bias, f"blr {text}", activation)


def monarch_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias)` for a Monarch matrix W, in two launches on an NVIDIA GPU.

    `W[(s, q), (k, p)]` is the sum over r of `left[q, s, k, r] right[k, q, r, p]`: row s Q + q,
    column k P + p. The rest is as `blr_linear` has it.

    Parameters
    ----------
    x : Tensor of shape (..., n)
    left : Tensor of shape (Q, S, K, r)
    right : Tensor of shape (K, Q, r, P)
    shape : (m, n)
        S = ceil(m / Q), P = ceil(n / K): what lies beyond is padding.
    bias : Tensor of shape (m,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        As `blr_linear`.

    References
    ----------
    Dao et al. 2022.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import monarch_linear
    >>> f = tensorlrf.monarch(torch.rand(6, 8), 1, blocks=2)
    >>> x = torch.rand(3, 8)
    >>> y = monarch_linear(x, f.left, f.right, f.shape)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(y, x @ f.to_dense().T, atol=1e-5)
    True
    """
    m, n = map(int, shape)  # a text of symbols cannot be traced
    return linear(x, left, right, None, bias, f"monarch {m} {n}", activation)


def blast_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    scales: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias)` for W of block (i, j) `left[i] diag(scales[i, j]) right[j]`.

    In three launches on an NVIDIA GPU. The intermediate is rounded to the dtype twice, before the
    scales and behind them. The rest is as `blr_linear` has it.

    Parameters
    ----------
    x : Tensor of shape (..., n)
    left : Tensor of shape (p, mb, r)
    right : Tensor of shape (q, r, nb)
    scales : Tensor of shape (p, q, r)
    shape : (m, n)
        mb = ceil(m / p), nb = ceil(n / q): what lies beyond is padding.
    bias : Tensor of shape (m,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        As `blr_linear`.

    References
    ----------
    Lee et al. 2024, "BLAST", eq. 2.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import blast_linear
    >>> left, right, scales = torch.ones(2, 3, 1), torch.ones(4, 1, 5), torch.ones(2, 4, 1)
    >>> blast_linear(torch.ones(1, 20), left, right, scales, (6, 20))
    tensor([[20., 20., 20., 20., 20., 20.]])
    """
    m, n = map(int, shape)
    return linear(x, left, right, scales, bias, f"blast {m} {n}", activation)
