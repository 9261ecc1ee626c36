"""Layers on leaves and sums run, are saved, loaded, exported and made dense again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.nn import FactoredLayer, factorize
from tests.draws import seeded
from tests.metrics import second_moments

METHODS: dict[str, dict[str, Any]] = {
    "lplr": {"rank": 4, "codes": "int4", "group": 4},
    "low_rank_plus_sparse": {"rank": 2, "sparsity": 0.9},
    "low_rank_plus_quantized": {"rank": 2, "codes": "fp8"},
    "dictionary": {"rank": 6, "nonzeros": 2, "random_state": 0},
    "staged": {"rank": 3, "stages": ("svd:int8", "monarch")},
}
"""Those that serve a linear layer, and how they are called."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Linear(12, 16), nn.Linear(16, 8, bias=False)
    return nn.Sequential(first, nn.ReLU(), second)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_on_it_is_saved_and_loaded_exported_and_dense_again(
    method: str, tmp_path: Path
) -> None:
    model, x = network(), seeded(5, 12, dtype=torch.float32)
    small = network()
    gram = second_moments(seeded(12, 90, seed=4))
    small[0] = factorize(small[0], method, gram=gram, **METHODS[method])
    y = small(x)
    factors = small[0].factors
    torch.testing.assert_close(
        small[0](x), nn.functional.linear(x, factors.to_dense(), small[0].bias)
    )
    assert not torch.allclose(y, model(x), atol=1e-6)

    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", model)
    assert torch.equal(again(x), y)
    assert type(again[0].factors) is type(factors)
    assert again[0].factors.n_bytes == factors.n_bytes
    tensorlrf.io.save_factors(factors, tmp_path / "f.safetensors")
    assert torch.equal(
        tensorlrf.io.load_factors(tmp_path / "f.safetensors").to_dense(), factors.to_dense()
    )

    for stock in (tensorlrf.export(small), tensorlrf.densify(small)):
        assert not any(isinstance(m, FactoredLayer) for m in stock.modules())
        torch.testing.assert_close(stock(x), y)
    halves = small.to(torch.bfloat16)  # codes stay what they are
    assert halves[0].factors.dtype == torch.bfloat16
    assert halves(x.bfloat16()).dtype == torch.bfloat16
