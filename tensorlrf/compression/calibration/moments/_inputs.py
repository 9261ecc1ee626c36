"""What the inputs of a group of a layer are known to be, and of the experts of a mixture together.

An expert that few rows reach has second moments of low rank and much noise. Those of all experts of
its stack together are a better guess the fewer its own rows are, and the less experts differ. With
s^2 the mean square by which x x^T of one row of an expert is off the moments S_e of that expert,
and a that by which S_e is off the moments of all, the weights that leave the least mean square
error are

    G' = (n_e G_e + k G) / (n_e + k),    k = s^2 / a,

those of credibility theory (Bühlmann 1967, "Experience rating and credibility"; Bühlmann & Straub
1970, of unequal n_e). The moments of all are worth k rows of an expert's own; how k is found, and
where they serve at all, stands in `stacks/_spread.py`. As the moments of all N rows vary too, G' is
as well known as moments of (n_e + k)^2 / (n_e + k^2 / N) rows, and is drawn towards its mean
eigenvalue by so many; by n_e + k it was worse, for what G' owes to others is no noise. An expert
without any rows has the moments of all. What layers before lose of other rows is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from tensorlrf.compression.calibration.moments._lengths import fourth_about_mean
from tensorlrf.compression.calibration.moments._moments import Moments
from tensorlrf.decomposition.linalg.compact import Compact, Gram, about_mean, mixed
from tensorlrf.decomposition.shrinkage import least_amount, ledoit_wolf, share_of_least


@dataclass(frozen=True)
class Inputs:
    """Moments of the inputs of one group over `count` columns: one value for all layers that are
    fed the same.

    gram       (n, n), float64, as a matrix or in less room
    mean       (n,), float64
    cubes      E|x|^2 x, (n,), float64
    fourth     E|x|^4
    unseen     the share of inputs that are of none of these, where that is known
    cancelled  whether G is what is left of large moments, as about their mean: it may be further
               from positive semidefinite than rounding leaves a sum of squares
    credit     for how many further columns those of other experts count in them
    worth      as well known as they are by so many columns; None by their own
    """

    gram: Gram
    mean: Tensor
    count: int
    cubes: Tensor
    fourth: float
    cancelled: bool = False
    unseen: float = 0.0
    credit: float = 0.0
    worth: float | None = None

    @classmethod
    def of(cls, moments: Moments, *, last: bool = False) -> Inputs:
        """What has been added up so far, in the memory of the sums if it is the `last` that is
        made of them."""
        n = max(1, moments.count)
        cubes, fourth = moments.lengths.cubes / n, float(moments.lengths.fourth) / n
        gram, mean = moments.gram(last=last), moments.mean()
        return cls(gram, mean, moments.count, cubes, fourth, unseen=moments.unseen)

    def centred(self) -> Inputs:
        """The same about the mean."""
        mu, gram, eps = self.mean, self.gram, torch.finfo(torch.float32).eps
        about = gram.about if isinstance(gram, Compact) else partial(about_mean, gram)
        centred = about(mu, eps)
        fourth = fourth_about_mean(self.fourth, self.cubes, self.gram, mu)
        zeros = torch.zeros_like(mu)  # whose cubes nobody asks for once it is about the mean
        return replace(
            self, gram=centred, mean=zeros, cubes=zeros, fourth=fourth, cancelled=True, unseen=0.0
        )

    @property
    def own(self) -> float:
        """The share of them that are the layer's own."""
        return self.count / (self.count + self.credit) if self.credit else 1.0

    @cached_property
    def warranted(self) -> float:
        """How far so many samples are to be drawn towards their mean eigenvalue, 0 to 1; and no
        less than it takes for what they do not span to follow the plain fit."""
        worth = self.count if self.worth is None else self.worth
        amount = ledoit_wolf(self.gram, self.fourth, worth)
        amount = max(self.unseen, amount)
        if not self.cancelled and amount >= share_of_least(self.gram):
            return amount  # each direction of a sum of squares holds as much then, as it must
        return max(amount, least_amount(self.gram))


@dataclass(frozen=True)
class Pool:
    """inputs  of all experts of a stack together
    credit  k, the columns of one of them that these are worth
    """

    inputs: Inputs
    credit: float

    def drawn(self, own: Inputs) -> Inputs:
        """Those of one expert, drawn towards these, which may stand for no more columns than there
        are of others."""
        credit = min(self.credit, float(self.inputs.count - own.count))
        if not credit > 0:
            return own
        share, all_ = own.count / (own.count + credit), self.inputs
        # What the variance of a sum of both comes to.
        worth = 1 / (share**2 / max(1, own.count) + (1 - share) ** 2 / self.inputs.count)
        return Inputs(
            mixed(own.gram, all_.gram, share),
            all_.mean.lerp(own.mean, share),
            own.count,
            all_.cubes.lerp(own.cubes, share),
            share * own.fourth + (1 - share) * all_.fourth,
            credit=credit,
            worth=worth,
        )
