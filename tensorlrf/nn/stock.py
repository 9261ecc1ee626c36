"""One factored layer told in layers of torch: the dense one, or one library layer a factor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from tensorlrf.errors import UnsupportedError, unknown
from tensorlrf.factors import (
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tensorlrf.factors.algebra import mode_product
from tensorlrf.nn._embedding import FactoredEmbedding
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.plain import HF_CONV1D, Plain, in_turn, torch_layer
from tensorlrf.ops import run_embedding, run_linear
from tensorlrf.ops._convnd import kron_convolution
from tensorlrf.ops._embedding import table_matrices
from tensorlrf.ops.geometry import Geometry
from tensorlrf.ops.structured import form_of

_PADDING_LAYERS: dict[str, tuple[Callable[..., nn.Module], ...]] = {
    "constant": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


@dataclass(frozen=True)
class _Stage:
    """One library layer of a chain: its weight, and for a convolution how it slides."""

    weight: Tensor
    plain: Plain


def to_dense_layer(layer: FactoredLayer) -> nn.Module:
    """The torch layer that `layer` stands for, with the dense weight; `layer` stays as it is.

    A Linear, Conv1d, Conv2d, Conv3d or Embedding with all its options, dtype, device, memory
    format, requires_grad and training flag, or the Conv1D of transformers. Where the padding
    differs from side to side, an nn.Sequential of ZeroPad and convolution, which has the sizes and
    options of the layer as attributes too.
    """
    if isinstance(layer, FactoredEmbedding):
        return _dense_embedding(layer)
    return _told(_dense(layer, plain_of_factored(layer)), layer)


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
    return _told(_stock(layer, path), layer)


_OPTIONS = (
    *("in_features", "out_features", "nx", "nf"),
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("groups", "padding_mode", "num_embeddings", "embedding_dim", "padding_idx"),
)


def _told(stock: nn.Module, layer: FactoredLayer) -> nn.Module:
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
    if isinstance(layer, FactoredEmbedding):
        return _dense_embedding(layer) if path == "dense" else _embedding_chain(layer)
    if path == "dense":
        plain = plain_of_factored(layer)
        return _dense(layer, Plain("Linear") if plain.kind == HF_CONV1D else plain)
    with torch.no_grad():
        factors = layer.factors
        layers: list[nn.Module] = []
        run = _structured_run(layer, factors.detach(), path)
        if run is not None:
            layers = [] if isinstance(layer, FactoredLinear) else _padding(layer)
            return in_turn([*layers, _traced(run, layer)], whole=True).train(layer.training)
        if isinstance(layer, FactoredLinear):
            stages = _linear_stages(factors)
        else:
            stages = _conv_stages(factors, layer, path)
            layers += _padding(layer)
    for stage in stages:
        bias = layer.bias if stage is stages[-1] else None
        layers.append(torch_layer(stage.plain, _own(stage.weight, layer), _own_bias(bias)))
    return in_turn(layers).train(layer.training)


def plain_of_factored(layer: FactoredLayer) -> Plain:
    """What the factored layer stands for."""
    if isinstance(layer, FactoredHFConv1D):
        return Plain(HF_CONV1D)
    if isinstance(layer, FactoredLinear):
        return Plain("Linear")
    conv: Any = layer
    kind = f"Conv{len(conv.kernel_size)}d"
    return Plain(
        kind, conv.stride, conv.padding, conv.dilation, conv.groups, padding_mode=conv.padding_mode
    )


def _dense(layer: FactoredLayer, plain: Plain) -> nn.Module:
    with torch.no_grad():
        weight = layer.weight
        # A Linear in place of a Conv1D takes the weight the other way round.
        if plain.kind == "Linear" and isinstance(layer, FactoredHFConv1D):
            weight = weight.T
    dense = torch_layer(plain, _own(weight, layer), _own_bias(layer.bias))
    return dense.train(layer.training)


def _own(weight: Tensor, layer: FactoredLayer) -> nn.Parameter:
    """A copy as a parameter, in the memory format and with the requires_grad of the factors."""
    own = [layer._tensor(name) for name in layer._names.values()]
    last = any(is_channels_last(t) for t in own)
    layout = CHANNELS_LAST.get(weight.ndim if last else 0, torch.contiguous_format)
    copied = weight.detach().clone(memory_format=layout)
    return nn.Parameter(copied, requires_grad=any(t.requires_grad for t in own))


def _own_bias(bias: Tensor | None) -> nn.Parameter | None:
    if bias is None:
        return None
    return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


# ---- embeddings ---------------------------------------------------------------------------------


def _dense_embedding(layer: FactoredEmbedding) -> nn.Module:
    with torch.no_grad():
        weight = layer.weight
    return _torch_embedding(weight, layer).train(layer.training)


def _torch_embedding(weight: Tensor, layer: FactoredEmbedding) -> nn.Embedding:
    with torch.device("meta"):  # nothing is initialised
        dense = nn.Embedding(weight.shape[0], weight.shape[1], padding_idx=layer.padding_idx)
    dense.weight = _own(weight, layer)
    return dense


def _embedding_chain(layer: FactoredEmbedding) -> nn.Module:
    with torch.no_grad():
        factors = layer.factors.detach()
        if isinstance(factors, TTMatrix):
            run = partial(run_embedding, "chain", factors)
            return in_turn([_traced(run, layer)], whole=True).train(layer.training)
        rows, *others = table_matrices(factors)
        layers: list[nn.Module] = [_torch_embedding(rows, layer)]
        layers += [torch_layer(Plain("Linear"), _own(matrix.T, layer), None) for matrix in others]
    return in_turn(layers).train(layer.training)


# ---- structured formats -------------------------------------------------------------------------


def _structured_run(
    layer: FactoredLayer, factors: Factors, path: str
) -> Callable[[Tensor], Tensor] | None:
    """The path without bias as a function of x; None where library layers compute it."""
    if isinstance(layer, FactoredLinear):
        return None if form_of(factors) is None else partial(run_linear, path, factors)
    one = factors.group(0) if isinstance(factors, Grouped) else factors
    if not isinstance(one, KroneckerSum):
        return None
    conv: Any = layer
    options = tuple(conv.stride), tuple(conv._conv_padding), tuple(conv.dilation)

    def run(x: Tensor) -> Tensor:
        if isinstance(factors, Grouped):
            parts = torch.chunk(x, factors.groups, 1)
            groups = [factors.group(k) for k in range(factors.groups)]
            terms = [_kron(group, parts[k], options) for k, group in enumerate(groups)]
            return torch.cat(terms, 1)
        return _kron(factors, x, options)

    return run


def _kron(factors: Factors, x: Tensor, options: Geometry) -> Tensor:
    assert isinstance(factors, KroneckerSum)
    return kron_convolution(factors.a, factors.b, x, options)


class _Traceable(nn.Module):
    """run(x) + bias; the bias (O,) has `axes` dimensions behind its channels."""

    def __init__(self, run: Callable[[Tensor], Tensor], bias: Tensor | None, axes: int = 0) -> None:
        super().__init__()
        self.run, self.axes = run, axes
        # A parameter is recorded with what is made of it, where a plain tensor would be a constant.
        self.own_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        y = self.run(input)
        if self.own_bias is None:
            return y
        return y + (self.own_bias.reshape(-1, *(1,) * self.axes) if self.axes else self.own_bias)


def _traced(run: Callable[[Tensor], Tensor], layer: FactoredLayer) -> fx.GraphModule:
    """The calls of `run` with x as a graph. What it makes of the factors alone is made now: these
    tensors are the parameters."""
    bias = layer.bias
    axes = 0 if isinstance(layer, FactoredLinear) else len(layer.factors.shape) - 2
    own_bias = None if bias is None else bias.detach()
    traced = fx.symbolic_trace(_Traceable(run, own_bias, axes))
    named: dict[str, str] = {}
    trained = any(layer._tensor(name).requires_grad for name in layer._names.values())
    for node in traced.graph.nodes:
        if node.op != "get_attr":
            continue
        if node.target not in named:
            tensor = getattr(traced, node.target)
            delattr(traced, node.target)
            is_bias = bias is not None and tensor.data_ptr() == bias.data_ptr()
            named[node.target] = "bias" if is_bias else f"weight_{len(named)}"
            grad = layer.bias.requires_grad if is_bias and layer.bias is not None else trained
            copied = nn.Parameter(tensor.detach().clone(), requires_grad=grad)
            traced.register_parameter(named[node.target], copied)
        node.target = named[node.target]
    traced.recompile()
    return traced


# ---- chains -------------------------------------------------------------------------------------


def _linear_stages(factors: Factors) -> list[_Stage]:
    """The matrices that x passes, first to last, each (out, in)."""
    if isinstance(factors, LowRank):
        matrices = [factors.right, factors.left]
    elif isinstance(factors, CPFactors):
        out_factor, in_factor = factors.factors
        matrices = [(in_factor * factors.weights).T, out_factor]
    elif isinstance(factors, TuckerFactors):
        given = dict(zip(factors.modes, factors.factors, strict=True))
        matrices = [given[1].T] if 1 in given else []
        matrices += [factors.core]
        matrices += [given[0]] if 0 in given else []
    else:
        raise _no_chain(factors)
    return [_Stage(matrix, Plain("Linear")) for matrix in matrices]


def _conv_stages(factors: Factors, conv: Any, path: str) -> list[_Stage]:
    """The convolutions that x passes, first to last, behind the padding that is put ahead."""
    groups = factors.groups if isinstance(factors, Grouped) else 1
    one = factors.group(0) if isinstance(factors, Grouped) else factors
    # Of each group, one behind the other: every tensor has a leading dimension g.
    if isinstance(factors, Grouped):
        stacks = factors.tensors()
    else:
        stacks = {name: t[None] for name, t in factors.tensors().items()}
    kernel = factors.shape[2:]
    axes = len(kernel)
    kind = f"Conv{axes}d"
    ones, zeros = (1,) * axes, (0,) * axes
    geometry = (tuple(conv.stride), tuple(conv._conv_padding), tuple(conv.dilation))

    def pointwise(matrices: Tensor) -> _Stage:  # (g, m, n)
        weight = matrices.reshape(-1, matrices.shape[2], *ones)
        return _Stage(weight, Plain(kind, ones, zeros, ones, groups))

    def sliding(weight: Tensor, groups: int, along: range = range(axes)) -> _Stage:
        """A convolution that strides, pads and dilates along these axes and leaves the others."""
        stride, padding, dilation = (
            tuple(n if k in along else rest for k, n in enumerate(every))
            for every, rest in zip(geometry, (1, 0, 1), strict=True)
        )
        return _Stage(weight, Plain(kind, stride, padding, dilation, groups))

    if isinstance(one, LowRank):
        return [
            sliding(stacks["right"].reshape(-1, *factors.shape[1:]), groups),
            pointwise(stacks["left"]),
        ]
    if isinstance(one, TuckerFactors):
        given = {mode: stacks[f"factors.{k}"] for k, mode in enumerate(one.modes)}
        cores = []
        for k, core in enumerate(stacks["core"]):
            for mode in range(2, axes + 2):
                core = mode_product(core, given[mode][k], mode) if mode in given else core
            cores.append(core)
        stages = [pointwise(given[1].mT)] if 1 in given else []
        stages += [sliding(torch.cat(cores), groups)]
        stages += [pointwise(given[0])] if 0 in given else []
        return stages
    if isinstance(one, TTFactors):
        cores = [stacks[f"cores.{k}"] for k in range(axes + 1, -1, -1)]  # (g, r, n, r')
        trains = [core.transpose(2, 3).flatten(0, 1) for core in cores[1:-1]]  # (g r, r', k)
        return [
            pointwise(cores[0][..., 0]),
            *(
                sliding(_along_axis(t, k, axes), groups, range(k, k + 1))
                for k, t in enumerate(trains)
            ),
            pointwise(cores[-1][:, 0]),
        ]
    if not isinstance(one, CPFactors):
        raise _no_chain(factors)
    # The taps of every axis, (g r, k); the weights go with the first.
    taps = [stacks[f"factors.{k}"].mT.flatten(0, 1) for k in range(2, axes + 2)]
    taps[0] = taps[0] * stacks["weights"].reshape(-1, 1)
    into, out = pointwise(stacks["factors.1"].mT), pointwise(stacks["factors.0"])
    rank = len(taps[0])  # g r
    if path == "fold_depthwise":
        merged = taps[0]
        for t in taps[1:]:
            merged = merged[..., None] * t.reshape(rank, *[1] * (merged.ndim - 1), -1)
        return [into, sliding(merged[:, None], rank), out]
    chain = [sliding(_along(t, k, axes), rank, range(k, k + 1)) for k, t in enumerate(taps)]
    if path == "fold":
        # The input factor goes with the first axis, the output factor with the last: (g, O, r, *k).
        first = into.weight * chain[0].weight
        last = chain[-1].weight.reshape(groups, 1, -1, *chain[-1].weight.shape[2:])
        last = (out.weight.reshape(groups, -1, *out.weight.shape[1:]) * last).flatten(0, 1)
        return [
            sliding(first, groups, range(1)),
            *chain[1:-1],
            sliding(last, groups, range(axes - 1, axes)),
        ]
    return [into, *chain, out]


def _along(taps: Tensor, axis: int, axes: int) -> Tensor:
    """(g r, k) as a depthwise kernel (g r, 1, .., k, ..) along one axis."""
    size = [1] * axes
    size[axis] = taps.shape[1]
    return taps.reshape(-1, 1, *size)


def _along_axis(taps: Tensor, axis: int, axes: int) -> Tensor:
    """(m, n, k) as a kernel (m, n, .., k, ..) along one axis."""
    size = [1] * axes
    size[axis] = taps.shape[2]
    return taps.reshape(*taps.shape[:2], *size)


def _padding(conv: Any) -> list[nn.Module]:
    """The layer that pads ahead of the convolutions, or none."""
    if conv._pad_ahead is None:
        return []
    make = _PADDING_LAYERS[conv._pad_mode][len(conv.kernel_size) - 1]
    return [make(tuple(conv._pad_ahead))]


def _no_chain(factors: Factors) -> UnsupportedError:
    return UnsupportedError(
        f"factors are {type(factors).__name__}, which no chain of torch layers computes; use "
        "path='dense'"
    )
