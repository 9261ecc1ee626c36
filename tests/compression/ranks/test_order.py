"""Factors turned so that their leading terms say most."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tensorlrf
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredEmbedding, FactoredLayer, FactoredLinear
from tests.compression.test_included import BOTH, language, texts
from tests.draws import seeded
from tests.nn.samples import KINDS, factored, input_of, of_kind
from tests.ops.samples import random_factors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["lowrank", "cp", "tucker2", "kron"])
def test_a_layer_computes_the_same_and_less_is_lost_of_its_weight(kind: str, format: str) -> None:
    f, like = of_kind(format, kind)
    layer, x = factored(f, like), input_of(kind)
    y, parameters = layer(x), list(layer.parameters())
    assert tensorlrf.order_by_energy(layer) == {}
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    torch.testing.assert_close(layer(x), y)
    with tensorlrf.rank_scale(layer, 1):
        part = layer.factors
    torch.testing.assert_close(part.to_dense(), f.by_energy().leading(1).to_dense())


@pytest.mark.parametrize("kind", ["linear", "conv", "conv1d"])
def test_by_inputs_it_loses_as_little_of_the_outputs_as_svd_with_their_moments(kind: str) -> None:
    """Small inputs are of no use to the outputs, large weights or not."""
    f, like = of_kind("lowrank", kind)
    layer, scale = nn.Sequential(factored(f, like)), torch.tensor([1e-3, 1.0, 1.0, 2.0])
    x = input_of(kind, batch=8) * (scale.reshape(-1, *[1] * len(f.shape[2:])))
    y = layer(x)
    tensorlrf.order_by_energy(layer)
    with tensorlrf.rank_scale(layer, 1):
        plain = torch.dist(layer(x), y)
    tensorlrf.order_by_energy(layer, [x])
    torch.testing.assert_close(layer(x), y)
    with tensorlrf.rank_scale(layer, 1):
        aware = torch.dist(layer(x), y)
    assert aware < plain
    if kind == "linear":
        values = torch.linalg.svdvals(y - like.bias)
        torch.testing.assert_close(aware, values[1:].norm())


def test_what_compress_gives_is_a_good_prefix_at_every_rank_once_ordered() -> None:
    """Fitted to inputs, and in the metric of the model's outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    batches = [torch.randn(32, 12) * torch.logspace(-1, 1, 12) for _ in range(4)]
    small, _ = tensorlrf.compress(model, keep_params=0.7, method="svd", calibration=batches)
    tensorlrf.order_by_energy(small, batches)
    first = small[0]
    x = torch.cat(batches)
    y = first(x)
    values = torch.linalg.svdvals((y - first.bias).double().detach())
    for r in range(1, first.factors.rank + 1):
        with tensorlrf.rank_scale(small, {"0": r}):
            missing = float(torch.dist(first(x), y).detach())
        assert missing <= float(values[r:].norm()) * (1 + 1e-4) + 1e-4 * float(values[0])


def test_layers_inside_of_packed_modules_are_turned_and_scaled() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True))
    model[0].self_attn = attention
    batches = [torch.randn(8, 12, 16) for _ in range(6)]
    small, _ = tensorlrf.compress(
        model.eval(), keep_params=0.7, calibration=batches, progress=False, allocation="uniform"
    )
    with torch.no_grad():
        y = small(batches[0])
        assert tensorlrf.order_by_energy(small, batches) == {}
        torch.testing.assert_close(small(batches[0]), y, rtol=1e-4, atol=1e-4)
        with tensorlrf.rank_scale(small, 0.5) as scaled:
            assert "0.self_attn.out_proj" in scaled.ranks
            torch.testing.assert_close(tensorlrf.densify(small)(batches[0]), small(batches[0]))


@pytest.mark.parametrize("padding", [1, "same"])
def test_transposed_convolutions_and_those_that_pad_by_themselves(padding: object) -> None:
    torch.manual_seed(0)
    transposed = tensorlrf.nn.factorize(nn.ConvTranspose2d(4, 6, 2, stride=2), "svd", 4)
    padded: nn.Module = tensorlrf.nn.factorize(nn.Conv2d(6, 5, 3, padding=padding), "svd", 4)
    model, x = nn.Sequential(transposed, padded), torch.randn(4, 4, 5, 5)
    y = model(x)
    assert tensorlrf.order_by_energy(model, [x]) == {}
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), tensorlrf.rank_scale(model, {"0": 2}):
        lost = torch.dist(transposed(x), y_of(transposed, x))
    tensorlrf.order_by_energy(model)
    with torch.no_grad(), tensorlrf.rank_scale(model, {"0": 2}):
        assert lost <= torch.dist(transposed(x), y_of(transposed, x)) * (1 + 1e-5)


def y_of(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """On all ranks, within a rank_scale."""
    with tensorlrf.rank_scale(layer, 1.0):
        y: torch.Tensor = layer(x)
    return y


def test_what_cannot_be_turned_is_left_and_told() -> None:
    shared = FactoredLinear(random_factors("lowrank", (6, 6), 3))
    other = FactoredLinear(random_factors("lowrank", (6, 6), 3, seed=1))
    other.right = shared.right
    computed = FactoredLinear(random_factors("lowrank", (6, 6), 3))
    parametrize.register_parametrization(computed, "left", nn.Identity())
    model = nn.ModuleDict(
        {
            "ring": FactoredLinear(random_factors("tr", (6, 6))),
            "shared": shared,
            "other": other,
            "computed": computed,
            "table": FactoredEmbedding(random_factors("lowrank", (6, 6), 3)),
        }
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    left = tensorlrf.order_by_energy(model)
    assert set(left) == {"ring", "shared", "other", "computed"}
    assert "no leading terms" in left["ring"]
    assert left["shared"] == left["other"] == "it shares factors with another layer"
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("table"))


def test_a_layer_that_no_batch_reaches_follows_its_weight() -> None:
    f = random_factors("lowrank", (5, 5), 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = FactoredLinear(f), FactoredLinear(f)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.used(x)
            return y

    model = Model()
    tensorlrf.order_by_energy(model, [seeded(4, 5) * torch.arange(5)])
    torch.testing.assert_close(model.unused.factors.to_dense(), f.to_dense())
    assert torch.equal(model.unused.left, f.by_energy().left)
    assert not torch.equal(model.used.left, model.unused.left)


def test_padding_stays_zero_and_a_frozen_layer_sees_the_change() -> None:
    torch.manual_seed(0)
    table = tensorlrf.nn.factorize(nn.Embedding(9, 6, padding_idx=2), "svd", 4)
    tensorlrf.order_by_energy(table)
    assert torch.count_nonzero(table(torch.tensor([2]))) == 0
    layer: FactoredLayer = FactoredLinear(random_factors("lowrank", (6, 5), 3)).eval()
    layer.path_table = tensorlrf.ops.PathTable.single("dense")
    layer.freeze()
    x = seeded(2, 5)
    with torch.no_grad():
        y = layer(x)
        tensorlrf.order_by_energy(layer)
        torch.testing.assert_close(layer(x), y)


def test_bad_models_and_batches_are_refused() -> None:
    with pytest.raises(ArgumentError, match="model is a"):
        tensorlrf.order_by_energy(3)  # type: ignore[arg-type]
    layer = FactoredLinear(random_factors("lowrank", (6, 5), 3))
    with pytest.raises(ArgumentError, match="calibration"):
        tensorlrf.order_by_energy(layer, 3)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_tied_table_is_turned_once_for_all_that_run_on_it(calibrated: bool) -> None:
    small: Any = tensorlrf.compress(language(tied=True), keep_total=0.6, **BOTH)[0]
    with torch.no_grad():  # as refinement might leave it
        for p in small.embed.parameters():
            p.mul_(torch.linspace(0.1, 3.0, p.shape[-1]))
    parts = list(small.embed.parameters())
    tokens = texts(2)
    before = small(tokens[0])
    whole = small.embed.factors.detach()
    assert tensorlrf.order_by_energy(small, tokens if calibrated else None) == {}
    for layer in (small.embed, small.lm_head):
        assert all(a is b for a, b in zip(parts, layer.parameters(), strict=True))
    torch.testing.assert_close(small(tokens[0]), before, rtol=1e-4, atol=1e-5)
    with tensorlrf.rank_scale(small, 3):
        table, head = small.embed.factors, small.lm_head.factors
    best = whole.by_energy().leading(3).to_dense()
    torch.testing.assert_close(table.to_dense(), best, rtol=1e-4, atol=1e-5)
    assert torch.equal(table.to_dense(), head.to_dense())
