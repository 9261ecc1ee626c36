"""Where the least squares for shared bases begin."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.decomposition.blocks._blast_als import Bases, SharedBases
from tensorlrf.decomposition.linalg._gram import complete
from tensorlrf.decomposition.linalg._spectrum import Spectrum

TRIES = 4
"""Random mixtures from which eigenvectors are taken."""


def starts(problem: SharedBases, svd: Spectrum, r: int, draws: torch.Generator) -> Iterator[Bases]:
    """Bases of rank r, in float64.

    The first one is the truncated SVD of the whole with all scales one, than which shared bases
    are no worse; then the singular bases of the block rows and block columns, and where the rank
    allows what makes a planted matrix exact.
    """
    yield of_low_rank(problem, *svd.split(r))
    yield of_strips(problem, r, draws)
    if r <= min(problem.mb, problem.nb) and min(problem.p, problem.q) >= 2:
        yield from of_eigenvectors(problem, r, draws)


def of_low_rank(problem: SharedBases, left: Tensor, right: Tensor) -> Bases:
    """left (m, r) times right (r, n), padded with zeros, with all scales one; in float64."""
    (m, r), n = left.shape, int(right.shape[1])
    left = F.pad(left.to(torch.float64), (0, 0, 0, problem.p * problem.mb - m))
    right = F.pad(right.to(torch.float64), (0, problem.n - n))
    columns = right.reshape(r, problem.q, problem.nb).transpose(0, 1)
    return Bases(
        left.reshape(problem.p, problem.mb, r),
        columns.contiguous(),
        left.new_ones(problem.p, problem.q, r),
    )


def of_strips(problem: SharedBases, r: int, draws: torch.Generator) -> Bases:
    """Singular bases of block rows and block columns, random scales; random columns beyond."""
    rows, columns = strips(problem, r)
    left = torch.stack([_widened(basis, r, draws) for basis in rows])
    right = torch.stack([_widened(basis, r, draws).T for basis in columns])
    return Bases(left, right, _normal(left, draws, problem.p, problem.q, r))


def of_eigenvectors(problem: SharedBases, r: int, draws: torch.Generator) -> Iterator[Bases]:
    """Bases that are exact for a matrix that has them, with r at most the sides of a block.

    In the singular bases U_i, V_j of the strips, the blocks are C_ij = X_i diag(s_ij) Y_j. So
    (C_i0 C_00^-1)^-1 C_ij C_0j^-1 = X_0 diag(...) X_0^-1 for all i and j: the eigenvectors of a
    mixture of these are X_0, as in the decomposition of a CP tensor by eigenvectors (Harshman
    1970; Leurgans, Ross & Abel 1993). X_0 gives Y_j up to scales, and these the X_i.
    """
    p, q = problem.p, problem.q
    rows, columns = strips(problem, r)
    blocks = problem.weight.view(p, problem.mb, q, problem.nb)
    core = torch.einsum(
        "iar,iajb,jbs->ijrs", torch.stack(rows), blocks, torch.stack(columns)
    )  # C, (p, q, r, r)
    for _ in range(TRIES):
        # Any block may be the first; random orders try several.
        i = torch.randperm(p, generator=draws, device=core.device)
        j = torch.randperm(q, generator=draws, device=core.device)
        turned = core[i][:, j]
        inverse = torch.linalg.pinv(turned)
        across = inverse[1:, :1] @ turned[1:, 1:] @ inverse[:1, 1:]  # C_i0^-1 C_ij C_0j^-1
        mixture = _normal(core, draws, p - 1, q - 1, 1, 1)
        _, vectors = torch.linalg.eig((turned[0, 0] @ across * mixture).sum((0, 1)))
        first = _real(vectors)  # X_0
        if not torch.isfinite(first).all():
            continue
        right = torch.linalg.pinv(first) @ turned[0]  # diag(s_0j) Y_j, (q, r, r)
        left = turned[:, 0] @ torch.linalg.pinv(right[0])  # (p, r, r)
        # Back to the order of the matrix.
        left, right = left[i.argsort()], right[j.argsort()]
        bases = Bases(
            torch.stack(rows) @ left,
            right @ torch.stack(columns).mT,
            core.new_zeros(p, q, r),
        )
        yield problem.best_scales(bases).balanced()


def strips(problem: SharedBases, r: int) -> tuple[list[Tensor], list[Tensor]]:
    """Leading left singular vectors of the block rows (mb, k), right ones of the block columns
    (nb, k); k = r, or the side of a block if that is less."""
    rows, columns = problem.strips
    return [_leading(basis, r) for basis in rows], [_leading(basis, r) for basis in columns]


def _leading(basis: Tensor, r: int) -> Tensor:
    return complete(basis[:, :r], min(r, int(basis.shape[0])))


def _widened(basis: Tensor, r: int, draws: torch.Generator) -> Tensor:
    more = r - int(basis.shape[1])
    if more <= 0:
        return basis
    n = int(basis.shape[0])
    return torch.cat([basis, _normal(basis, draws, n, more) / n**0.5], dim=1)


def _normal(like: Tensor, draws: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draws, dtype=like.dtype, device=like.device)


def _real(vectors: Tensor) -> Tensor:
    """Complex eigenvectors come in pairs: their real and their imaginary part, which span the
    same plane."""
    conjugate = torch.zeros(vectors.shape[1], dtype=torch.bool, device=vectors.device)
    conjugate[1:] = torch.isclose(vectors[:, 1:], vectors[:, :-1].conj(), rtol=1e-8).all(0)
    conjugate &= vectors.imag.abs().amax(0) > 0
    return torch.where(conjugate, vectors.imag, vectors.real)
