"""`spectra`: the singular values of a model's weights in a few numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tensorlrf.compression._survey import INCLUDED, survey, without_skipped
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.spectral._measured import LayerSpectrum, Spectra
from tensorlrf.decomposition.analysis.measures import SpectralMeasures, values_of
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn import FactoredLayer


@without_autocast()
@threaded
@torch.no_grad()
def spectra(model: nn.Module, *, skip: str | Sequence[str] = ()) -> Spectra:
    """Nuclear norm, stable and effective rank, and entropy of each weight of a model, and of all.

    Looked at are the layers that could be factored, heads and embeddings among them, and those that
    are. A layer is seen as `svd` sees it, (out, in kh kw); nothing runs, and nothing is changed.

    Parameters
    ----------
    model : Module
    skip : str or sequence of str
        Globs of layers that are not looked at.

    Returns
    -------
    Spectra

    Raises
    ------
    ArgumentError
        Where the model has no such layer, where a weight has NaN, Inf or no values, and for a glob
        that matches nothing.

    References
    ----------
    Roy & Vetterli 2007 (effective rank); Rudelson & Vershynin 2007 (stable rank).

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    >>> found = tensorlrf.spectra(model)
    >>> [row.measures.size for row in found.layers], found.model.size
    ([8, 4], 12)
    """
    model = unpacked_model(model)
    wanted = without_skipped(survey(model), model, skip, INCLUDED)
    open_to = {one.module: one.name for one in wanted if one.eligible}
    skipped = {one.module for one in wanted if one.skipped}
    rows, every = [], []
    for name, module in model.named_modules():
        if module in skipped or not (module in open_to or isinstance(module, FactoredLayer)):
            continue
        told = f"the weight of {name or 'the model'}"
        found = torch.cat([values_of(one, told).cpu() for one in _weights(module)])
        every.append(found)
        rows.append(_row(open_to.get(module, name), module, found))
    if not rows:
        raise ArgumentError("model has no layer that is or could be factored; see tensorlrf.plan")
    return Spectra(tuple(rows), SpectralMeasures.of_values(torch.cat(every)))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """The weight of each group."""
    if isinstance(module, FactoredLayer):
        groups = int(getattr(module, "groups", 1))
        yield from module.factors.to_dense().chunk(groups)
    else:
        yield from DenseLayer.of(module).group_weights()


def _row(name: str, module: nn.Module, values: Tensor) -> LayerSpectrum:
    if isinstance(module, FactoredLayer):
        kind, shape = module.stands_for, module.factors.shape
        groups = int(getattr(module, "groups", 1))
    else:
        layer = DenseLayer.of(module)
        kind, shape, groups = type(module).__name__, layer.shape, layer.groups
    measures = SpectralMeasures.of_values(values)
    return LayerSpectrum(name, kind, tuple(map(int, shape)), groups, measures)
