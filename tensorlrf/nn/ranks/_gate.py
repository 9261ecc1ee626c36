"""A gate in front of a layer on low rank: how many of its terms an input needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.ranks.leading import share_of

SCALES = (0.25, 0.5, 0.75)


class RankGate(nn.Module):
    """A linear layer on low rank that takes as many leading terms as its input needs.

    For y = left z with z = right x, the terms beyond rank p add the squared norm of left_tail
    z_tail. The gate predicts it from what is known after p terms, ``a_p |x|^2 + b_p e_p`` with the
    energy e_p, the sum of ``|left_k|^2 z_k^2`` over k <= p, and goes on to the next rank until it
    predicts a relative error of at most `error`. Nothing that was computed for a smaller rank is
    lost. An input is all that one call brings: one example at a time, or a batch as a whole.

    The choice is read on the host, once for each rank that is tried, and breaks a graph of
    torch.compile. A gate is no part of a file: save the layer, and fit it anew.

    Parameters
    ----------
    layer : FactoredLinear
        On LowRank, its terms in order, see `order_by_energy`. It is held, not copied.
    ranks : sequence of int
        Those that are tried, ascending, before all terms are taken.
    coefficients : Tensor of shape (len(ranks), 2)
        a_p and b_p.
    error : float
        Relative, of the outputs before the bias, against all terms.

    Attributes
    ----------
    taken : Counter
        Rank -> rows that took it so far.

    Raises
    ------
    ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = tensorlrf.nn.FactoredLinear.new(32, 32, rank=8, random_state=0)
    >>> inputs = [torch.randn(4, 32) for _ in range(8)]
    >>> gate = tensorlrf.nn.RankGate.fit(layer, inputs, error=0.3)
    >>> gate(inputs[0]).shape, 1 <= gate.mean_rank <= 8
    (torch.Size([4, 32]), True)
    """

    _weights: Tensor

    def __init__(
        self, layer: FactoredLinear, ranks: Sequence[int], coefficients: Tensor, error: float
    ) -> None:
        super().__init__()
        left, _ = _sides(layer)
        self.ranks = tuple(ranks)
        whole = left.shape[1]
        if sorted(set(self.ranks)) != list(self.ranks) or not all(
            0 < r < whole for r in self.ranks
        ):
            raise ArgumentError(f"ranks={ranks!r} must ascend, between 1 and {whole - 1}")
        if tuple(coefficients.shape) != (len(self.ranks), 2):
            raise ArgumentError(
                f"coefficients is {tuple(coefficients.shape)}; it must be ({len(self.ranks)}, 2)"
            )
        _check_error(error)
        self.layer, self.error = layer, float(error)
        self.coefficients = [(float(a), float(b)) for a, b in coefficients]
        norms = left.detach().square().sum(0)
        self.register_buffer("_weights", norms, persistent=False)
        self.taken: Counter[int] = Counter()

    @classmethod
    def fit(
        cls,
        layer: FactoredLinear,
        inputs: Iterable[Tensor],
        *,
        error: float,
        scales: Sequence[float] = SCALES,
    ) -> Self:
        """A gate whose predictions are the least squares of relative errors on inputs.

        Parameters
        ----------
        layer : FactoredLinear
            On LowRank.
        inputs : iterable of Tensor of shape (..., n)
            Each as one call will bring it.
        error : float
            Relative, of the outputs before the bias.
        scales : sequence of float
            Shares of the rank that are tried, in (0, 1).

        Returns
        -------
        RankGate

        Raises
        ------
        ArgumentError, UnsupportedError
            For what cannot be.
        """
        left, _ = _sides(layer)
        given: Any = scales
        if not given or not all(type(s) is float and 0 < s < 1 for s in given):
            raise ArgumentError(f"scales={scales!r} must be shares of the rank in (0, 1)")
        shares = {share_of(left.shape[1], s) for s in scales}
        ranks = sorted(r for r in shares if isinstance(r, int) and r < left.shape[1])
        seen = [energies(layer, x, ranks) for x in inputs]
        if not seen:
            raise ArgumentError("inputs are empty; give what arrives at the layer")
        found = torch.stack(seen)  # (inputs, ranks, 4)
        solved = [_solved(found[:, k]) for k in range(len(ranks))]
        return cls(layer, ranks, torch.stack(solved) if solved else found.new_zeros(0, 2), error)

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., in_features) to (..., out_features)."""
        left, right = _sides(self.layer)
        x = input.reshape(-1, input.shape[-1])
        whole, begun, bound = left.shape[1], 0, self.error**2
        known, parts = 0.0, []
        total = float(x.detach().square().sum()) if self.ranks else 0.0
        for rank, (a, b) in (*zip(self.ranks, self.coefficients, strict=True), (whole, (0.0, 0.0))):
            parts.append(x @ right[begun:rank].T)
            begun = rank
            if rank == whole:
                break
            weights = self._weights[rank - parts[-1].shape[1] : rank]
            known += float((parts[-1].detach().square() * weights).sum())
            more = a * total + b * known
            if more <= bound * (known + more):
                break
        self.taken[begun] += len(x)
        z = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        y = nn.functional.linear(z, left[:, :begun], self.layer.bias)
        return y.reshape(*input.shape[:-1], -1)

    @property
    def mean_rank(self) -> float:
        """Over all rows so far; NaN before the first."""
        rows = sum(self.taken.values())
        return sum(r * n for r, n in self.taken.items()) / rows if rows else float("nan")

    def extra_repr(self) -> str:
        return f"ranks={self.ranks}, error={self.error:g}"


@torch.no_grad()
def energies(layer: FactoredLinear, x: Tensor, ranks: Sequence[int]) -> Tensor:
    """(ranks, 4), float64: |x|^2, what is known after so many terms, what the others add, and all
    of the outputs."""
    left, right = (t.double() for t in _sides(layer))
    z = x.reshape(-1, x.shape[-1]).double() @ right.T
    known = (z.square().sum(0) * left.square().sum(0)).cumsum(0)
    moments, gram = z.T @ z, left.T @ left
    whole = (moments * gram).sum()
    rows = [
        torch.stack(
            [x.double().square().sum(), known[r - 1], (moments[r:, r:] * gram[r:, r:]).sum(), whole]
        )
        for r in ranks
    ]
    return torch.stack(rows) if rows else z.new_zeros(0, 4)


def _solved(seen: Tensor) -> Tensor:
    """(2,): the weights of |x|^2 and of what is known, none negative, that predict what is missing
    as a share of the whole."""
    whole = seen[:, 3].clamp(min=torch.finfo(torch.float64).tiny)
    features, wanted = seen[:, :2] / whole[:, None], seen[:, 2] / whole
    best = torch.zeros(2, dtype=torch.float64, device=seen.device)
    least = float(wanted.square().sum())
    for chosen in ([0, 1], [0], [1]):
        part = torch.linalg.lstsq(features[:, chosen], wanted[:, None], driver="gelsd").solution
        full = torch.zeros_like(best)
        full[chosen] = part[:, 0]
        lost = float((features @ full - wanted).square().sum())
        if bool((full >= 0).all()) and lost < least:
            best, least = full, lost
    return best


def _sides(layer: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(layer, FactoredLinear):
        raise ArgumentError(f"layer is a {type(layer).__name__}; pass a FactoredLinear")
    sides = two_matrices(layer.factors)
    if sides is None:
        raise UnsupportedError(
            f"layer runs on {type(layer.factors).__name__}; a gate is for one on LowRank"
        )
    return sides


def _check_error(error: Any) -> None:
    number = isinstance(error, (int, float)) and not isinstance(error, bool)
    if not number or not 0 < error < 1:
        raise ArgumentError(f"error={error!r} must be a relative error in (0, 1), such as 0.1")
