"""A sum of factors: their chains side by side."""

from __future__ import annotations

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Composite
from tensorlrf.ops.forms._form import Form, form_of
from tensorlrf.ops.forms.stages import Paths, Stages, Sum


class CompositeForm(Form[Composite]):
    """What each part makes of x, added up."""

    def linear(self, f: Composite) -> Paths:
        chains: list[Stages] = []
        for k, part in enumerate(f.parts):
            form = form_of(part)
            if not form.has("linear"):
                raise UnsupportedError(
                    f"parts[{k}] of the Composite is a {type(part).__name__}, which linear layers "
                    "do not run on; use to_dense()"
                )
            chains.append(form.linear(part)["chain"])
        return {"chain": chains[0] if len(chains) == 1 else (Sum(tuple(chains)),)}
