"""Without inputs: what a layer's outputs lose at each rank, by its weight and moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.compression._survey import check_values
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import check_statistics
from tensorlrf.compression.calibration._statistics import Statistics
from tensorlrf.compression.losses._bases import Basis, spectra


def weight_energies(
    site: DenseLayer, name: str, seen: Sequence[Statistics] | None
) -> Sequence[float]:
    """Beyond each rank: of the outputs on what the layer was `seen` to be fed, else of the weight
    itself."""
    check_values(name, site.weight)
    if seen is not None:
        check_statistics(name, seen)
    energies: Tensor | float = 0.0
    for k, weight in enumerate(site.group_weights()):
        known = weight.flatten(1).double()
        if seen is None or not seen[k].known:
            energies = energies + torch.linalg.svdvals(known).square()
            continue
        own = torch.linalg.eigvalsh((known @ seen[k].gram) @ known.T).flip(0).clamp(min=0)
        energies = energies + own[: min(known.shape)]
    assert isinstance(energies, Tensor)
    basis = Basis(energies[None, None], energies[None])
    return spectra({name: basis})[name]
