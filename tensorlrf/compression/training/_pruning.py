"""Trained rank pruning: weights that are of low rank by the end of their training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tensorlrf.compression.training._layers import truncated, weights_of
from tensorlrf.compression.training._optimiser import check_optimizer, rate_of
from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError


class RankPruning:
    """Training of dense layers that leaves their weights of low rank, for any loop.

    Every so many steps each weight W is replaced by its truncated SVD; between these a subgradient
    of its nuclear norm, U V^T of the last truncation, is taken off with the learning rate of the
    weight, which keeps it near low rank. `finish` puts factored layers in the place of dense ones
    where that saves parameters, and tells the optimiser. Call `step` behind that of the optimiser.

    Parameters
    ----------
    model : Module
        Trained in place. Linear layers and convolutions of one group, the matrix (O, I kh kw).
    optimizer : Optimizer
        Of its parameters.
    rank : int or float, optional
        Of each truncation: at most so many, or a share of the parameters; or instead
    energy : float, optional
        The smallest rank that keeps this share of the sum of squares, in (0, 1).
    every : int
        Steps from one truncation to the next.
    nuclear : float
        The weight of the nuclear norm in the loss; 0 truncates alone.
    skip : str or sequence of str, optional
        Globs of layers that stay, as for `compress`; heads by default.

    Raises
    ------
    ArgumentError, RankError
        For what cannot be, and a model without such layers.

    References
    ----------
    Xu et al. 2019, "Trained rank pruning for efficient deep neural networks", algorithm 1.

    Examples
    --------
    >>> body, head = torch.nn.Linear(16, 16), torch.nn.Linear(16, 2)
    >>> model = torch.nn.Sequential(body, torch.nn.ReLU(), head)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> pruning = tensorlrf.RankPruning(model, optimizer, rank=4, every=5)
    >>> for _ in range(10):
    ...     model(torch.randn(8, 16)).square().mean().backward()
    ...     optimizer.step()
    ...     pruning.step()
    ...     optimizer.zero_grad()
    >>> pruning.finish()
    {'0': 4}
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        rank: Rank | None = None,
        energy: float | None = None,
        every: int = 20,
        nuclear: float = 3e-4,
        skip: str | Sequence[str] | None = None,
    ) -> None:
        self.optimizer = check_optimizer(optimizer)
        if (rank is None) == (energy is None):
            raise ArgumentError(f"rank={rank!r}, energy={energy!r}: give one of the two")
        if energy is not None and (type(energy) is not float or not 0 < energy < 1):
            raise ArgumentError(f"energy={energy!r} must be a share of the squares in (0, 1)")
        check_steps("every", every)
        if type(nuclear) not in (int, float) or not 0 <= nuclear < math.inf:
            raise ArgumentError(f"nuclear={nuclear!r} must be a weight of at least 0")
        self.every, self.nuclear = every, float(nuclear)
        self._weights = weights_of(model, skip, factored=False)
        self._rank = [None if rank is None else one.target(rank) for one in self._weights]
        self._error = None if energy is None else math.sqrt(1 - energy)
        self._bases: list[tuple[Tensor, Tensor] | None] = [None] * len(self._weights)
        self._finished = False
        self.steps = 0

    @property
    def ranks(self) -> dict[str, int]:
        """Name of a layer -> the rank of its last truncation; the most it can be before one."""
        pairs = zip(self._weights, self._bases, strict=True)
        return {w.places[0]: w.rank if b is None else b[0].shape[1] for w, b in pairs}

    def step(self) -> None:
        """After each step of the optimiser."""
        self._check()
        self.steps += 1
        if self.steps % self.every == 0:
            self._truncate()
        elif self.nuclear:
            self._shrink()

    def finish(self) -> dict[str, int]:
        """Truncate once more, and put factored layers where that saves parameters.

        Returns
        -------
        dict
            Name of a layer that is factored now -> its rank.
        """
        self._check()
        self._truncate()
        self._finished = True
        factored = {}
        for weight, rank in zip(self._weights, self.ranks.values(), strict=True):
            if weight.saves(rank):
                weight.lower(rank, self.optimizer)
                factored[weight.places[0]] = rank
        return factored

    @torch.no_grad()
    def _truncate(self) -> None:
        for k, (weight, rank) in enumerate(zip(self._weights, self._rank, strict=True)):
            matrix: Any = weight.layer.weight
            left, right = truncated(matrix, rank, self._error)
            matrix.copy_((left @ right).reshape(matrix.shape))
            # Sides share the roots of the singular values: without these they are U and V^T.
            self._bases[k] = nn.functional.normalize(left, dim=0), nn.functional.normalize(right)

    @torch.no_grad()
    def _shrink(self) -> None:
        for weight, bases in zip(self._weights, self._bases, strict=True):
            if bases is None:
                continue
            matrix: Any = weight.layer.weight
            by = rate_of(self.optimizer, matrix) * self.nuclear
            matrix.sub_((bases[0] @ bases[1]).reshape(matrix.shape), alpha=by)

    def _check(self) -> None:
        if self._finished:
            raise ArgumentError("the pruning is finished; make a new one to go on")


def check_steps(name: str, value: Any) -> None:
    """Raise ArgumentError for what is no positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}={value!r} must be an int of at least 1")
