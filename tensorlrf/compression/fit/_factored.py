"""What comes of the fit of one layer, and what is asked of it beside a method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.compression.report._rows import GateChoice
from tensorlrf.decomposition.configs import Method
from tensorlrf.factors import Factors


@dataclass(frozen=True)
class Factored:
    """Factors of one weight, and how far they are from it.

    factors        in the layout of the layer's weight
    method         with the rank that was taken
    weight_error   relative Frobenius error, of the factors as stored
    fit_error      relative error of the outputs on the inputs that they were fitted to, against the
                   target; None where there were none
    held_error     the same on inputs held out
    judged         by what candidates are compared: the error on inputs held out, in the metric of
                   the outputs where there is one; without inputs held out, the one in the moments
                   as shrunk as these samples warrant, or of the weight where there are no inputs
    expected       the same on the inputs of the fit as they are
    samples        columns that the fit is made of
    data_aware     whether these took part in it
    shrinkage      how far their moments were drawn towards their mean eigenvalue, 0 to 1
    moments        what there is of them where that is not all
    shift          (O,) to be added to the bias; None where the bias stays
    finished       whether its sweeps came near their end
    weighted       whether they were fitted in a metric of the outputs too
    gates          of a recurrent matrix, where these were tried together and apart
    credit         columns that others count for in them, as those of other experts
    """

    factors: Factors
    method: Method
    weight_error: float
    judged: float
    fit_error: float | None = None
    held_error: float | None = None
    samples: int | None = None
    data_aware: bool = False
    shrinkage: float | None = None
    moments: str = ""
    shift: Tensor | None = None
    finished: bool = True
    weighted: bool = False
    expected: float = 0.0
    gates: GateChoice | None = None
    credit: float = 0.0


@dataclass(frozen=True)
class Options:
    """affine        let the bias make good what it can
    random_state  of the methods that draw
    right         (r, n), the right factor that it has to have
    gates         of a recurrent matrix, of equally many rows each
    """

    affine: bool = False
    random_state: int | torch.Generator | None = 0
    right: Tensor | None = None
    gates: int = 1
