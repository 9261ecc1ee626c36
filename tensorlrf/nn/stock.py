"""One factored layer told in layers of torch: the dense one, or one library layer a factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from tensorlrf.errors import unknown
from tensorlrf.nn._embedding import FactoredEmbedding
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.behaviour.mismatch import in_turn, torch_layer
from tensorlrf.nn.graphs import traced
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.plain import HF_CONV1D, Plain
from tensorlrf.nn.tables._bag import FactoredEmbeddingBag
from tensorlrf.nn.tables.shell import filled
from tensorlrf.nn.tall import lies_by_columns
from tensorlrf.ops.forms.stages import NOTHING, Library, Stages, run

_PADDING_LAYERS: dict[str, tuple[Callable[..., nn.Module], ...]] = {
    "constant": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


def to_dense_layer(layer: FactoredLayer) -> nn.Module:
    """The torch layer that `layer` stands for, with the dense weight; `layer` stays as it is.

    A Linear, convolution, transposed one, Embedding or subclass of this with all its options,
    dtype, device, memory format, requires_grad and training flag, or the Conv1D of transformers.
    Where the padding differs from side to side, an nn.Sequential of ZeroPad and convolution, which
    has the sizes and options of the layer as attributes too.
    """
    if isinstance(layer, (FactoredEmbedding, FactoredEmbeddingBag)):
        return _dense_embedding(layer, as_it_was=True)
    return _with_attributes(_dense(layer, plain_of_factored(layer)), layer)


def to_stock_layer(layer: FactoredLayer, path: str = "chain") -> nn.Module:
    """torch layers that compute what `layer` computes on `path`; `layer` stays as it is.

    path  "chain", one Linear or convolution a factor, the bias on the last, of an embedding an
          Embedding and then Linear layers; "fold" and "fold_depthwise" where the layer has them;
          "fused", which becomes the chain; "dense", one layer, for a Conv1D of transformers a
          Linear

    More than one layer come as an nn.Sequential, after a padding layer where zeros differ from side
    to side or are none. A structured format is no chain of library layers: its path comes as a
    torch.fx.GraphModule, whose code is calls of torch alone (a convolution by a Kronecker sum then
    takes batches only). The parameters are copies, with the dtype, device and requires_grad of the
    layer. Sizes and options that the dense layer has as attributes, and `bias`, are there as well:
    models read them of their layers. Raises ArgumentError where the layer has no such path,
    UnsupportedError for a format that no torch layers compute.
    """
    if path not in (*layer.paths, "fused"):
        raise unknown("path", path, layer.paths)
    return _with_attributes(_stock(layer, path), layer)


_OPTIONS = (
    *("in_features", "out_features", "nx", "nf"),
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("output_padding", "groups", "padding_mode"),
    *("num_embeddings", "embedding_dim", "padding_idx"),
)


def _with_attributes(stock: nn.Module, layer: FactoredLayer) -> nn.Module:
    """With what parents read of a layer, such as `conv.stride`, where it is made of several."""
    if not isinstance(stock, nn.Sequential):
        return stock
    for name in _OPTIONS:
        if hasattr(layer, name):
            setattr(stock, name, getattr(layer, name))
    if not isinstance(layer, FactoredEmbedding):
        # The parameter of the last layer by one name more, but once in the state dict.
        vars(stock)["bias"] = None if layer.bias is None else stock[-1].bias
    return stock


def _stock(layer: FactoredLayer, path: str) -> nn.Module:
    path = "chain" if path == "fused" else path
    if path == "dense":
        if isinstance(layer, (FactoredEmbedding, FactoredEmbeddingBag)):
            return _dense_embedding(layer)
        plain = plain_of_factored(layer)
        return _dense(layer, Plain("Linear") if plain.kind == HF_CONV1D else plain)
    if isinstance(layer, FactoredEmbeddingBag):
        return _stock_bags(layer).train(layer.training)
    with torch.no_grad():
        stages = layer._layer.paths(layer.factors.detach())[path]
        layers = [] if layer._layer.geometry is None else _padding(layer)
        libraries = [stage.library() for stage in stages]
        if None in libraries:
            return in_turn([*layers, _traced(stages, layer)], whole=True).train(layer.training)
        found = [one for one in libraries if one is not None and one is not NOTHING]
        for library in found:
            bias = layer.bias if library is found[-1] else None
            layers.append(_library_layer(library, layer, bias))
        if (scale := _scale(layer)) != 1.0:
            last: Any = layers[-1]
            last.weight.mul_(scale)  # of the factor that a tied head has a copy of
    return in_turn(layers).train(layer.training)


def _scale(layer: FactoredLayer) -> float:
    """By which an embedding multiplies what it looks up."""
    return layer.scale if isinstance(layer, FactoredEmbedding) else 1.0


def _library_layer(library: Library, layer: FactoredLayer, bias: Tensor | None) -> nn.Module:
    """The layer of torch, its parameters copies."""
    if library.kind == "Embedding":
        return _torch_embedding(library.weight, layer)
    plain = Plain(library.kind, **library.options)
    return torch_layer(plain, _own(library.weight, layer), _own_bias(bias))


def plain_of_factored(layer: FactoredLayer) -> Plain:
    """What the factored layer stands for."""
    if isinstance(layer, FactoredHFConv1D):
        return Plain(HF_CONV1D)
    if isinstance(layer, FactoredLinear):
        return Plain("Linear")
    conv: Any = layer
    given = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return Plain(conv.kind.__name__, *given, getattr(conv, "output_padding", ()))


def _dense(layer: FactoredLayer, plain: Plain) -> nn.Module:
    with torch.no_grad():
        weight = layer.weight
        # A Linear in place of a Conv1D takes the weight the other way round.
        if plain.kind == "Linear" and isinstance(layer, FactoredHFConv1D):
            weight = weight.T
    dense = torch_layer(plain, _own(weight, layer), _own_bias(layer.bias))
    return dense.train(layer.training)


def _own(weight: Tensor, layer: FactoredLayer) -> nn.Parameter:
    """A copy as a parameter, in the order of memory and with the requires_grad of the factors."""
    own = [layer._tensor(name) for name in layer._names.values()]
    last = any(is_channels_last(t) for t in own)
    layout = CHANNELS_LAST.get(weight.ndim if last else 0, torch.contiguous_format)
    if weight.ndim == 2 and lies_by_columns(weight):
        layout = torch.preserve_format
    copied = weight.detach().clone(memory_format=layout)
    return nn.Parameter(copied, requires_grad=any(t.requires_grad for t in own))


def _own_bias(bias: Tensor | None) -> nn.Parameter | None:
    if bias is None:
        return None
    return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


# ---- embeddings ---------------------------------------------------------------------------------


def _dense_embedding(
    layer: FactoredEmbedding | FactoredEmbeddingBag, *, as_it_was: bool = False
) -> nn.Module:
    """On the dense table; of a subclass perhaps, which else is told in layers of torch."""
    with torch.no_grad():
        weight = layer.weight
    if isinstance(layer, FactoredEmbeddingBag):
        return _torch_bags(weight, layer).train(layer.training)
    made = filled(layer, _own(weight, layer)) if as_it_was else None
    if made is None:
        made = _torch_embedding(weight, layer)
        # A head may be tied to the table, whose weight is without the scale.
        made = made if layer.scale == 1.0 else traced(_Scaled(made, layer.scale))
    return made.train(layer.training)


class _Scaled(nn.Module):
    """A multiple of what is looked up."""

    def __init__(self, table: nn.Module, scale: float) -> None:
        super().__init__()
        self.table, self.scale = table, scale

    def forward(self, input: Any) -> Any:
        return self.table(input) * self.scale


def _torch_embedding(weight: Tensor, layer: Any) -> nn.Module:
    with torch.device("meta"):  # nothing is initialised
        dense = nn.Embedding(weight.shape[0], weight.shape[1], padding_idx=layer.padding_idx)
    dense.weight = _own(weight, layer)
    return dense


def _torch_bags(weight: Tensor, layer: Any) -> nn.Module:
    with torch.device("meta"):
        dense = nn.EmbeddingBag(
            weight.shape[0], weight.shape[1], mode=layer.mode, padding_idx=layer.padding_idx,
            include_last_offset=layer.include_last_offset,
        )  # fmt: skip
    dense.weight = _own(weight, layer)
    return dense


class _Bags(nn.Module):
    """Bags of rows of the first factor, and a Linear."""

    def __init__(self, bag: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.bag, self.linear = bag, linear

    def forward(self, input: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:
        return self.linear(self.bag(input, offsets, per_sample_weights))


def _stock_bags(layer: FactoredEmbeddingBag) -> nn.Module:
    """As a graph, since layers of an nn.Sequential take one input and not three."""
    with torch.no_grad():
        chain = layer._layer.paths(layer.factors.detach())["chain"]
        first, second = (stage.library() for stage in chain[:2])
    assert first is not None
    assert second is not None
    linear = _library_layer(second, layer, None)
    return traced(_Bags(_torch_bags(first.weight, layer), linear))


# ---- what no library layer computes -------------------------------------------------------------


class _Traceable(nn.Module):
    """The stages times the scale, and the bias (O,), which has `axes` dimensions behind its
    channels."""

    def __init__(
        self, stages: Stages, bias: Tensor | None, axes: int = 0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.stages, self.axes, self.scale = stages, axes, scale
        # A parameter is recorded with what is made of it, where a plain tensor would be a constant.
        self.own_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        y = run(self.stages, input)
        y = y if self.scale == 1.0 else y * self.scale
        if self.own_bias is None:
            return y
        return y + (self.own_bias.reshape(-1, *(1,) * self.axes) if self.axes else self.own_bias)


def _traced(stages: Stages, layer: FactoredLayer) -> fx.GraphModule:
    """What the stages do to x as a graph. What they make of the factors alone is made now: these
    tensors are the parameters."""
    bias = layer.bias
    axes = max(0, len(layer.factors.shape) - 2)
    own_bias = None if bias is None else bias.detach()
    graph = traced(_Traceable(stages, own_bias, axes, _scale(layer)))
    named: dict[str, str] = {}
    trained = any(layer._tensor(name).requires_grad for name in layer._names.values())
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        if node.target not in named:
            tensor = getattr(graph, node.target)
            delattr(graph, node.target)
            is_bias = bias is not None and tensor.data_ptr() == bias.data_ptr()
            named[node.target] = "bias" if is_bias else f"weight_{len(named)}"
            grad = layer.bias.requires_grad if is_bias and layer.bias is not None else trained
            copied = tensor.detach().clone()
            if copied.is_floating_point():
                copied = nn.Parameter(copied, requires_grad=grad)
                graph.register_parameter(named[node.target], copied)
            else:
                graph.register_buffer(named[node.target], copied)
        node.target = named[node.target]
    graph.recompile()
    return graph


def _padding(conv: Any) -> list[nn.Module]:
    """The layer that pads ahead of the convolutions, or none."""
    if getattr(conv, "_pad_ahead", None) is None:
        return []
    make = _PADDING_LAYERS[conv._pad_mode][len(conv.kernel_size) - 1]
    return [make(tuple(conv._pad_ahead))]
