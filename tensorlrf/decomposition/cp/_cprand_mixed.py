"""Sampled least squares on a mixed sketch (Battaglino, Ballard & Kolda 2018, CPRAND-MIX)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._als import proximal_solve
from tensorlrf.decomposition.cp._fit import relative
from tensorlrf.decomposition.cp._sketch import Sketch
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.linalg.multilinear._columns import normalise


def sampled_sweep(
    sketch: Sketch,
    state: CPState,
    samples: int,
    ridge: float,
    fixed: frozenset[int],
    rng: torch.Generator,
) -> CPState:
    """One pass over all free modes, each from a fresh uniform sample of mixed rows."""
    factors, weights = list(state.factors), state.weights
    mixed = [q @ u.flatten(1) for q, u in zip(sketch.mixing, factors, strict=True)]
    for mode, unfolding in enumerate(sketch.unfoldings):
        if mode in fixed:
            continue
        rows, data = _draw(unfolding, samples, rng)  # data (samples, n_mode)
        design = sketch.mixed_rows(mixed, mode, rows)  # (samples, s r)
        # Scaled to the whole grid, whose Gram has a diagonal of about one.
        share = unfolding.shape[0] / data.shape[0]
        old = factors[mode]
        rhs = (data.T @ design).view(old.shape).to(torch.float64) * share
        system = _sampled_gram(design.view(-1, *old.shape[1:])) * share
        solution = proximal_solve(system, rhs, old * weights, ridge)
        factors[mode], weights = normalise(solution, old)
        mixed[mode] = sketch.mixing[mode] @ factors[mode].flatten(1)
    return replace(state, factors=tuple(factors), weights=weights)


def _sampled_gram(design: Tensor) -> Tensor:
    """(s, r, r) float64 from (samples, s, r); summed in the dtype of the data, whose rounding is
    far below the sampling error."""
    rows = design.transpose(0, 1)
    return (rows.transpose(1, 2) @ rows).to(torch.float64)


def _draw(unfolding: Tensor, samples: int, rng: torch.Generator) -> tuple[Tensor | None, Tensor]:
    """Row numbers drawn with replacement, and those rows; the whole where it is no larger."""
    size = unfolding.shape[0]
    if samples >= size:
        return None, unfolding
    rows = torch.randint(size, (samples,), generator=rng, device=unfolding.device)
    return rows, unfolding.index_select(0, rows)


@dataclass(frozen=True)
class Judge:
    """A fixed sample of mixed fibres, by which sampled sweeps are compared."""

    mode: int
    rows: Tensor | None
    data: Tensor
    norm: float

    @classmethod
    def make(cls, sketch: Sketch, samples: int, rng: torch.Generator) -> Judge:
        mode = max(range(len(sketch.unfoldings)), key=lambda k: sketch.unfoldings[k].shape[1])
        rows, data = _draw(sketch.unfoldings[mode], samples, rng)
        norm = float(torch.linalg.vector_norm(data, dtype=torch.float64))
        return cls(mode, rows, data, norm if norm > 0 else 1.0)

    def errors(self, sketch: Sketch, state: CPState) -> list[float]:
        """Estimated relative errors of all starts."""
        mixed = [q @ u.flatten(1) for q, u in zip(sketch.mixing, state.factors, strict=True)]
        design = sketch.mixed_rows(mixed, self.mode, self.rows)
        scaled = state.factors[self.mode] * state.weights.to(design.dtype)  # (n, s, r)
        design = design.view(-1, *scaled.shape[1:])
        squares = [
            torch.linalg.vector_norm(
                self.data - design[:, i] @ scaled[:, i].T, dtype=torch.float64
            ).square()
            for i in range(state.starts)
        ]
        return relative(torch.stack(squares).tolist(), self.norm)


@dataclass(frozen=True)
class MixedSampler:
    """Uniform samples of a mixed sketch."""

    sketch: Sketch
    judge: Judge

    @property
    def dtype(self) -> torch.dtype:
        return self.sketch.mixing[0].dtype

    def sweep(
        self,
        state: CPState,
        samples: int,
        ridge: float,
        fixed: frozenset[int],
        rng: torch.Generator,
    ) -> CPState:
        return sampled_sweep(self.sketch, state, samples, ridge, fixed, rng)

    def errors(self, state: CPState) -> list[float]:
        return self.judge.errors(self.sketch, state)
