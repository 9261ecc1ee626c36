"""Batch normalisations out of the way while a model is made smaller, and in their places again.

In eval mode a normalisation is one map with the layer before it. On the folded model layers have
biases, which take what is lost of means, errors of outputs are errors of what others read, and what
a block adds to is seen. Afterwards y' = W' x + b' of the folded layer is written as the two that
there were: of the outputs that are left gamma, beta and the variance stay, W = W' / s with s =
gamma / sqrt(var + eps), and the mean, or a bias that the layer has, is what b' asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._batchnorm import norms_of
from tensorlrf.compression.calibration._dense_layer import DenseLayer, module_at
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.folding._fold import affine_of, folded_into
from tensorlrf.compression.modular._channels import put_values
from tensorlrf.compression.modular._outlook import Done
from tensorlrf.nn.copies import copy_of, replica
from tensorlrf.nn.resized.layers import select_

FLAT = 1e-6
"""Of the largest scale of a normalisation: below it a channel is as good as constant, and gets a
scale of one where its layer has to give something else."""


@dataclass(frozen=True)
class Folds:
    """A model without the normalisations that are folded.

    given  as it was
    model  as `given` in eval mode, but without them
    pairs  layer -> the normalisation that it has taken in
    """

    given: nn.Module
    model: nn.Module
    pairs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: nn.Module, batch: Batch) -> Folds:
        """By a pass on the batch; the model itself where it has none."""
        if not norms_of(given):
            return cls(given, given)
        call(replica(given), batch)  # what fails is the fault of a calibration batch
        model, found, _ = folded_into(replica(given), batch)
        return cls(given, model, {layer: norm for norm, layer in found.items()})

    def undone(
        self, small: nn.Module, done: Mapping[str, Done], fitted: Collection[str]
    ) -> nn.Module:
        """A smaller copy of the folded model, with the normalisations again, in place.

        done    layers of what was made smaller
        fitted  layers with other values
        """
        if self.model is self.given:
            return small
        places: dict[nn.Module, list[str]] = {}
        for place, module in self.given.named_modules(remove_duplicate=False):
            places.setdefault(module, []).append(place)
        for name, norm_name in self.pairs.items():
            before = module_at(self.given, name), module_at(self.given, norm_name)
            layer, norm = (copy_of(module) for module in before)
            if name in done or name in fitted:
                rows = done[name].rows if name in done else ()
                _write(layer, norm, DenseLayer.of(module_at(small, name)), rows)
            for old, new in zip(before, (layer, norm), strict=True):
                put(small, places[old], new)
        modes = {name: module.training for name, module in self.given.named_modules()}
        for name, module in small.named_modules():
            module.training = modes.get(name, module.training)
        return small


@torch.no_grad()
def _write(layer: Any, norm: Any, whole: DenseLayer, rows: tuple[int, ...]) -> None:
    """Give a layer and the normalisation behind it what `whole`, both in one, has, in place."""
    bias = layer.bias
    if rows:
        left = torch.tensor(rows, device=norm.running_mean.device)
        select_(norm, left)
        bias = None if bias is None else bias[left]
    scale, shift = _lively(norm)
    weight = whole.weight.double() / scale.reshape(-1, *[1] * (whole.weight.ndim - 1))
    # W x + b of the layer by itself, b with the mean in it.
    own: Tensor = (whole.module.bias.double() - shift) / scale
    if bias is None:
        norm.running_mean.sub_(own.to(norm.running_mean.dtype))
    put_values(DenseLayer.of(layer), weight, None if bias is None else own.to(bias.dtype))


def _lively(norm: Any) -> tuple[Tensor, Tensor]:
    """(scale, shift) of each channel, in float64, none of the scales zero: those that are become
    one."""
    scale, _ = affine_of(norm)
    flat = scale.abs() <= FLAT * scale.abs().max()
    if norm.weight is not None and flat.any():
        one = (norm.running_var.double() + norm.eps).sqrt()
        norm.weight.copy_(torch.where(flat, one, norm.weight.double()))
    return affine_of(norm)
