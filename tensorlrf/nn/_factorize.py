"""From a torch layer to a factored one in one step."""

from __future__ import annotations

from typing import Any, overload

from torch import nn

from tensorlrf.decomposition._rank import Rank
from tensorlrf.nn._conv2d import FactoredConv2d
from tensorlrf.nn._like import check_layer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn._methods import check_options, find_method


@overload
def factorize(
    layer: nn.Linear,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredLinear: ...


@overload
def factorize(
    layer: nn.Conv2d,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredConv2d: ...


def factorize(
    layer: nn.Linear | nn.Conv2d,
    method: str,
    /,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    **options: Any,
) -> FactoredLinear | FactoredConv2d:
    """A layer that runs on factors of the weight of `layer`, which stays as it is.

    layer    exactly a torch.nn.Linear or, of one group, a torch.nn.Conv2d
    method   "svd", "cp" or "tucker"; the tensor is the weight, (out, in) or (out, in, kh, kw)
    rank     as the decomposition takes it; or instead
    error    the relative error asked for
    options  of the decomposition: gram=, random_state=, n_iter_max= and so on, its own method=
             among them. "tucker" on a convolution factors the channels (Tucker-2, modes (0, 1);
             Kim et al. 2016) unless modes= says otherwise.

    Everything else (stride, padding, bias, dtype, ...) is as in `layer`.
    Raises UnsupportedError for other layers, ArgumentError for an unknown method or option (the
    valid ones are listed), and what the decomposition raises.
    """
    kind = FactoredConv2d if isinstance(layer, nn.Conv2d) else FactoredLinear
    check_layer(layer, kind.kind, "layer")
    decompose = find_method(method)
    check_options(method, options)
    if method == "tucker" and kind is FactoredConv2d:
        options = {"modes": (0, 1), **options}
    factors = decompose(layer.weight.detach(), rank, error=error, **options)
    return kind.from_factors(factors, layer)  # type: ignore[arg-type]
