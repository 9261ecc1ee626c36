"""Leaving again: torch's own layers in place of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression._unpacked import settled
from tensorlrf.compression.checkpoint.pretrained.marks import mark, unmark
from tensorlrf.compression.served.low_rank import in_common, served_layer
from tensorlrf.compression.served.sizes import fit_configuration
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.nn import FactoredEmbedding, FactoredEmbeddingBag, FactoredLayer
from tensorlrf.nn.copies import copy_of
from tensorlrf.nn.latent.attention import without_latents
from tensorlrf.nn.obstacles import hooks_of
from tensorlrf.nn.packed.unpacked import Unpacked
from tensorlrf.nn.resized.layers import stock_
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tensorlrf.nn.tables.ties import tie_stock, turn_stock
from tensorlrf.nn.whole import check_whole

_SERVERS = ("vllm",)


def export(
    model: nn.Module, *, rows: int | None = None, for_: Literal["vllm"] | None = None
) -> nn.Module:
    """A copy of `model` that runs without tensorlrf: torch layers in place of factored ones.

    A layer becomes an nn.Sequential of Linear or convolution layers, the bias on the last, or one
    dense layer where its path is "dense"; "fused" becomes the chain. A layer in several places, or
    in a list beside the tree of modules, is one layer in all of them. Modules that
    method="modular" has made smaller are plain ones of their sizes; attentions that kept a part of
    their rotary pairs, which no stock one does, have zeros in place of the others; what torch keeps
    packed, an LSTM, an attention or the experts of a mixture, has no place for factors and is dense
    again; a latent cache is one of keys and values again. An embedding and the head on its table
    have their factors in common, as before: the embedding then ends in a graph of torch.fx that
    multiplies by the head's factor the other way round. Whatever is not factored is copied, so that
    nothing is shared with `model`.

    With `for_="vllm"` linear layers and embeddings of low rank stay on their factors, which vLLM
    runs where tensorlrf is installed beside it. Those of other formats become layers of low rank,
    of the very rank that their matrices have (by an SVD of each), where these hold fewer numbers
    than the dense weight, and otherwise dense; so do convolutions. Factors that several layers of
    another format have in common become one dense weight. The configuration tells of sizes that
    have changed, where one number of it does. `save` writes what comes out.

    Parameters
    ----------
    model : Module
        Any module, itself a factored layer perhaps; stays as it is.
    rows : int, optional
        The number of rows M (of a convolution, batch x output positions) that the result is meant
        for. Each layer is frozen on the path that its table has for that many; by default on the
        one for any number of rows, the last. Not together with `for_`.
    for_ : {None, "vllm"}
        The program that is to serve the result.

    Returns
    -------
    Module
        The copy.

    Raises
    ------
    ArgumentError
        Where `model` is no module, cannot be copied, `rows` is no count, or `for_` is unknown.
    UnsupportedError
        Where a factored layer has hooks, or layers of an attention with a part of its rotary pairs
        lie outside of it. For vLLM, where the model is none of transformers, or layers have sizes
        that its configuration cannot tell of, as those that `method="modular"` has made smaller
        each by another number.

    Examples
    --------
    >>> layer = tensorlrf.nn.factorize(torch.nn.Linear(512, 512), "svd", 4)
    >>> tensorlrf.export(layer)
    Sequential(
      (0): Linear(in_features=512, out_features=4, bias=False)
      (1): Linear(in_features=4, out_features=512, bias=True)
    )
    """
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ArgumentError(f"rows={rows!r} must be None or an int of at least 1")
    if for_ is not None and for_ not in _SERVERS:
        raise unknown("for_", for_, _SERVERS)
    if for_ is not None and rows is not None:
        raise ArgumentError(
            f"rows={rows!r} freezes a path, and {for_} chooses its own; leave it out"
        )

    def stock(layer: FactoredLayer) -> nn.Module:
        entries = layer.path_table.entries
        return to_stock_layer(
            layer, entries[-1][1] if rows is None else layer.path_table.lookup(rows)
        )

    common = set() if for_ is None else in_common(model)
    exported = _replaced(model, stock if for_ is None else lambda one: served_layer(one, common))
    try:
        stock_(exported)
    except AttributeError as error:
        raise UnsupportedError(
            f"model: an attention with a part of its rotary pairs cannot be a stock one: {error}"
        ) from None
    if for_ is not None:
        fit_configuration(exported)
        mark(exported)
    return exported


def densify(model: nn.Module) -> nn.Module:
    """A copy of `model` with dense torch layers in place of factored ones.

    Their weights are those that the factors stand for. `model` stays as it is; nothing is shared
    with it. Every layer is of the type and options it had before it was factored, except a subclass
    that pads by itself: that one is a plain convolution, behind a ZeroPad where the two sides
    differ.

    Parameters
    ----------
    model : Module

    Returns
    -------
    Module
        The copy.

    Raises
    ------
    ArgumentError
        Where `model` is no module or cannot be copied.
    UnsupportedError
        Where a factored layer has hooks.

    Examples
    --------
    >>> layer = tensorlrf.nn.factorize(torch.nn.Linear(32, 16), "svd", 4)
    >>> tensorlrf.densify(layer)
    Linear(in_features=32, out_features=16, bias=True)
    """
    return _replaced(model, to_dense_layer)


def _replaced(model: nn.Module, new: Callable[[FactoredLayer], nn.Module | None]) -> nn.Module:
    """A deep copy in which `new(layer)` stands wherever a factored layer was; where that is None,
    a copy of the layer."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    model = uncompiled(model)
    check_whole(model, "a copy of dense or stock layers")
    copies: dict[int, Any] = {}
    # Parameter -> layers that own it, with its place among their parameters.
    owners: dict[int, list[tuple[int, Tensor, FactoredLayer]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Unpacked):
            copies[id(module)] = module.pack()
        if not isinstance(module, FactoredLayer):
            continue
        hooks = hooks_of(module)
        if hooks:
            raise UnsupportedError(
                f"model: {name or 'it'} has hooks ({', '.join(hooks)}), which torch's layers would "
                "not have; remove them first"
            )
        made = new(module)
        if made is None:
            continue
        copies[id(module)] = made
        _keep_bias(module.bias, copies[id(module)], copies)
        for k, parameter in enumerate(module.parameters(recurse=False)):
            owners.setdefault(id(parameter), []).append((k, parameter, module))
    for (k, part, first), *others in owners.values():
        for _, _, other in others:
            # Layers on one table have all factors in common, those on one basis that one alone.
            tie_stock(copies[id(first)], copies[id(other)], part if k else None)
        if not k:
            _turn([first, *(other for _, _, other in others)], copies)
    # To deepcopy these layers are copied already, wherever it meets them.
    replaced = settled(copy_of(model, copies))
    without_latents(replaced)
    unmark(replaced)
    return replaced


def _turn(layers: list[FactoredLayer], copies: dict[int, Any]) -> None:
    """Have what was made of tables and of heads on the same factors share the short ones, too."""
    tables = [one for one in layers if isinstance(one, (FactoredEmbedding, FactoredEmbeddingBag))]
    head = next((one for one in layers if one not in tables), None)
    if head is None:
        return
    for table in tables:
        scale = table.scale if isinstance(table, FactoredEmbedding) else 1.0
        turn_stock(copies[id(table)], copies[id(head)], scale)


def _keep_bias(bias: Tensor | None, new: nn.Module, copies: dict[int, Any]) -> None:
    """Have what else holds the bias of a factored layer hold that of the `new` one, too."""
    if bias is None:
        return
    owner = new[-1] if isinstance(new, nn.Sequential) else new
    own = copies.setdefault(id(bias), owner.get_parameter("bias"))
    owner.register_parameter("bias", own)
    if owner is not new:
        vars(new)["bias"] = own
