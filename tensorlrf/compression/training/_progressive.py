"""Ranks that fall in the course of training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from tensorlrf.compression.training._layers import weights_of
from tensorlrf.compression.training._optimiser import check_optimizer
from tensorlrf.compression.training._pruning import check_steps
from tensorlrf.decomposition.rank import Rank


class ProgressiveDecomposition:
    """Layers whose rank falls from what it is to what is wanted, while a model trains in any loop.

    At share t of the way a rank is r + (r_0 - r) (1 - t)^3: it falls fast while much is left. A
    dense layer becomes a factored one once factors of that rank are smaller, by the SVD; one on low
    rank is cut to the leading terms of its product. The optimiser is told of each new parameter,
    and keeps its moments, which go the way of the gradients (second ones as if entries of gradients
    were independent). Call `step` behind that of the optimiser.

    Parameters
    ----------
    model : Module
        Trained in place. Linear layers and convolutions of one group, and layers on LowRank.
    optimizer : Optimizer
        Of its parameters.
    rank : int or float
        Of each layer in the end: at most so many, or a share of the parameters.
    steps : int
        After which the ranks are reached.
    every : int
        Steps from one cut to the next.
    skip : str or sequence of str, optional
        Globs of layers that stay, as for `compress`; heads by default.

    Raises
    ------
    ArgumentError, RankError
        For what cannot be, and a model without such layers.

    References
    ----------
    Zhu & Gupta 2017, "To prune, or not to prune", eq. 1, for the schedule.

    Examples
    --------
    >>> body, head = torch.nn.Linear(16, 16), torch.nn.Linear(16, 2)
    >>> model = torch.nn.Sequential(body, torch.nn.ReLU(), head)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> falling = tensorlrf.ProgressiveDecomposition(model, optimizer, rank=3, steps=10, every=2)
    >>> for _ in range(12):
    ...     model(torch.randn(8, 16)).square().mean().backward()
    ...     optimizer.step()
    ...     falling.step()
    ...     optimizer.zero_grad()
    >>> falling.ranks, model[0].factors.rank
    ({'0': 3, '2': 2}, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        rank: Rank,
        steps: int,
        every: int = 100,
        skip: str | Sequence[str] | None = None,
    ) -> None:
        self.optimizer = check_optimizer(optimizer)
        check_steps("steps", steps)
        check_steps("every", every)
        self._weights = weights_of(model, skip, factored=True)
        self._begin = [one.rank for one in self._weights]
        self._end = [min(one.target(rank), one.rank) for one in self._weights]
        self._last, self.every, self.steps = steps, every, 0

    @property
    def ranks(self) -> dict[str, int]:
        """Name of a layer -> its rank; of a dense one the most that it can have."""
        return {one.places[0]: one.rank for one in self._weights}

    @property
    def done(self) -> bool:
        """Whether the ranks are reached."""
        return self.steps >= self._last

    def step(self) -> None:
        """After each step of the optimiser."""
        self.steps += 1
        last = self.steps == self._last
        if self.steps > self._last or (self.steps % self.every and not last):
            return
        left = (1 - self.steps / self._last) ** 3
        for weight, begin, end in zip(self._weights, self._begin, self._end, strict=True):
            rank = end + int((begin - end) * left)
            if rank < weight.rank and (weight.is_factored or weight.saves(rank)):
                weight.lower(rank, self.optimizer)
