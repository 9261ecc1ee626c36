"""The laws of every registered method.

`TestCur = laws_of("cur", (16, 12), rank=3)` in a test file holds the method "cur" to them: to what
`tests/laws/fits.py` says that it does, and `tests/laws/refusals.py` that it refuses. Which of them
are tried follows from its declaration: of error=, gram=, mean=, batch_dims= and random_state= those
of the options that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.methods import registered
from tests.laws.fits import BatchErrorLaws, GramErrorLaws
from tests.laws.observed import MaskLaws
from tests.laws.refusals import (
    BatchRefusals,
    DrawRefusals,
    ErrorRefusals,
    GramRefusals,
    MeanRefusals,
    MethodRefusals,
)

LAWS: dict[tuple[str, ...], tuple[type[MethodRefusals], ...]] = {
    ("batch_dims", "error"): (BatchErrorLaws,),
    ("batch_dims",): (BatchRefusals,),
    ("gram", "error"): (GramErrorLaws,),
    ("gram", "mean"): (MeanRefusals,),
    ("gram",): (GramRefusals,),
    ("error",): (ErrorRefusals,),
    ("mask",): (MaskLaws,),
    ("random_state",): (DrawRefusals,),
    (): (MethodRefusals,),
}
"""Options -> the laws of methods that take all of them."""


def laws_of(
    name: str,
    shape: tuple[int, ...] = (16, 12),
    rank: Any = 3,
    *,
    without: Collection[str] = (),
    kind: Callable[[Tensor], Tensor] = torch.clone,
    sparse: bool | float = False,
    **options: Any,
) -> type[MethodRefusals]:
    """The class of tests of the method `name`, on a sample: a tensor of this shape, at this rank.

    shape    of two modes, or of more where it takes these; gram= is tried on the tensor as a matrix
    rank     an int that the tensor has, and the tensor as a matrix
    without  options that it takes but not with these `options`, "error"; or not both of them at
             once, "gram error"
    kind     makes of Gaussian numbers of that shape a tensor that the method is for
    sparse   whether it takes sparse tensors as well; how far errors are apart where other starts
             may lead to other optima
    options  with which it is called each time, such as a size of blocks that fits the tensor
    """
    taken = registered(name).takes
    bases = tuple(
        law
        for needed, laws in LAWS.items()
        if all(map(taken, needed)) and not {*needed, " ".join(needed)} & set(without)
        for law in laws
    )
    sample = {"name": name, "shape": shape, "rank": rank, "options": options}
    sample["sparse"] = sparse
    sample["kind"] = staticmethod(kind)
    return type(f"LawsOf{name.title()}", bases, sample)
