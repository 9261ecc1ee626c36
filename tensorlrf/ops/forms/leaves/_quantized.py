"""Factors in few bits: they are decoded in the call, and then do what their format does."""

from __future__ import annotations

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import FORMATS, Quantized
from tensorlrf.factors.leaves.codes import DENSE, WEIGHT, unpacked
from tensorlrf.ops.forms._form import Form, form_of
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import Matrix, Paths


class QuantizedForm(Form[Quantized]):
    """The chain of the format itself, on what the codes stand for."""

    def linear(self, f: Quantized) -> Paths:
        # Casts are to the dtype that scales have in the call, not to that of the record.
        tensors = f._decoded(leaf(unpacked))
        if f.of == DENSE:
            return {"chain": (Matrix(tensors[WEIGHT]),)}
        inner = FORMATS[f.of]._assemble(tensors, f.of_meta)
        form = form_of(inner)
        if not form.has("linear"):
            raise UnsupportedError(
                f"factors is a Quantized of {f.of!r}, which linear layers do not run on; use "
                "to_dense()"
            )
        return {"chain": form.linear(inner)["chain"]}
