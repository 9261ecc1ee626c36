"""Factors of a Tucker decomposition: sequentially truncated, all at once, sketched, and iterated.

All work on the modes in `modes`, on the tensor as it lies; the core comes with the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._derivatives import kept_in_order, moving_span
from tensorlrf.decomposition.linalg._gram import (
    Choose,
    complete,
    descending_eigh,
    identity,
    keep,
    leading_vectors,
    left_vectors,
    mode_gram,
    unfold,
)
from tensorlrf.factors.algebra import mode_product

Basis = dict[int, Tensor]
"""Mode -> (n_k, r_k) with orthonormal columns."""


def mode_order(shape: Sequence[int], modes: Sequence[int], ranks: Mapping[int, int]) -> list[int]:
    """The order in which the modes of one tensor are cheapest to contract, n_k to r_k each.

    Mode a costs size * (n_a + r_a) and leaves r_a / n_a of the tensor to the next; comparing both
    orders of two neighbours gives the key. Without ranks the small sides go first
    (Vannieuwenhoven, Vandebril & Meerbergen 2012, section 6).
    """

    def cost(k: int) -> tuple[float, int]:
        n, r = shape[k], ranks.get(k, 0)
        return ((n + r) / (1 - r / n) if r < n else math.inf, n)

    return sorted(modes, key=cost)


def hosvd(tensor: Tensor, choices: Mapping[int, Choose]) -> tuple[Tensor, Basis]:
    """Each factor from the whole tensor (De Lathauwer, De Moor & Vandewalle 2000a).

    A mode whose choice is to keep everything gets no factor.
    """
    basis: Basis = {}
    for k, choose in choices.items():
        factor = moving(tensor, k, leading_vectors(tensor, k, choose))
        if factor.shape[1] < tensor.shape[k]:
            basis[k] = factor
    return contract(tensor, basis, list(basis)), basis


def st_hosvd(
    tensor: Tensor,
    choices: Mapping[int, Choose],
    *,
    wider: int = 1,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Basis]:
    """Each factor, in the order of `choices`, from what the factors before it have left.

    (Vannieuwenhoven, Vandebril & Meerbergen 2012.) A mode whose choice is to keep everything gets
    no factor. With `wider` the factors carry that many times r_k columns, of which the first r_k
    are the factor proper, and were used for the modes that follow. Grams are summed in `dtype`.
    """
    basis: Basis = {}
    for k, choose in choices.items():
        vectors, energies = left_vectors(tensor, k, dtype=dtype)
        n, r = tensor.shape[k], choose(energies)
        if r < n:
            more = complete(vectors[:, :r], r)
            if wider > 1:
                more = torch.cat([more, vectors[:, r : wider * r]], dim=1)
            basis[k] = moving_flag(tensor, k, more, r)
            tensor = mode_product(tensor, basis[k][:, :r].T, k)
    return tensor, basis


def randomized_st_hosvd(
    tensor: Tensor,
    ranks: Mapping[int, int],
    order: Sequence[int],
    n_power_iter: int,
    n_oversample: int,
    generator: torch.Generator,
) -> tuple[Tensor, Basis]:
    """The same with the range of each unfolding found by a sketch (Minster, Saibaba & Kilmer 2020).

    Every product is one of the tensor with a matrix along the mode: no unfolding, and no test
    matrix larger than the tensor divided by n_k / (r_k + n_oversample).
    """
    basis: Basis = {}
    for k in order:
        whole, tensor = tensor, tensor.detach()
        n, r = tensor.shape[k], ranks[k]
        rest = tensor.numel() // n
        s = min(n, r + n_oversample)
        sketch_shape = (*tensor.shape[:k], s, *tensor.shape[k + 1 :])
        sketch = torch.randn(
            sketch_shape, generator=generator, dtype=tensor.dtype, device=tensor.device
        )
        q, _ = torch.linalg.qr(mode_cross(tensor, sketch / math.sqrt(rest), k))  # (n, s)
        for _ in range(n_power_iter):
            q, _ = torch.linalg.qr(mode_cross(tensor, mode_product(tensor, q.T, k), k))
        tensor = mode_product(tensor, q.T, k)
        rotation = descending_eigh(mode_gram(tensor, k))[1][:, :r].to(tensor.dtype)
        basis[k] = moving(whole, k, q @ rotation)
        if whole.requires_grad:
            tensor = mode_product(whole, basis[k].T, k)
        else:
            tensor = mode_product(tensor, rotation.T, k)
    return tensor, basis


def hooi_sweep(
    tensor: Tensor,
    order: Sequence[int],
    basis: Basis,
    *,
    fine: bool,
    whole: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """One sweep of higher-order orthogonal iteration; changes `basis`, returns the core.

    Each factor becomes the leading vectors of the tensor contracted with all other factors as they
    are then (De Lathauwer, De Moor & Vandewalle 2000b), so the norm of the core never falls.
    Contractions are shared in a tree: half of the modes are contracted for the sake of the other
    half, and then the other way about, so a sweep contracts the whole tensor twice however many
    modes it has. Where `tensor` is a part of a sum, `whole` gives the sum of what all parts come
    to.
    """
    if len(order) == 1:
        k, tensor = order[0], whole(tensor)
        basis[k] = best_factor(tensor, k, basis[k].shape[1], fine=fine)
        return mode_product(tensor, basis[k].T, k)
    # Every other mode, so that both contractions of the whole tensor begin with a cheap one.
    first, second = order[0::2], order[1::2]
    hooi_sweep(contract(tensor, basis, second), first, basis, fine=fine, whole=whole)
    return hooi_sweep(contract(tensor, basis, first), second, basis, fine=fine, whole=whole)


def best_factor(tensor: Tensor, mode: int, r: int, *, fine: bool) -> Tensor:
    """Leading left singular vectors (n_mode, r) of the unfolding; in float32, from a float32 Gram.

    That Gram loses the directions below sqrt(eps) of the largest singular value. `fine` brings them
    back by a step of subspace iteration, the orthonormal columns of X_(k) X_(k)^T U: it works on
    the unfolding itself and loses no more than eps times the largest.
    """
    if tensor.dtype == torch.float64:
        return moving(tensor, mode, leading_vectors(tensor, mode, keep(r)))
    vectors, _ = left_vectors(tensor, mode, dtype=tensor.dtype)
    factor = complete(vectors[:, :r], r)
    if fine:
        known = tensor.detach()
        projected = mode_product(known, factor.T, mode)
        factor = torch.linalg.qr(mode_cross(known, projected, mode))[0]
    return moving(tensor, mode, factor)


def moving(tensor: Tensor, mode: int, factor: Tensor) -> Tensor:
    """Leading left singular vectors of the unfolding, in the graph where the tensor is."""
    return moving_span(unfold(tensor, mode), factor) if tensor.requires_grad else factor


def moving_flag(tensor: Tensor, mode: int, factor: Tensor, r: int) -> Tensor:
    """The same of (n_mode, w) columns of which the first r are the leading ones."""
    if not tensor.requires_grad:
        return factor
    span = moving(tensor, mode, factor)
    first = identity(factor.shape[1], factor)
    first, others = first[:, :r], first[:, r:]
    first = moving_span(span.T @ unfold(tensor, mode), first)
    return span @ torch.cat([first, others - first @ (first.T @ others)], dim=1)


def contract(tensor: Tensor, basis: Basis, modes: Sequence[int]) -> Tensor:
    """tensor x_k basis[k]^T for each k in `modes`, in that order."""
    for k in modes:
        tensor = mode_product(tensor, basis[k].T, k)
    return tensor


def mode_cross(tensor: Tensor, other: Tensor, mode: int) -> Tensor:
    """X_(mode) Y_(mode)^T, (n_mode, s), for tensors that differ only in the size of that mode."""
    before = math.prod(tensor.shape[:mode])
    x = tensor.reshape(before, tensor.shape[mode], -1)
    y = other.reshape(before, other.shape[mode], -1)
    if before == 1:
        return x[0] @ y[0].T
    if x.shape[2] == 1:
        return x[:, :, 0].T @ y[:, :, 0]
    return torch.einsum("bna,bsa->ns", x, y)


def order_by_energy(core: Tensor, basis: Basis, eps: float) -> tuple[Tensor, Basis]:
    """The same tensor with core slices mutually orthogonal and ordered by energy along each mode.

    Then a smaller rank may be sliced off (the HOSVD of the core, which is small). `eps` is the
    rounding of the result.
    """
    turned: Basis = {}
    turns: Basis = {}
    for k, factor in basis.items():
        turns[k] = leading_vectors(core, k, keep(factor.shape[1]))
        turned[k] = factor @ turns[k]
    core = contract(core, turns, list(turns))
    if not core.requires_grad:
        return core, turned
    grams = {k: rows @ rows.T for k, rows in ((k, unfold(core, k)) for k in turned)}
    return kept_in_order(core, turned, grams, eps, 0)
