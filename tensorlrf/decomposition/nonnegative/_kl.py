"""NMF in the divergence of Kullback and Leibler, by multiplicative updates (Lee & Seung 2001)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent


class Pair(NamedTuple):
    """W (m, r) and H (r, n) in the working dtype."""

    w: Tensor
    h: Tensor


class Divergence:
    """D(X || W H) = sum of x log(x / (W H)) - x + W H, over the sum of X."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.total = x, float(x.sum(dtype=torch.float64))
        self.tiny = torch.finfo(x.dtype).tiny
        self.own = float(torch.xlogy(x, x).sum(dtype=torch.float64)) - self.total

    def of(self, pair: Pair) -> float:
        """Zero for an X of zeros, which a model of zeros meets."""
        model = pair.w @ pair.h
        cross = torch.xlogy(self.x, model.clamp_min(self.tiny)).sum(dtype=torch.float64)
        value = self.own - float(cross) + float(model.sum(dtype=torch.float64))
        return max(value, 0.0) / self.total if self.total > 0 else max(value, 0.0)

    def sweep(self, pair: Pair) -> tuple[Pair, float]:
        """H, then W, each the minimum of a bound that touches at what they were: neither raises
        D, and the sum of W H is then that of X."""
        w, h = pair
        h = h * (w.T @ self._ratio(w, h)) / w.sum(0)[:, None].clamp_min(self.tiny)
        w = w * (self._ratio(w, h) @ h.T) / h.sum(1).clamp_min(self.tiny)
        sizes = w.sum(0)
        share = torch.where(sizes > 0, (h.sum(1) / sizes.clamp_min(self.tiny)).sqrt(), 1.0)
        share = torch.where(share > 0, share, 1.0)
        found = Pair(w * share, h / share[:, None])
        return found, self.of(found)

    def _ratio(self, w: Tensor, h: Tensor) -> Tensor:
        return self.x / (w @ h).clamp_min(self.tiny)

    def start(self, w: Tensor, h: Tensor) -> Descent[Pair]:
        """From these, whose product gets the sum of X."""
        size = float((w.sum(0, dtype=torch.float64) * h.sum(1, dtype=torch.float64)).sum())
        share = (self.total / size) ** 0.5 if size > 0 else 0.0
        pair = Pair(w * share, h * share)
        return Descent.at(pair, self.of(pair))


def ahead(here: Pair, last: Pair, reach: float) -> Pair:
    """Beyond `here` as seen from `last` in the logarithms, so that nothing reaches zero there."""
    tiny = torch.finfo(here.w.dtype).tiny
    w, h = (
        new * (new.clamp_min(tiny) / old.clamp_min(tiny)).clamp(1e-3, 1e3) ** reach
        for new, old in zip(here, last, strict=True)
    )
    return Pair(w, h)
