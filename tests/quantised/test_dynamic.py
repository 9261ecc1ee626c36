"""torch's own dynamic int8 acts on what `export` makes of factored layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.nn import factorize
from tensorlrf.ops import PathTable

pytestmark = [
    # It is deprecated in favour of torchao, and there; what it makes on the way, too.
    # What docs/quantised.md says of this module of torch.
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]


def test_both_factors_are_quantised() -> None:
    torch.manual_seed(0)
    layer = factorize(nn.Linear(64, 64, device="cpu"), "svd", 16).eval()
    layer.path_table = PathTable.single("chain")
    small = nn.Sequential(layer, nn.ReLU(), nn.Linear(64, 8, device="cpu"))
    eight = torch.ao.quantization.quantize_dynamic(tensorlrf.export(small))
    kinds = [type(m).__module__ for m in eight.modules() if type(m).__name__ == "Linear"]
    assert len(kinds) == 3
    assert set(kinds) == {"torch.ao.nn.quantized.dynamic.modules.linear"}
    x = torch.randn(5, 64, device="cpu")
    with torch.no_grad():
        want, got = small(x), eight(x)
    # Weights and inputs by a scale of their whole tensor: some 1% in each of three layers.
    assert 0 < float((got - want).norm() / want.norm()) < 0.1
