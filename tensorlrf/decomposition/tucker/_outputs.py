"""Tucker-2 that serves the outputs: plain starts, rounds in the metric, the better of the two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._target import Sides, Target
from tensorlrf.decomposition.tucker._tucker2_als import Tucker2ALS, alternate
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import TuckerFactors

ROUNDS = 50
"""At most, unless told otherwise."""


def check_served(modes: tuple[int, ...], solver: str) -> None:
    """Raises UnsupportedError for what does not go with gram=."""
    if set(modes) != {0, 1}:
        raise UnsupportedError(
            f"gram= is for a weight (O, I, ...) with modes (0, 1), its channels; got modes={modes}"
        )
    if solver != "hooi":
        raise UnsupportedError(
            f"solver={solver!r} does not take gram=, which has a least-squares solver of its own; "
            "leave solver='hooi'"
        )


def fit_to_outputs(
    target: Target[TuckerFactors],
    plain: TuckerFactors,
    shape: tuple[int, ...],
    n_iter_max: int | None,
    tol: float | None,
) -> Fit[TuckerFactors]:
    """Tucker-2 of a kernel of that shape (O, I, *k) that serves the outputs; never worse in them
    than the plain one, of (O, I, prod k), whose ranks it has."""
    r_out, r_in = plain.core.shape[:2]

    def whole(core: Tensor, outputs: Tensor, inputs: Tensor) -> TuckerFactors:
        excess = 2 * float(core.abs().max()) / torch.finfo(target.dtype).max
        # What the core cannot hold the factors take over.
        share = 2.0 ** math.ceil(math.log2(excess) / 2) if excess > 1 else 1.0
        core = (core / share**2).to(target.dtype).reshape(r_out, r_in, *shape[2:])
        sides = ((side * share).to(target.dtype) for side in (outputs, inputs))
        return TuckerFactors(core.contiguous(), tuple(sides), (0, 1))

    def fit() -> Fit[TuckerFactors]:
        als = Tucker2ALS(target, shape[1])
        run = alternate(
            als,
            [als.recipe_inputs(r_in), plain.factors[1].to(torch.float64)],
            r_out,
            ROUNDS if n_iter_max is None else n_iter_max,
            tol,
        )
        outputs, core, inputs = als.inner_values(run.state, target.scale)
        reason = "a round gained nothing more" if run.converged else f"{run.sweeps} rounds"
        return Fit(whole(core, outputs, inputs), run.errors, run.converged, reason)

    return fit_or_plain(target, lambda: whole(plain.core * target.scale, *plain.factors), fit)


def sides(factors: TuckerFactors) -> Sides:
    """The output factor, and the core with its input side multiplied out, (r_out, I prod k)."""
    outputs, inputs = (factor.detach().to(torch.float64) for factor in factors.factors)
    core = factors.core.detach().to(torch.float64)
    core = core.reshape(*core.shape[:2], -1)  # (r_out, r_in, taps)
    return outputs, torch.einsum("ort,ir->oit", core, inputs).flatten(1)
