"""What cannot be shared out is refused with the layer's name or sizes, and stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

import tensorlrf
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfError, UnsupportedError
from tensorlrf.factors import BlockLowRank
from tensorlrf.nn import FactoredLinear, factorize
from tensorlrf.nn.parallel import FactoredColwise, FactoredRowwise, styles


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Four ranks of which this is the first; the others are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    dist.destroy_process_group()


def layer(out: int = 16, inputs: int = 16, method: str = "svd", rank: Any = 6) -> FactoredLinear:
    made = factorize(nn.Linear(inputs, out), method, rank)
    assert isinstance(made, FactoredLinear)
    return made


def blocks(rows: tuple[int, ...]) -> FactoredLinear:
    found, start = [], 0
    for n in rows:
        found.append((start, 0, (torch.randn(n, 1), torch.randn(1, 16))))
        start += n
    return FactoredLinear(BlockLowRank.pack(found, (start, 16)))


def refused(
    made: nn.Module, mesh: DeviceMesh, style: Any, error: type[Exception], say: str
) -> None:
    before = dict(made.named_parameters())
    kind = type(made)
    with pytest.raises(error, match=say) as caught:
        parallelize_module(made, mesh, style)
    assert isinstance(caught.value, TensorlrfError)
    assert type(made) is kind
    after = dict(made.named_parameters())
    assert all(after[name] is p for name, p in before.items())


def test_sizes_that_ranks_do_not_divide(mesh: DeviceMesh) -> None:
    colwise, rowwise = FactoredColwise(), FactoredRowwise()
    refused(layer(out=18), mesh, colwise, ShapeError, "18 outputs.* 4 ranks do not divide")
    refused(layer(inputs=18), mesh, rowwise, ShapeError, "18 inputs.* 4 ranks do not divide")
    sharded = FactoredRowwise(inner="sharded")
    refused(layer(out=18), mesh, sharded, ShapeError, "18 outputs.* or inner='whole'")
    kron = factorize(nn.Linear(16, 18), "kron", 1, shapes=((3, 4), (6, 4)))
    refused(kron, mesh, colwise, ShapeError, "a of .* has 3 outputs")
    refused(blocks((4, 4, 2, 6)), mesh, colwise, ShapeError, "rows 10 to 15 of a block")
    refused(blocks((8, 10)), mesh, colwise, ShapeError, "equal parts of its 18 rows")


def test_layers_and_meshes_that_are_not_served(mesh: DeviceMesh) -> None:
    colwise = FactoredColwise()
    refused(nn.Linear(16, 16), mesh, colwise, UnsupportedError, "ColwiseParallel")
    refused(nn.LayerNorm(16), mesh, colwise, UnsupportedError, "leave it out")
    table = factorize(nn.Embedding(16, 16), "svd", 4)
    refused(table, mesh, colwise, UnsupportedError, "FactoredEmbedding")
    refused(layer(method="tt", rank=2), mesh, colwise, UnsupportedError, "LowRank, KroneckerSum")
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    refused(layer(), square, colwise, ArgumentError, "one of them")
    refused(layer(), mesh, FactoredColwise(inner="half"), ArgumentError, "inner='half' is unknown")
    with tensorlrf.rank_scale(made := layer(), 0.5):
        refused(made, mesh, colwise, UnsupportedError, "leading terms")
    computed = layer()
    nn.utils.parametrizations.orthogonal(computed, "left")
    refused(computed, mesh, colwise, UnsupportedError, "FactoredLinear")
    parallelize_module(shared := layer(), mesh, colwise)
    refused(shared, mesh, colwise, UnsupportedError, "not shared out yet")


def test_a_factor_of_two_layers_stays_one(mesh: DeviceMesh) -> None:
    a, b, c = (layer() for _ in range(3))
    b.right = c.right = a.right
    parallelize_module(a, mesh, FactoredColwise())
    parallelize_module(b, mesh, FactoredColwise())
    assert a.right is b.right
    assert isinstance(a.right, nn.Parameter)
    refused(c, mesh, FactoredRowwise(), ArgumentError, "in another way")


def test_inputs_of_another_layout_are_refused(mesh: DeviceMesh) -> None:
    made = layer(inputs=16)
    parallelize_module(made, mesh, FactoredRowwise())
    with pytest.raises(ShapeError, match=r"input is \(3, 64\).*in_features=16"):
        made(torch.randn(3, 16))


class Attention(nn.Module):
    def __init__(self, heads: int, shared: int) -> None:
        super().__init__()
        self.head_dim = 4
        self.q_proj, self.k_proj = layer(4 * heads, 32), layer(4 * shared, 32)
        self.o_proj = layer(32, 4 * heads)


def test_plans(mesh: DeviceMesh) -> None:
    model = nn.ModuleDict({"a": Attention(8, 2), "up": nn.Linear(32, 18), "norm": nn.LayerNorm(32)})
    words = {"a.*_proj": "colwise", "a.o_proj": "rowwise"}
    with pytest.raises(ShapeError, match=r"plan: a\.k_proj has 2 heads of 4"):
        styles(model, words, mesh)
    with pytest.raises(ArgumentError, match="'b' is no module"):
        styles(model, {"b": "colwise"}, mesh)
    with pytest.raises(ArgumentError, match=r"norm='sideways' is unknown"):
        styles(model, {"norm": "sideways"}, mesh)
    with pytest.raises(ArgumentError, match="a NoneType"):
        styles(model, {"norm": None}, mesh)  # type: ignore[dict-item]  # which is what is tested
    with pytest.raises(ShapeError, match="plan: up has 18 outputs"):
        styles(model, {"up": "colwise"}, mesh)
    parallelize_module(model, mesh, {"a.q_proj": FactoredColwise()})
    with pytest.raises(UnsupportedError, match=r"plan: a\.q_proj: FactoredColwise"):
        styles(model, {"a.q_proj": "colwise"}, mesh)


def test_ties_of_a_plan(mesh: DeviceMesh) -> None:
    a, b = layer(), layer()
    b.right = a.right
    model = nn.ModuleDict({"a": a, "b": b, "x": nn.Linear(16, 16), "y": nn.Linear(16, 16)})
    assert set(styles(model, {"a": "colwise", "b": "colwise"}, mesh)) == {"a", "b"}
    with pytest.raises(ArgumentError, match=r"a\.right, b\.right are one parameter"):
        styles(model, {"a": "colwise", "b": "rowwise"}, mesh)
    with pytest.raises(ArgumentError, match=r"a\.right, b\.right are one parameter"):
        styles(model, {"a": "colwise"}, mesh)
    model["y"].weight = model["x"].weight
    with pytest.raises(ArgumentError, match=r"x\.weight, y\.weight are one parameter"):
        styles(model, {"x": "colwise", "y": "colwise"}, mesh)


def test_what_styles_become(mesh: DeviceMesh) -> None:
    model = nn.ModuleDict({"a": layer(), "b": nn.Linear(16, 16), "norm": nn.LayerNorm(16)})
    given = {"[ab]": "colwise_gather_output", "norm": SequenceParallel()}
    found = styles(model, given, mesh, inner="whole")
    assert repr(found["a"]) == (
        "FactoredColwise(input_layouts=R, output_layouts=R, use_local_output=True, inner='whole')"
    )
    assert type(found["b"]) is ColwiseParallel
    assert found["norm"] is given["norm"]
    model["table"] = factorize(nn.Embedding(16, 16), "svd", 4)
    assert not styles(model, {"table": "embedding_rowwise"}, mesh)
    with pytest.raises(UnsupportedError, match="table is a FactoredEmbedding"):
        styles(model, {"table": "rowwise"}, mesh)
    row = styles(model, {"a": RowwiseParallel(use_local_output=False)}, mesh)["a"]
    assert isinstance(row, FactoredRowwise)
    assert not row.use_local_output
    own = FactoredRowwise()
    assert styles(model, {"a": own}, mesh)["a"] is own


def test_what_needs_the_whole_model_says_so(mesh: DeviceMesh, tmp_path: Path) -> None:
    model = nn.Sequential(layer(), nn.ReLU())
    parallelize_module(model, mesh, {"0": FactoredColwise()})
    batches = [torch.randn(4, 16)]
    for what in (
        lambda: tensorlrf.save(model, tmp_path / "model.safetensors"),
        lambda: tensorlrf.load(tmp_path / "model.safetensors", model),
        lambda: tensorlrf.export(model),
        lambda: tensorlrf.densify(model),
        lambda: tensorlrf.tune(model, batches[0]),
        lambda: tensorlrf.refine(
            model, nn.Sequential(nn.Linear(16, 16), nn.ReLU()), batches, steps=1
        ),
        lambda: tensorlrf.rank_scale(model, 0.5),
        lambda: tensorlrf.gate_ranks(model, batches, error=0.1),
        lambda: tensorlrf.order_by_energy(model),
    ):
        with pytest.raises(UnsupportedError, match=r"0\.left is shared out .*full_state_dict=True"):
            what()  # type: ignore[no-untyped-call]  # each gives something else
    assert not list(tmp_path.iterdir())
    shared = model[0]
    with pytest.raises(UnsupportedError, match="sharded"):
        shared.freeze()
    assert "outputs over 4 ranks" in repr(shared)
    assert shared.weight.shape == (16, 16)
    assert shared.factors.shape == (16, 16)
    assert shared.factors.n_params == 6 * 32


def test_what_is_packed_has_no_factors_of_its_own(mesh: DeviceMesh) -> None:
    made = blocks((4, 4, 4, 4))
    parallelize_module(made, mesh, FactoredColwise())
    with pytest.raises(UnsupportedError, match="state dict"):
        _ = made.factors
    assert made.weight.shape == (16, 16)
    with pytest.raises(UnsupportedError, match="state dict"):
        _ = made.weight + 1
    assert "outputs over 4 ranks" in repr(made)
