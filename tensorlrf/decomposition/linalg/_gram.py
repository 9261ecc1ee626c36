"""Grams of unfoldings, and the leading left singular vectors of an unfolding.

For float32 and below a Gram is summed in float64: then singular values are good down to about
1e-8 of the largest one, which is all that float32 factors can hold. Float64 input takes the SVD
itself, since its Gram would lose half of its digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.threads import cores_for, spectrum_work

Choose = Callable[[Tensor], int]
"""From energies (squared singular values, descending, float64) to how many to keep."""

# Elements cast to float64 at once: 4 MB, so that the cast block is read back from the cache.
_BLOCK = 1 << 19


def left_vectors(
    tensor: Tensor, mode: int, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the mode-`mode` unfolding, and its energies.

    Returns (n_mode, k) with orthonormal columns in the dtype of `tensor`, k = n_mode or the number
    of columns of the unfolding if that is less, and the k energies, descending, in float64. Neither
    has a graph. `dtype` is that of the Gram, where there is one.
    """
    tensor = tensor.detach()
    n = tensor.shape[mode]
    rest = tensor.numel() // n
    if tensor.dtype == torch.float64:
        vectors, energies = _by_svd(unfold(tensor, mode))
    elif n <= rest:
        energies, vectors = descending_eigh(mode_gram(tensor, mode, dtype=dtype))
    else:
        vectors, energies = _by_short_gram(unfold(tensor, mode))
    return vectors.to(tensor.dtype), energies.to(torch.float64)


def leading_vectors(tensor: Tensor, mode: int, choose: Choose) -> Tensor:
    """The first r left singular vectors (n_mode, r), r from `choose` on the energies.

    Where r exceeds the number of columns of the unfolding they are completed.
    """
    vectors, energies = left_vectors(tensor, mode)
    r = choose(energies)
    return complete(vectors[:, :r], r)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Mode-`mode` unfolding (n_mode, product of the others, C order)."""
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def mode_gram(tensor: Tensor, mode: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """X_(mode) X_(mode)^T in `dtype`, (n_mode, n_mode), without a copy of the unfolding.

    Blocks of the tensor as it lies are cast, turned while they are cast, and multiplied.
    """
    n = tensor.shape[mode]
    before = math.prod(tensor.shape[:mode])
    after = math.prod(tensor.shape[mode + 1 :])
    with cores_for("product", n * tensor.numel()):
        return _blocked_gram(tensor.reshape(before, n, after), dtype)


def _blocked_gram(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first mode of X X^T for the slices X (n, after) of a stack."""
    before, n, after = stack.shape
    gram = torch.zeros(n, n, dtype=dtype, device=stack.device)
    if before == 1:
        matrix = stack[0]
        for columns in torch.split(matrix, max(1, _BLOCK // n), dim=1):
            block = columns.to(dtype)  # (n, some)
            gram.addmm_(block, block.T)
        return gram
    for slab in torch.split(stack, max(1, _BLOCK // (n * after))):
        if after == 1:
            block = slab[:, :, 0].to(dtype).T  # (n, some)
        else:
            turned = slab.transpose(0, 1)  # (n, some, after)
            block = turned.to(dtype, memory_format=torch.contiguous_format).reshape(n, -1)
        gram.addmm_(block, block.T)
    return gram


def descending_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, not below zero) and eigenvectors of a positive semidefinite matrix.

    LAPACK may give up on a matrix with many equal eigenvalues; the SVD of a positive semidefinite
    matrix is the same decomposition by another algorithm.
    """
    with cores_for("spectrum", spectrum_work(*matrix.shape)):
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            vectors, values, _ = torch.linalg.svd(matrix)
            return values, vectors
    return values.flip(0).clamp(min=0), vectors.flip(1)


def thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,) descending, V^T (k, n) with k = min(m, n).

    The divide-and-conquer driver can fail to converge on finite input; then the singular vectors
    of the short side come from its Gram and those of the long side from a QR factorisation.
    """
    try:
        with cores_for("spectrum", spectrum_work(*matrix.shape)):
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrix.shape[0] < matrix.shape[1]:
            right, values, left = _svd_by_qr(matrix.T)
            return left.T, values, right.T
        left, values, right = _svd_by_qr(matrix)
    return left, values, right


def _svd_by_qr(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for m >= n, in float64, by eigenvectors of the Gram and a QR factorisation."""
    wide = matrix.to(torch.float64)
    _, vectors = descending_eigh(wide.T @ wide)
    left, upper = torch.linalg.qr(wide @ vectors)
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(wide)
    return (
        (left * signs).to(matrix.dtype),
        upper.diagonal().abs().to(matrix.dtype),
        vectors.T.to(matrix.dtype),
    )


def identity(n: int, like: Tensor) -> Tensor:
    """(n, n) in the dtype and on the device of `like`, whatever torch's defaults are."""
    return torch.eye(n, dtype=like.dtype, device=like.device)


def complete(vectors: Tensor, r: int) -> Tensor:
    """`vectors` (n, k) with orthonormal columns, completed to (n, r) where k < r."""
    n, k = vectors.shape
    if k >= r:
        return vectors
    # Householder's Q is orthogonal whatever it factors, so columns of zeros become a complement.
    padded = torch.cat([vectors, vectors.new_zeros(n, r - k)], dim=1)
    return torch.cat([vectors, torch.linalg.qr(padded)[0][:, k:]], dim=1)


def keep(r: int) -> Choose:
    """Keep r, whatever the energies."""
    return lambda energies: r


def keep_within(budget: float) -> Choose:
    """Keep the fewest, at least one, so that the energies left out sum to at most `budget`."""

    def choose(energies: Tensor) -> int:
        tails = energies.flip(0).cumsum(0).flip(0)  # tails[i] = sum of energies[i:]
        return max(1, int((tails > budget).sum()))

    return choose


def scale_of(tensor: Tensor, largest: float | None = None) -> float:
    """A power of four near max |tensor|, `largest` if known, where that is far from one, else one.

    Dividing by it is exact and keeps squares away from overflow and underflow; its root is exact.
    """
    if largest is None:
        low, high = tensor.detach().aminmax()  # without a copy of the tensor
        largest = max(-float(low), float(high))
    if largest == 0.0:
        return 1.0
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= 24:
        return 1.0
    limit = 1000 if tensor.dtype == torch.float64 else 120
    return float(2.0 ** (2 * (max(-limit, min(limit, exponent)) // 2)))


def _by_svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    m, n = matrix.shape
    if m < n:
        # X = (Q R)^T with X^T = Q R: the left vectors of X are those of the small R^T.
        with cores_for("spectrum", spectrum_work(m, n)):
            matrix = torch.linalg.qr(matrix.T, mode="r")[1].T
    vectors, values, _ = thin_svd(matrix)
    return vectors, values.to(torch.float64) ** 2


def _by_short_gram(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """For a tall (m, n): eigenvectors of the (n, n) Gram, carried over by the matrix."""
    energies, right = descending_eigh(mode_gram(matrix, 1))
    # Columns of X V are orthogonal in exact arithmetic; QR makes them so where they are tiny.
    with cores_for("spectrum", spectrum_work(*matrix.shape)):
        left, _ = torch.linalg.qr(matrix.to(torch.float64) @ right)
    return left, energies
