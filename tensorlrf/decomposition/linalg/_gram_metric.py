"""The metric in which a weight is judged by its outputs.

With X the inputs as columns and G = X X^T / N, the mean of |D x|^2 over the inputs is tr(D G D^T).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition._metric import Metric
from tensorlrf.decomposition.linalg._gram import complete, descending_eigh
from tensorlrf.decomposition.linalg._spectrum import ratio


class GramMetric:
    """W (m, n) taken apart in the metric of G (n, n): W_r = U_r U_r^T W.

    U are the eigenvectors of the second moments of the outputs, W G W^T, and `energies` its
    eigenvalues. The error is what is left out of them: it equals that of the truncated SVD of
    W S with G = S S^T (Wang et al., "SVD-LLM", 2024, section 3.2). Where m <= n nothing of side n
    is taken apart, W G W^T is; else (W S)^T W S = S^T W^T W S is, and U are r columns of W S.

    matrix     W, over any scale
    products   of it in float64, where these are known: for m <= n W G in the moments as they were
               given, else W^T W
    """

    def __init__(self, matrix: Tensor, metric: Metric, products: Tensor | None = None) -> None:
        self.matrix = matrix
        self.metric = metric
        m, n = matrix.shape
        wide = matrix.to(torch.float64)
        self.turn: Tensor | None = None
        if m <= n:
            given = wide @ metric.given if products is None else products
            energies, self.basis = descending_eigh(metric.drawn(given, matrix) @ wide.T)
        else:
            root = square_root(metric.gram)
            square = wide.T @ wide if products is None else products
            energies, vectors = descending_eigh(root.T @ square @ root)
            self.turn = root @ vectors
        self.energies = energies.detach()
        self.norm = self.energies.sum()

    def leading(self, r: int) -> Tensor:
        """The eigenvectors (m, r) of the r largest energies, in float64."""
        if self.turn is None:
            return complete(self.basis[:, :r], r)
        # Householder's Q is orthogonal whatever it factors, where energies are rounding as well.
        basis: Tensor = torch.linalg.qr(self.matrix.to(torch.float64) @ self.turn[:, :r])[0]
        return basis

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        """left (m, r) with orthogonal columns, right (r, n).

        The inner value U_j^T W x has the mean square energies[j], which is up to m times that of
        an output. Where it is larger it moves to the left side, so that what the dense layer
        could hold in float16 the inner values can.
        """
        basis = self.leading(r).to(self.matrix.dtype)
        share = growth(self.energies[:r], self.norm / self.matrix.shape[0]).to(self.matrix.dtype)
        return basis * share, (basis.T @ self.matrix) / share[:, None]

    def rel_error(self, left: Tensor, right: Tensor) -> float:
        """sqrt(tr(D G D^T) / tr(W G W^T)) for D = W - left right."""
        gram, wide = self.metric.gram, self.matrix.to(torch.float64)
        return output_error(wide, wide @ gram, gram, left, right)


def output_error(
    matrix: Tensor, moments: Tensor, gram: Tensor, left: Tensor, right: Tensor
) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T)) for D = W - left right, with `moments` W G.

    W (m, n), G (n, n), left (m, r), right (r, n); all raised to float64.
    """
    left, right = left.detach().to(torch.float64), right.detach().to(torch.float64)
    matrix, moments = matrix.detach().to(torch.float64), moments.detach()
    # The square multiplied out costs r n^2 instead of m n^2, and cancels: in float64 that leaves
    # about 1e-8 of noise in the error, which shows only on factors that are all but exact.
    norm = (moments * matrix).sum()
    cross = (left.T @ moments * right).sum()
    square = ((left.T @ left) @ (right @ gram) * right).sum()
    squared = norm - 2 * cross + square
    if squared < 1e-10 * norm:
        difference = matrix - left @ right
        squared = (difference @ gram * difference).sum()
    return ratio(squared, norm)


def growth(energies: Tensor, usual: Tensor) -> Tensor:
    """How many times the usual root mean square values of these energies have, at least one."""
    if usual <= 0:
        return torch.ones_like(energies)
    return (energies / usual).clamp(min=1).sqrt()


def square_root(gram: Tensor) -> Tensor:
    """S (n, n) with G = S S^T: a Cholesky factor, or where G is singular by its eigenvectors."""
    root: Tensor
    root, info = torch.linalg.cholesky_ex(gram)
    if not bool(info):
        return root
    values, vectors = descending_eigh(gram)
    return vectors * values.sqrt()
