"""Linear layers on structured factors: how each format runs, one file a format."""

from __future__ import annotations

from typing import Any

from tensorlrf.factors import (
    BlastFactors,
    BlockLowRank,
    Factors,
    KroneckerSum,
    MonarchFactors,
    TRFactors,
    TTMatrix,
)
from tensorlrf.ops.structured import _blast, _blocks, _kron, _monarch, _tr, _tt_matrix
from tensorlrf.ops.structured._form import LinearForm

_FORMS: dict[type[Factors], LinearForm[Any]] = {
    KroneckerSum: _kron.FORM,
    TTMatrix: _tt_matrix.FORM,
    TRFactors: _tr.FORM,
    BlockLowRank: _blocks.FORM,
    MonarchFactors: _monarch.FORM,
    BlastFactors: _blast.FORM,
}


def form_of(factors: Factors) -> LinearForm[Any] | None:
    """How a linear layer runs on these factors; None for a format that has no form here."""
    return _FORMS.get(type(factors))


__all__ = ["LinearForm", "form_of"]
