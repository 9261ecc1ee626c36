"""Factors turned so that their leading terms say most."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.calibration._calibrate import at_once
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._trace import record
from tensorlrf.decomposition.linalg.compact import Compact
from tensorlrf.factors.kinds import format_of, two_matrices
from tensorlrf.nn import FactoredEmbedding, FactoredLayer
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.copies import copy_of
from tensorlrf.nn.plain import Plain
from tensorlrf.nn.ranks.leading import has_terms
from tensorlrf.nn.stock import to_dense_layer
from tensorlrf.nn.whole import check_whole
from tensorlrf.ops.forms import form_of


def order_by_energy(model: nn.Module, calibration: Any = None) -> dict[str, str]:
    """Bring the terms of factored layers into the order of what they add, the largest first.

    Factors by `svd` and by a closed form in a metric have that order already; those that were
    fitted by sweeps, refined or trained need not. The model computes the same before and after, to
    the rounding of its dtype; then a prefix, as `rank_scale` runs it, is the best approximation of
    its rank that the format has in closed form (`Factors.by_energy`).

    Parameters
    ----------
    model : Module
        Values of its parameters are written anew, in float64 until the cast.
    calibration : iterable of batches or callable, optional
        As for `compress`: layers on LowRank that it reaches are ordered by what a term adds to
        their outputs on these inputs, others by what it adds to the weight; so are layers that all
        run on the same factors, as a head and the embedding that it is tied to.

    Returns
    -------
    dict
        Name of a factored layer that stays as it is -> why.

    Raises
    ------
    ArgumentError
        Where `model` is no module, or for batches that do not fit it.

    References
    ----------
    Eckart & Young 1936.

    Examples
    --------
    >>> f = tensorlrf.LowRank(torch.eye(3), torch.diag(torch.tensor([1.0, 3.0, 2.0])))
    >>> layer = tensorlrf.nn.FactoredLinear(f)
    >>> tensorlrf.order_by_energy(layer)
    {}
    >>> with tensorlrf.rank_scale(layer, 1):
    ...     print([round(x, 3) for x in layer(torch.eye(3)).diagonal().tolist()])
    [0.0, 3.0, 0.0]
    """
    check_whole(model, "an order of terms")
    model = own_model(model)
    layers = {name or ROOT: m for name, m in model.named_modules() if isinstance(m, FactoredLayer)}
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    tables = Counter(map(_table, layers.values()))
    left: dict[str, str] = {}
    turned: dict[tuple[Any, ...], tuple[str, FactoredLayer]] = {}
    for name, layer in layers.items():
        table = _table(layer)
        own = [
            layer._parameters.get(attribute)
            for attribute in layer._names.values()
            if attribute not in layer._buffers
        ]
        if not has_terms(layer):
            left[name] = f"{format_of(layer.factors)} has no leading terms"
        elif any(p is None for p in own):
            left[name] = "its factors are computed, by parametrize or prune"
        elif any(uses[id(p)] > tables[table] for p in own):
            left[name] = "it shares factors with another layer"
        else:
            turned.setdefault(table, (name, layer))  # layers on one table are turned as one
    # What is tied says something to each of its readers: its terms are ordered by the weight.
    alone = {name: layer for table, (name, layer) in turned.items() if tables[table] == 1}
    grams = {} if calibration is None else _grams(model, alone, calibration)
    for name, layer in turned.values():
        _write(layer, grams.get(name))
    return left


def _table(layer: FactoredLayer) -> tuple[Any, ...]:
    """The same for layers that run on the very same factors, as a head and the embedding that it is
    tied to."""
    owned = ((name, id(layer._parameters.get(own))) for name, own in layer._names.items())
    return layer._format, repr(layer._meta), *owned


@torch.no_grad()
def _write(layer: FactoredLayer, gram: Tensor | None) -> None:
    factors = layer._assembled()
    rows = form_of(factors).rows_of(factors)
    for name, tensor in factors.by_energy(gram).tensors().items():
        if name == rows:  # those of padding, which were zeros, are none but for the rounding
            tensor = tensor * factors.tensors()[name].any(1, keepdim=True)
        parameter = layer._parameters.get(layer._names[name])
        if parameter is None:  # indices, which stay
            continue
        parameter.copy_(tensor.reshape(parameter.shape))


def _grams(
    model: nn.Module, layers: dict[str, FactoredLayer], calibration: Any
) -> dict[str, Tensor]:
    """Second moments of the inputs of layers on two matrices."""
    # Their inputs are those of dense layers in their place; all else runs as it is.
    stand_ins = {
        name: to_dense_layer(layer)
        for name, layer in layers.items()
        if two_matrices(layer._assembled()) and not isinstance(layer, FactoredEmbedding)
    }
    names = [name for name, dense in stand_ins.items() if isinstance(plain_of(dense), Plain)]
    dense = copy_of(model, {id(layers[name]): stand_ins[name] for name in names})
    data = Calibration.read(calibration, dense, 0.0)
    if data is None or not names:
        return {}
    trace = record(dense, names, data.batches[0])
    found = itertools.chain(*at_once(dense, names, trace, data))
    grams = {}
    for name, moments in found:
        inputs = moments.fit()[0]
        gram, device = inputs.gram, inputs.mean.device
        columns = torch.eye(len(gram), dtype=torch.float64, device=device)
        grams[name] = columns @ gram if isinstance(gram, Compact) else gram
    return grams
