"""What holds of any layer that stands for a factored one in layers of torch alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredConvTranspose1d,
    FactoredConvTranspose2d,
    FactoredConvTranspose3d,
    FactoredEmbedding,
    FactoredHFConv1D,
    FactoredLayer,
    FactoredLinear,
)
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tensorlrf.ops import PathTable

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STOCK = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Embedding, nn.Sequential)
PADS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    *(nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)
CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("groups", "padding_mode"),
)
READ = {
    FactoredLinear: ("in_features", "out_features"),
    FactoredHFConv1D: ("nx", "nf"),
    FactoredEmbedding: ("num_embeddings", "embedding_dim", "padding_idx"),
    **dict.fromkeys((FactoredConv1d, FactoredConv2d, FactoredConv3d), CONV),
    **dict.fromkeys(
        (FactoredConvTranspose1d, FactoredConvTranspose2d, FactoredConvTranspose3d),
        (*CONV, "output_padding"),
    ),
}
"""What models read of their layers."""


def agree(got: Tensor, want: Tensor) -> None:
    """To rounding in float64, in which all of it is computed."""
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def check_attributes(stock: nn.Module, layer: FactoredLayer) -> None:
    whole: Any = stock
    if isinstance(stock, nn.Sequential):  # one alone has those of its own class
        for name in READ[type(layer)]:
            assert getattr(whole, name) == getattr(layer, name), name
    if layer.bias is None:
        assert getattr(whole, "bias", None) is None
        return
    # By one name more, but the one parameter of the last layer, wherever it is moved.
    assert any(whole.bias is p for p in stock.parameters())
    assert whole.bias.dtype == whole.weight.dtype
    torch.testing.assert_close(whole.bias.double(), layer.bias.double(), rtol=1e-3, atol=1e-3)


def check_stock(layer: FactoredLayer, path: str, x: Tensor) -> None:
    """The layer on that path, written in layers of torch: it computes the same, is made of these
    layers with one bias at the end, and its parameters are its own."""
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    stock = to_stock_layer(layer, path)
    for m in stock.modules():
        if isinstance(m, fx.GraphModule):
            assert "tensorlrf" not in m.code
        else:
            assert type(m) in (*STOCK, *PADS)
    agree(stock(x), layer(x))
    check_attributes(stock, layer)
    check_attributes(copy.deepcopy(stock).half(), layer)
    layers = [m for m in stock.modules() if next(m.parameters(recurse=False), None) is not None]
    assert all(getattr(m, "bias", None) is None for m in layers[:-1])
    own = {id(p) for p in layer.parameters()}
    assert not own & {id(p) for p in stock.parameters()}
    for p in stock.parameters():
        p.data.zero_()
    assert all(torch.equal(t, state[name]) for name, t in layer.state_dict().items())


def check_every_path(layer: FactoredLayer, x: Tensor) -> None:
    """And the dense layer."""
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        check_stock(layer, path, x)
    agree(to_dense_layer(layer)(x), layer(x))
