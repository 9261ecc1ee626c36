"""Changes of low rank put into the weights of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tensorlrf.adapters._norms import row_norms
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import Factors, LowRank
from tensorlrf.factors.kinds import format_of, two_matrices
from tensorlrf.nn import FactoredLinear
from tensorlrf.nn.copies import copy_of
from tensorlrf.nn.plain import is_hf_conv1d
from tensorlrf.nn.ranks.grown import grow, why_not
from tensorlrf.nn.ranks.leading import set_factors

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def merged(
    model: nn.Module, terms: Mapping[str, LowRank], magnitudes: Mapping[str, Tensor]
) -> nn.Module:
    """A copy with the changes in its weights; see `Adapter.merged_into`."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    for name, term in terms.items():  # before anything is copied
        _check(model, name, term, scaled=name in magnitudes)
    made = copy_of(model)
    with torch.no_grad():
        for name, term in terms.items():
            _put(made.get_submodule(name), term, magnitudes.get(name))
    return made


def dense_weight(layer: nn.Module) -> Tensor | None:
    """(out, in) or (out, in, kh, kw), a view of the layer's own; None where it has none."""
    if is_hf_conv1d(layer):
        turned: Tensor = layer.get_parameter("weight").T
        return turned
    if type(layer) is nn.Linear or (type(layer) in CONVS and layer.groups == 1):
        own: Tensor = layer.get_parameter("weight")
        return own
    return None


def _check(model: nn.Module, name: str, term: LowRank, *, scaled: bool) -> None:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        some = ", ".join([n for n, _ in model.named_modules() if n][:4])
        raise ArgumentError(
            f"the model has no layer {name!r}, which the adapter changes; it has {some}, ..."
        ) from None
    if isinstance(layer, FactoredLinear):
        if unfit := why_not(layer):
            raise UnsupportedError(f"{name!r} {unfit}")
        if scaled and two_matrices(layer.factors) is None:
            raise UnsupportedError(
                f"{name!r} is of format {format_of(layer.factors)!r}, whose rows a DoRA adapter "
                "cannot scale; use the dense model, or method='svd'"
            )
        shape = tuple(layer.factors.shape)
    else:
        weight = dense_weight(layer)
        if weight is None:
            raise UnsupportedError(
                f"{name!r} is a {type(layer).__name__}; a change of low rank is merged into "
                "Linear, Conv1D, a convolution of one group, and layers on factors of low rank"
            )
        if torch.nn.utils.parametrize.is_parametrized(layer):
            raise UnsupportedError(
                f"{name!r} has a parametrised weight; call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        shape = tuple(weight.shape)
    if shape != tuple(term.shape):
        raise ShapeError(
            f"{name!r} has a weight of shape {shape}, and the adapter changes one of "
            f"{tuple(term.shape)}: it is for another model"
        )


def _put(layer: nn.Module, term: LowRank, magnitude: Tensor | None) -> None:
    if isinstance(layer, FactoredLinear):
        home = layer.factors
        grow(layer, *_at(term, home.device, home.dtype))
        if magnitude is not None:
            sides = two_matrices(layer.factors)
            assert sides is not None  # `_check` has seen to it
            left, right = sides
            scale = _scale(magnitude, layer.factors, LowRank(left[:, :1] * 0, right[:1]))
            set_factors(layer, LowRank(scale[:, None] * left, right))
        return
    weight = dense_weight(layer)
    assert weight is not None
    left, right = _at(term, weight.device, torch.promote_types(weight.dtype, torch.float32))
    changed = weight.to(left.dtype) + (left @ right).reshape(weight.shape)
    if magnitude is not None:
        scale = _scale(magnitude, weight, LowRank(left, right, term.shape))
        changed *= scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    weight.copy_(changed)


def _at(term: LowRank, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return term.left.to(device, dtype), term.right.to(device, dtype)


def _scale(magnitude: Tensor, weight: Tensor | Factors, term: LowRank) -> Tensor:
    """What rows are multiplied by to have these norms; rows of zeros stay."""
    norms = row_norms(weight, term)
    wanted = magnitude.to(norms)
    return torch.where(norms > 0, wanted / norms, 1.0).to(term.left.dtype)
