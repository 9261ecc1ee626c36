"""A vocabulary that grows or shrinks after its table was factored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn._embedding import FactoredEmbedding
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.tables.shell import SHELL
from tensorlrf.nn.tables.ties import tie
from tensorlrf.ops.forms import form_of


def resize_token_embeddings(model: Any, words: int) -> nn.Module:
    """Give a model of transformers, in place, a vocabulary of another size.

    As its own `resize_token_embeddings`, which knows dense layers alone: the embedding and the head
    may run on factors, each or both on one table. Rows are added to the factor that holds the rows,
    and are the mean of those that there are (Hewitt 2021); rows are taken off from the end. Other
    layers stay as they are.

    Parameters
    ----------
    model : PreTrainedModel
        With `get_input_embeddings` and `set_input_embeddings`; likewise for the output where it has
        a head.
    words : int

    Returns
    -------
    Module
        The new embedding.

    Raises
    ------
    ArgumentError
        For what is no such model, and a number below one.
    UnsupportedError
        Naming the layer, where it holds no rows of single words, as a tensor train does, or is of
        another kind. The model is as it was then.

    References
    ----------
    Hewitt 2021, "Initializing new word embeddings for pretrained language models".

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    >>> config = LlamaConfig(**sizes, num_attention_heads=4, vocab_size=99)
    >>> model = LlamaForCausalLM(config)
    >>> model.set_input_embeddings(tensorlrf.nn.factorize(model.get_input_embeddings(), "svd", 8))
    >>> tensorlrf.nn.resize_token_embeddings(model, 101).num_embeddings
    101
    """
    if isinstance(words, bool) or not isinstance(words, int) or words < 1:
        raise ArgumentError(f"words={words!r} must be an int of at least 1")
    needed = ("get_input_embeddings", "set_input_embeddings", "get_output_embeddings")
    if not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in needed):
        raise ArgumentError(
            f"model is a {type(model).__name__}; it must be a model of transformers, with "
            f"{', '.join(needed)}"
        )
    owner: Any = model
    names = {module: name for name, module in model.named_modules()}
    table, head = owner.get_input_embeddings(), owner.get_output_embeddings()
    made = _resized(table, words, names.get(table, ""))
    made_head: Any = None if head is None else _resized(head, words, names.get(head, ""))
    if head is not None and next(table.parameters(), None) is next(head.parameters(), 0):
        if isinstance(made_head, FactoredLayer) and isinstance(made, FactoredLayer):
            tie(made_head, made)
        else:
            made_head.weight = made.weight
    owner.set_input_embeddings(made)
    if head is not None:
        owner.set_output_embeddings(made_head)
    for place in (getattr(owner, "config", None), owner):
        if hasattr(place, "vocab_size"):
            setattr(place, "vocab_size", words)  # noqa: B010
    return made


def _resized(layer: nn.Module, words: int, name: str) -> nn.Module:
    """The layer with so many rows."""
    made: nn.Module
    if type(layer) in (FactoredEmbedding, FactoredLinear):
        made = _of_factors(layer, words, name)
    elif type(layer) is nn.Embedding:
        with torch.device("meta"):
            made = nn.Embedding(words, layer.embedding_dim, padding_idx=_padding(layer, words))
        made.weight = _rows(layer.weight, words)
    elif type(layer) is nn.Linear:
        with torch.device("meta"):
            made = nn.Linear(layer.in_features, words, bias=layer.bias is not None)
        made.weight = _rows(layer.weight, words)
        if layer.bias is not None:
            made.bias = _rows(layer.bias, words)
    else:
        raise UnsupportedError(
            f"model: {name} is a {type(layer).__name__}, of which no rows are known; resize the "
            "model before it is compressed"
        )
    return made.train(layer.training)


def _of_factors(layer: Any, words: int, name: str) -> FactoredLayer:
    factors = layer.factors.detach()
    form = form_of(factors)
    rows = form.rows_of(factors)
    if rows is None or not form.has("bag"):
        raise UnsupportedError(
            f"model: {name} runs on a {type(factors).__name__}, in which no tensor has a row for "
            "each word; resize tensorlrf.densify(model) and compress it again"
        )
    parts = {**factors.tensors(), rows: _rows(factors.tensors()[rows], words).detach()}
    grown = type(factors).from_tensors(
        parts, {**factors.meta(), "shape": [words, factors.shape[1]]}
    )
    made: FactoredLayer
    if isinstance(layer, FactoredEmbedding):
        made = FactoredEmbedding(grown, _padding(layer, words), scale=layer.scale)
        if SHELL in vars(layer):
            vars(made)[SHELL] = vars(layer)[SHELL]
    else:
        bias = None if layer.bias is None else _rows(layer.bias, words).detach()
        made = FactoredLinear(grown, bias)
    made.stands_for, made.recipe = layer.stands_for, dict(layer.recipe)
    flags = {key: p.requires_grad for key, p in layer.named_parameters()}
    for key, parameter in made.named_parameters():
        parameter.requires_grad_(flags[key])
    return made


def _padding(layer: Any, words: int) -> int | None:
    row: int | None = layer.padding_idx
    return None if row is None or row >= words else row


def _rows(values: Tensor, words: int) -> nn.Parameter:
    """So many rows: those that there are, and their mean."""
    own = values.detach()
    more = (
        own.float()
        .mean(0, keepdim=True)
        .to(own.dtype)
        .expand(max(0, words - len(own)), *own.shape[1:])
    )
    return nn.Parameter(torch.cat([own[:words], more]), requires_grad=values.requires_grad)
