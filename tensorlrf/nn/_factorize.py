"""From a torch layer to a factored one in one step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, overload

from torch import nn

from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.methods import LAYERS, Decomposition, find
from tensorlrf.decomposition.rank import Rank
from tensorlrf.decomposition.signatures import check_words
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn._conv import FactoredConv1d, FactoredConv2d, FactoredConv3d
from tensorlrf.nn._embedding import FactoredEmbedding
from tensorlrf.nn._groups import decompose_groups
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.convolutions._transposed import (
    FactoredConvTranspose1d,
    FactoredConvTranspose2d,
    FactoredConvTranspose3d,
)
from tensorlrf.nn.convolutions.baked import baked
from tensorlrf.nn.obstacles import check_embedding, check_layer, plain_layer
from tensorlrf.nn.packed._attention import FactoredMultiheadAttention
from tensorlrf.nn.packed.recurrent import FactoredGRU, FactoredLSTM, FactoredRNN
from tensorlrf.nn.packed.unpacked import Unpacked, unpacked_type
from tensorlrf.nn.plain import HF_CONV1D, base_of, is_hf_conv1d
from tensorlrf.nn.tables._bag import FactoredEmbeddingBag
from tensorlrf.nn.tables.served import no_table, only_tables
from tensorlrf.nn.tensors import values_of

_FACTORED: dict[str, type[FactoredLayer]] = {
    "Linear": FactoredLinear,
    "Conv1d": FactoredConv1d,
    "Conv2d": FactoredConv2d,
    "Conv3d": FactoredConv3d,
    "ConvTranspose1d": FactoredConvTranspose1d,
    "ConvTranspose2d": FactoredConvTranspose2d,
    "ConvTranspose3d": FactoredConvTranspose3d,
    HF_CONV1D: FactoredHFConv1D,
    "Embedding": FactoredEmbedding,
    "EmbeddingBag": FactoredEmbeddingBag,
}
"""What a layer computes, as `Plain.kind` -> the layer on factors."""

# A layer takes these itself, or has no use for them: it keeps copies, cut from any graph.
_NOT_OPTIONS = ("rank", "error", "differentiable", "batch_dims")


def factored_type(module: nn.Module) -> type[FactoredLayer] | None:
    """The factored layer that can stand in for exactly this module.

    Parameters
    ----------
    module : Module
        It may be on the meta device; its rank and size are not looked at.

    Returns
    -------
    type or None
        A subclass of FactoredLayer; None where none can.

    Examples
    --------
    >>> tensorlrf.nn.factored_type(torch.nn.Linear(4, 4)).__name__
    'FactoredLinear'
    >>> tensorlrf.nn.factored_type(torch.nn.ReLU()) is None
    True
    """
    plain = plain_layer(module)
    return None if plain is None else _FACTORED[plain.kind]


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
    layer: nn.Conv1d,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredConv1d: ...


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


@overload
def factorize(
    layer: nn.Conv3d,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredConv3d: ...


@overload
def factorize(
    layer: nn.ConvTranspose1d,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredConvTranspose1d: ...


@overload
def factorize(
    layer: nn.ConvTranspose2d,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredConvTranspose2d: ...


@overload
def factorize(
    layer: nn.ConvTranspose3d,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredConvTranspose3d: ...


@overload
def factorize(
    layer: nn.Embedding,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredEmbedding: ...


@overload
def factorize(
    layer: nn.EmbeddingBag,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredEmbeddingBag: ...


@overload
def factorize(
    layer: nn.LSTM,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredLSTM: ...


@overload
def factorize(
    layer: nn.GRU,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredGRU: ...


@overload
def factorize(
    layer: nn.RNN,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredRNN: ...


@overload
def factorize(
    layer: nn.MultiheadAttention,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredMultiheadAttention: ...


@overload
def factorize(
    layer: nn.RNNCellBase,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> Unpacked: ...


@overload
def factorize(
    layer: nn.Module,
    method: str,
    /,
    rank: Rank | None = ...,
    *,
    error: float | None = ...,
    **options: Any,
) -> FactoredLayer | Unpacked: ...


def factorize(
    layer: nn.Module,
    method: str,
    /,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    **options: Any,
) -> nn.Module:
    """A layer that runs on factors of the weight of `layer`, which stays as it is.

    A convolution with groups is decomposed group by group, all groups at one rank: `rank` is that
    of a group, a share one of its parameters; for `error=` all get the largest rank that any of
    them needs; `gram=` has one matrix a group, (groups, n, n).

    Parameters
    ----------
    layer : Module
        Exactly a torch.nn.Linear, a convolution or a transposed one, a Conv1D of transformers, or a
        subclass that computes the same; or exactly a torch.nn.Embedding or EmbeddingBag. A weight
        that is made anew in every forward, as of weight-standardised convolutions, is made once. Of
        a recurrent module or cell, a MultiheadAttention, or the experts of a mixture every matrix
        is factored, the gates of one together.
    method : str
        The word of a decomposition that serves such a layer, as the table of methods tells:
        "svd" serves all. The tensor is the weight, outputs first: (out, in), `(out, in, *kernel)`,
        of a transposed convolution too, or (num_embeddings, embedding_dim).
    rank : int, tuple, float or str, optional
        As the decomposition takes it; or instead
    error : float, optional
        The relative error asked for.
    **options
        Of the decomposition: `gram=`, `random_state=`, `n_iter_max=` and so on, its own `solver=`
        among them. "tucker" on a convolution factors the channels (Tucker-2, modes (0, 1)) unless
        `modes=` says otherwise.

    Returns
    -------
    FactoredLayer or Unpacked
        Everything else (stride, padding, bias, padding_idx, dtype, ...) is as in `layer`. Another
        layer that was tied to its weight keeps that weight.

    Raises
    ------
    UnsupportedError
        For other layers and for depthwise convolutions.
    ArgumentError
        For an unknown method or option (the valid ones are listed), and what the decomposition
        raises.

    References
    ----------
    Tucker-2 on channels: Kim et al. 2016.

    Examples
    --------
    >>> conv = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
    >>> small = tensorlrf.nn.factorize(conv, "tucker", 0.5)
    >>> x = torch.rand(1, 16, 8, 8)
    >>> small(x).shape == conv(x).shape
    True
    >>> small.factors.n_params <= conv.weight.numel() // 2
    True
    """
    packed = unpacked_type(layer) if isinstance(layer, nn.Module) else None
    if packed is not None:
        return _factorize_packed(packed.from_packed(layer), method, rank, error, options)
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return _factorize_embedding(layer, method, rank, error, options)
    layer = baked(layer) or layer
    name = HF_CONV1D if is_hf_conv1d(layer) else base_of(layer) or "Linear"
    kind = _FACTORED[name]
    plain = check_layer(layer, name if name == HF_CONV1D else kind.kind, "layer")
    found = find(method, *LAYERS)
    if reason := only_tables(found.name):
        raise UnsupportedError(f"method={method!r}: {reason}")
    decompose = found.for_layers
    _check_options(method, decompose, options)
    options = {**found.on.get("conv" if plain.axes else "linear", {}), **options}
    own: Any = layer.weight
    weight = plain.outputs_first(values_of(own))
    if plain.groups == 1:
        factors = decompose(weight, rank, error=error, **options)
    else:
        sizes_of = (found.config or Method).sizes_of
        factors = decompose_groups(
            decompose, weight, plain.groups, rank, error=error, sizes_of=sizes_of, **options
        )
    return kind.from_factors(factors, layer)


def _factorize_packed(
    module: Unpacked, method: str, rank: Rank | None, error: float | None, options: dict[str, Any]
) -> Unpacked:
    """The same with every matrix of it factored."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear:
            above, _, own = name.rpartition(".")
            made = factorize(layer, method, rank, error=error, **options)
            setattr(module.get_submodule(above), own, made)
    return copy.deepcopy(module)  # what is left of the given one's parameters becomes its own


def _factorize_embedding(
    layer: nn.Embedding | nn.EmbeddingBag,
    method: str,
    rank: Rank | None,
    error: float | None,
    options: dict[str, Any],
) -> FactoredLayer:
    kind = nn.EmbeddingBag if isinstance(layer, nn.EmbeddingBag) else nn.Embedding
    check_embedding(layer, "layer", kind)
    found = find(method, *LAYERS)
    if reason := no_table(found.name, kind.__name__):
        raise UnsupportedError(f"method={method!r}: {reason}")
    decompose = found.for_layers
    _check_options(method, decompose, options)
    options = {**found.on["embedding"], **options}
    weight, padding = values_of(layer.weight), layer.padding_idx
    factors = decompose(weight, rank, error=error, **options)
    made = _FACTORED[kind.__name__].from_factors(factors, layer)
    if isinstance(made, FactoredEmbedding) and padding is not None and not weight[padding].any():
        made.clear_padding()
    return made


def _check_options(name: str, decompose: Decomposition, options: Mapping[str, Any]) -> None:
    """Every option is one of the method's own. Raises ArgumentError that lists them."""
    _, *parameters = inspect.signature(decompose).parameters
    valid = [option for option in parameters if option not in _NOT_OPTIONS]
    check_words(options, valid, name)
    for option in options:
        if option not in valid:
            raise ArgumentError(
                f"{option}= is no option of method {name!r}; its options are {', '.join(valid)}"
            )
