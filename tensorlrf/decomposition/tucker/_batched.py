"""The HOSVD of many tensors of one shape at once (`batch_dims=`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._batched import (
    as_batch,
    check_batched_metric,
    per_item,
    relative_to_batch,
    scales_of,
    squares,
)
from tensorlrf.decomposition.linalg._derivatives import kept_in_order, moving_span
from tensorlrf.decomposition.linalg._gram import BLOCK, complete, identity, left_singular
from tensorlrf.decomposition.tucker._hooi import mode_order
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Batch, TuckerFactors

Basis = dict[int, Tensor]
"""Mode -> (b, n_k, r_k) with orthonormal columns."""

SOLVERS = ("hosvd", "st_hosvd")


def check_batched_tucker(
    solver: str, rank: object, error: float | None, gram: object, callback: object
) -> None:
    """What `batch_dims` does not go with; one tensor after the other serves all of it."""
    check_batched_metric(rank, gram)
    one_by_one = "decompose the tensors one by one and stack the results with Batch.stack"
    if solver not in SOLVERS:
        raise UnsupportedError(
            f"solver={solver!r} is not served with batch_dims=; use solver='hosvd' or 'st_hosvd', "
            f"or {one_by_one}"
        )
    for name, value in (("error", error), ("callback", callback)):
        if value is not None:
            raise UnsupportedError(
                f"{name}= is not served with batch_dims=; give rank= alone, or {one_by_one}"
            )


def fit_tucker_batched(
    tensor: Tensor, ranks: Mapping[int, int], solver: str, batch_dims: int
) -> Fit[Batch]:
    """`fit_tucker` of each place of a checked tensor (*batch, n_0, n_1, ...), ranks by mode.

    "hosvd" takes each factor from the whole tensor (De Lathauwer et al. 2000a), "st_hosvd" from
    what the earlier ones left (Vannieuwenhoven et al. 2012).
    """
    batch, shape = tuple(tensor.shape[:batch_dims]), tuple(tensor.shape[batch_dims:])
    stack = tensor.reshape(math.prod(batch), *shape)
    work = stack.to(working_dtype(stack.dtype))
    scales = scales_of(work)
    work = work / per_item(scales, work)
    basis: Basis = {}
    core = work
    for k in mode_order(shape, [k for k in ranks if ranks[k] < shape[k]], ranks):
        basis[k] = left_vectors(work if solver == "hosvd" else core, k, ranks[k])
        core = mode_products(core, basis[k].mT, k)
    for k in ranks:
        if k not in basis:
            whole = identity(shape[k], work)
            basis[k] = whole.expand(len(work), -1, -1)
    # The HOSVD of the core, which is small, puts slices in order of energy: a rank can be cut.
    turns = {k: left_vectors(core.detach(), k, ranks[k]) for k in sorted(basis)}
    for k, turn in turns.items():
        core = mode_products(core, turn.mT, k)
        basis[k] = basis[k] @ turn
    if core.requires_grad:
        grams = {k: rows @ rows.mT for k in basis for rows in [unfolded(core, k)]}
        core, basis = kept_in_order(core, basis, grams, torch.finfo(stack.dtype).eps, 1)
    modes = tuple(sorted(basis))
    shifts = shares(core, scales, len(modes), stack.dtype)
    factors = [(basis[k] * per_item(shifts, basis[k])).to(stack.dtype) for k in modes]
    scaled = core * per_item(scales / shifts ** len(modes), core)
    core = scaled.to(stack.dtype)
    one = TuckerFactors(core[0], tuple(factor[0] for factor in factors), modes)
    parts = dict(zip(one.tensors(), (core, *factors), strict=True))
    errors, norms = rel_errors(work, scales, core, dict(zip(modes, factors, strict=True)))
    reached = relative_to_batch(errors, norms, scales)
    reason = f"{solver} needs no iteration, largest error of {len(work)} places"
    result = as_batch(TuckerFactors, parts, one.meta(), batch)
    return Fit(result, (reached,), True, f"{reason} {float(errors.max()):.4g}")


def left_vectors(stack: Tensor, mode: int, r: int) -> Tensor:
    """The first r left singular vectors (b, n_mode, r) of the mode-`mode` unfoldings, completed
    where r exceeds the number of columns, and in the graph where `stack` is."""
    whole = unfolded(stack, mode)
    vectors = left_singular(whole, r)[0]
    return moving_span(whole, complete(vectors[..., :r], r))


def unfolded(stack: Tensor, mode: int) -> Tensor:
    """The mode-`mode` unfoldings (b, n_mode, product of the others)."""
    return stack.movedim(mode + 1, 1).flatten(2)


def mode_products(stack: Tensor, matrices: Tensor, mode: int) -> Tensor:
    """Each place of (b, ...) times its matrix (b, r, n_mode) along `mode`."""
    moved = stack.movedim(mode + 1, 1)
    product = matrices @ moved.flatten(2)
    return product.reshape(len(stack), -1, *moved.shape[2:]).movedim(1, mode + 1)


def shares(core: Tensor, scales: Tensor, modes: int, dtype: torch.dtype) -> Tensor:
    """What each factor takes over, (b,), where a core is more than `dtype` holds; else one."""
    largest = core.detach().flatten(1).abs().amax(1).to(torch.float64)
    excess = largest * (scales / torch.finfo(dtype).max)
    steps = torch.ceil((torch.log2(excess.clamp(min=0.25)) + 1) / modes)
    return torch.where(excess > 0.5, torch.exp2(steps), 1.0)


def rel_errors(
    stack: Tensor, scales: Tensor, core: Tensor, factors: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """True relative errors (b,) of factors as returned, absolute where a tensor is zero, and the
    squared norms of `stack`, which is divided by `scales`."""
    stack = stack.detach()
    rebuilt = core.detach().to(stack.dtype) / per_item(scales, core).to(stack.dtype)
    at_once = max(1, BLOCK // stack[0].numel())
    wide = {k: factor.detach().to(stack.dtype) for k, factor in factors.items()}
    lost = []
    for start in range(0, len(stack), at_once):
        some = slice(start, start + at_once)
        block = rebuilt[some]
        for k, factor in wide.items():
            block = mode_products(block, factor[some], k)
        lost.append(squares(stack[some] - block))
    squared, norms = torch.cat(lost), squares(stack)
    errors = torch.where(norms > 0, squared / norms.clamp(min=1e-300), squared).sqrt()
    return errors, norms
