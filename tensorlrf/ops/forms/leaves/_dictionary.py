"""A dictionary with sparse codes: x times the atoms, and sums of a few of the results."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import Dictionary
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import Matrix, Paths


class DictionaryForm(Form[Dictionary]):
    """Codes are put in their places in the call: a product that skips their zeros is slower."""

    def linear(self, f: Dictionary) -> Paths:
        k = f.atoms.shape[0]
        return {"chain": (Matrix(f.atoms), Matrix(leaf(spread)(f.values, f.places, k)))}


def spread(values: Tensor, places: Tensor, k: int) -> Tensor:
    """The codes (m, k) of which those at places (m, s) are `values` and the others zero."""
    return values.new_zeros(values.shape[0], k).scatter(1, places.long(), values)
