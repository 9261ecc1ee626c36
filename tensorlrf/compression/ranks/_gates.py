"""A gate in front of each layer of a model, fitted to what arrives there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import call
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn import FactoredLinear, RankGate
from tensorlrf.nn.copies import copy_of, replica
from tensorlrf.nn.packed.unpacked import Unpacked
from tensorlrf.nn.whole import check_whole

SCALES = (0.25, 0.5, 0.75)


def gate_ranks(
    model: nn.Module, calibration: Any, *, error: float, scales: Sequence[float] = SCALES
) -> nn.Module:
    """A copy of a model whose linear layers take as many terms as their inputs need.

    Each FactoredLinear on LowRank gets a `nn.RankGate`, fitted to what arrives there from the
    layers as they are, on all their ranks. Order the terms first, by `order_by_energy`.

    Parameters
    ----------
    model : Module
        Stays as it is; layers inside attention and recurrent modules of torch are left.
    calibration : iterable of batches or callable
        As for `compress`; each batch as one call will bring it, such as one example.
    error : float
        That each layer may make of its outputs, relative, in (0, 1).
    scales : sequence of float
        Shares of the rank that are tried.

    Returns
    -------
    Module

    Raises
    ------
    ArgumentError
        For what cannot be, and a model without such layers.

    Examples
    --------
    >>> layer = tensorlrf.nn.FactoredLinear.new(32, 32, rank=8, random_state=0)
    >>> batches = [torch.randn(4, 32) for _ in range(8)]
    >>> gated = tensorlrf.gate_ranks(torch.nn.Sequential(layer), batches, error=0.3)
    >>> type(gated[0]).__name__
    'RankGate'
    """
    check_whole(model, "a gate of ranks")
    model = own_model(model)
    inside = {part for m in model.modules() if isinstance(m, Unpacked) for part in m.modules()}
    names = [
        name
        for name, m in model.named_modules()
        if type(m) is FactoredLinear and m not in inside and two_matrices(m.factors)
    ]
    if not names:
        raise ArgumentError("model has no linear layer on LowRank; compress it by method='svd'")
    if "" in names:
        raise ArgumentError("model is one layer; wrap it, as in torch.nn.Sequential(model)")
    data = Calibration.read(calibration, model, 0.0)
    if data is None:
        raise ArgumentError("calibration is None; give batches to fit the gates to")
    inputs = _arriving(model, names, data)
    gated = copy_of(model)
    places = list(gated.named_modules(remove_duplicate=False))
    made: dict[nn.Module, RankGate] = {}
    for name in names:
        layer: Any = gated.get_submodule(name)
        if inputs[name]:
            made[layer] = RankGate.fit(layer, inputs[name], error=error, scales=scales)
    for name, module in places:
        if module in made:
            parent, _, child = name.rpartition(".")
            setattr(gated.get_submodule(parent), child, made[module])
    return gated


@dataclass
class _Arriving:
    """What arrives at a layer, as one tensor a call."""

    found: list[Tensor] = field(default_factory=list)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self.found.append(x.detach().clone())


def _arriving(model: nn.Module, names: Sequence[str], data: Calibration) -> dict[str, list[Tensor]]:
    seen = {name: _Arriving() for name in names}
    with torch.inference_mode(False):
        for batch in data.batches:
            own = replica(model)
            for name in names:
                own.get_submodule(name).register_forward_pre_hook(seen[name], with_kwargs=True)
            call(own, batch)
    return {name: one.found for name, one in seen.items()}
