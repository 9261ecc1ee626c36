"""Plans of low rank carried out with what is known of the layers' outputs: U_r U_r^T W."""

from __future__ import annotations

from collections.abc import Sequence

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.fit._factored import Factored
from tensorlrf.compression.losses._bases import Basis
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors, Grouped


def check_cuts(rows: Sequence[LayerPlan]) -> None:
    """Raise ArgumentError where a layer is to get a format or a rank that no basis tells."""
    for row in rows:
        assert row.method is not None
        if row.method.word != "svd" or not isinstance(row.rank, int):
            raise ArgumentError(
                f"{row.name} is to become {row.method}, and outputs of layers tell the best "
                "factors of low rank alone; give tensorlrf.apply(model, frontier.plan(share), "
                "calibration=batches) some inputs"
            )


def cut(row: LayerPlan, layer: DenseLayer, basis: Basis) -> Factored:
    """What a layer becomes at the rank of its row, which is known to be there."""
    assert row.method is not None
    assert isinstance(row.rank, int)
    dtype = layer.weight.dtype
    parts: list[Factors] = [one.to(dtype) for one in basis.factors(layer, row.rank)]
    factors = parts[0] if len(parts) == 1 else Grouped.stack(parts)
    error = basis.error(row.rank)
    return Factored(
        factors,
        row.method,
        weight_error=factors.rel_error(layer.weight),
        judged=error,
        fit_error=error,
        samples=basis.samples,
        data_aware=True,
        shrinkage=0.0,
    )
