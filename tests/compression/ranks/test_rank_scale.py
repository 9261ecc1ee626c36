"""A model on the leading terms of its factors, for a while."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.nn import FactoredConvTranspose2d, FactoredEmbedding, FactoredLayer, FactoredLinear
from tensorlrf.nn.ranks.leading import share_of
from tensorlrf.ops import PathTable
from tests.draws import seeded
from tests.nn.samples import KINDS, factored, input_of, of_kind, transposed_conv
from tests.ops.samples import random_factors, random_grouped


def mlp(rank: int = 8, **options: Any) -> nn.Sequential:
    """Three layers on low rank."""
    torch.manual_seed(0)
    dense = [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10)]
    small = [
        tensorlrf.nn.factorize(m, "svd", rank) if k % 2 == 0 else m for k, m in enumerate(dense)
    ]
    return nn.Sequential(*small)


def ranks(model: nn.Sequential) -> list[Any]:
    return [m.factors.rank for m in model if isinstance(m, FactoredLayer)]


def state(layer: FactoredLayer) -> tuple[Any, ...]:
    return (layer.factors.rank, layer.path_table, layer.paths, layer.is_frozen, repr(layer))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_layer_computes_what_one_on_its_leading_terms_does(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(tuple(KINDS)))
    format = data.draw(st.sampled_from(("lowrank", "cp", "tucker2", "kron")))
    f, like = of_kind(format, kind)
    layer, x = factored(f, like), input_of(kind)
    if kind not in ("linear", "conv1d", "grouped1d") and data.draw(st.booleans()):
        layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        layer, x = layer.to(memory_format=layout), x.to(memory_format=layout)
    before, y = state(layer), layer(x)
    part = f.leading(share_of(f.rank, 0.5))
    with tensorlrf.rank_scale(layer, 0.5):
        assert layer.factors.rank == part.rank
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            expected = factored(part, like, path)(x)
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.weight.clone(), part.to_dense())
    assert state(layer) == before
    assert torch.equal(layer(x), y)


def test_a_transposed_convolution_runs_on_fewer_terms() -> None:
    for format, groups in (("lowrank", 1), ("cp", 2), ("tucker2", 1), ("kron", 2)):
        f = random_grouped(format, (6, 4 // groups, 3, 3), groups, rank=4)
        like, x = transposed_conv(f, stride=2), seeded(2, 4, 5, 5)
        layer, part = FactoredConvTranspose2d.from_factors(f, like), f.leading(2)
        with tensorlrf.rank_scale(layer, 2):
            for path in layer.paths:
                layer.path_table = PathTable.single(path)
                expected = FactoredConvTranspose2d.from_factors(part, like)(x)
                torch.testing.assert_close(layer(x), expected)


def test_an_embedding_looks_up_in_fewer_terms() -> None:
    for format in ("lowrank", "cp", "tucker2"):
        f = random_factors(format, (7, 6), 4)
        table, at = FactoredEmbedding(f), torch.tensor([[0, 6], [3, 3]])
        with tensorlrf.rank_scale(table, 2):
            torch.testing.assert_close(table(at), f.leading(2).to_dense()[at])
        torch.testing.assert_close(table(at), f.to_dense()[at])


def test_no_parameter_is_copied_and_gradients_reach_those_that_ran() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 5), 4))
    layer.path_table = PathTable.single("chain")
    parameters = list(layer.parameters())
    with tensorlrf.rank_scale(layer, 0.5):
        assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
        held = layer._held()
        assert [t.data_ptr() for t in held] == [p.data_ptr() for p in parameters]
        layer(seeded(3, 5)).sum().backward()
    assert layer.left.grad is not None
    assert torch.count_nonzero(layer.left.grad[:, 2:]) == 0
    assert torch.count_nonzero(layer.left.grad[:, :2]) == 12


def test_shares_round_down_to_one_at_least() -> None:
    assert [share_of(9, s) for s in (2 / 3, 0.5, 0.01, 1.0)] == [6, 4, 1, 9]
    assert share_of((4, 1), 0.5) == (2, 1)


def test_nested_settings_refer_to_the_whole_and_end_in_any_order() -> None:
    model = mlp()
    with tensorlrf.rank_scale(model, 0.5):
        assert ranks(model) == [4, 4, 4]
        with tensorlrf.rank_scale(model, {"0": 0.25, "4": 7}):
            assert ranks(model) == [2, 4, 7]
        assert ranks(model) == [4, 4, 4]
        with tensorlrf.rank_scale(model, 1.0):
            assert ranks(model) == [8, 8, 8]
        assert ranks(model) == [4, 4, 4]
    assert ranks(model) == [8, 8, 8]
    outer, inner = tensorlrf.rank_scale(model, 0.5), tensorlrf.rank_scale(model, 0.25)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert ranks(model) == [2, 2, 2]
    inner.__exit__(None, None, None)
    assert ranks(model) == [8, 8, 8]


def test_an_error_inside_restores_all() -> None:
    model = mlp()
    before = [state(m) for m in model if isinstance(m, FactoredLayer)]
    with pytest.raises(KeyError), tensorlrf.rank_scale(model, 0.5):
        raise KeyError
    assert before == [state(m) for m in model if isinstance(m, FactoredLayer)]


def test_a_second_thread_is_told() -> None:
    model, told = mlp(), []

    def enter() -> None:
        try:
            with tensorlrf.rank_scale(model, {"0": 0.25, "4": 0.25}):
                told.append(model[0].factors.rank)
        except UnsupportedError as error:
            told.append(str(error))

    with tensorlrf.rank_scale(model, {"4": 0.5}):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert model[0].factors.rank == 8  # what it had set before it was refused
    assert "4 runs at a rank that another thread has set" in told[0]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert told[1:] == [2]


def test_names_globs_and_what_is_left() -> None:
    layers = {
        "a": FactoredLinear(random_factors("lowrank", (6, 5), 4)),
        "b": FactoredLinear(random_factors("tr", (6, 5))),
        "c": FactoredLinear(random_factors("tucker2", (6, 5), 4)),
        "d": nn.Linear(2, 2),
    }
    model = nn.ModuleDict({"x": nn.ModuleDict(layers), "y": layers["a"]})
    both = tensorlrf.rank_scale(model, {"x.*": 3, "y": 2})
    assert both.ranks == {"x.a": 2, "x.c": (3, 3)}
    assert both.left == {"x.b": "tr has no leading terms"}
    assert "x.b is left" in str(both)
    assert tensorlrf.rank_scale(model, {"x.c": (2, 4)}).ranks == {"x.c": (2, 4)}
    assert tensorlrf.rank_scale(model, {"*": 99}).ranks == {"x.a": 4, "x.c": (4, 4)}
    with pytest.raises(UnsupportedError, match=r"x\.b runs on tr"):
        tensorlrf.rank_scale(model, {"x.b": 0.5})
    for wrong, told in (
        ({"q": 0.5}, "'q' matches no"),
        ({"x.d": 0.5}, "matches no"),
        ({1: 0.5}, "name"),
    ):
        with pytest.raises(ArgumentError, match=told):
            tensorlrf.rank_scale(model, wrong)  # type: ignore[arg-type]
    with pytest.raises(RankError, match=r"rank 5 of x\.a is above its rank 4"):
        tensorlrf.rank_scale(model, {"x.a": 5})
    with pytest.raises(RankError, match="must be as its rank"):
        tensorlrf.rank_scale(model, {"x.a": (2, 2)})
    for scale in (0.0, 1.5, 0, -1, True, "half", float("nan"), ()):
        with pytest.raises(ArgumentError, match="scale="):
            tensorlrf.rank_scale(model, scale)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="model is a"):
        tensorlrf.rank_scale(3, 0.5)  # type: ignore[arg-type]
    assert tensorlrf.rank_scale(nn.Linear(2, 2), 0.5).ranks == {}


def test_a_frozen_layer_is_frozen_again_and_never_runs_on_the_whole_weight() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 5), 4)).eval()
    layer.path_table = PathTable.single("dense")
    layer.freeze()
    x = seeded(3, 5)
    with torch.no_grad():
        whole = layer(x)
        with tensorlrf.rank_scale(layer, 2):
            assert not layer.is_frozen
            part = x @ layer.factors.to_dense().T
            torch.testing.assert_close(layer(x), part)
            layer.freeze()
            torch.testing.assert_close(layer(x), part)
        assert layer.is_frozen
        assert torch.equal(layer(x), whole)
        with tensorlrf.rank_scale(layer, 2):
            layer.left.mul_(2)
        torch.testing.assert_close(layer(x), 2 * whole)
        layer.freeze()
    with tensorlrf.rank_scale(layer, 2):
        layer.train()
    assert not layer.is_frozen


def test_a_layer_may_be_cast_inside() -> None:
    model, x = mlp().double(), seeded(3, 16)
    with tensorlrf.rank_scale(model, 0.5):
        model.float()
        model(x.float())
    torch.testing.assert_close(model(x.float()), mlp()(x.float()))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_made_inside_stays_at_its_rank(how: str) -> None:
    model, x = mlp(), seeded(3, 16, dtype=torch.float32)
    with tensorlrf.rank_scale(model, 0.5):
        twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        y = model(x)
    assert torch.equal(twin(x), y)
    with tensorlrf.rank_scale(twin, 1.0):
        assert torch.equal(twin(x), model(x))
    assert torch.equal(twin(x), y)


def test_inside_models_are_exported_small_and_saved_whole(tmp_path: Path) -> None:
    model, x = mlp(), seeded(3, 16, dtype=torch.float32)
    with tensorlrf.rank_scale(model, 0.5):
        y = model(x)
        dense, stock = tensorlrf.densify(model), tensorlrf.export(model)
        tensorlrf.save(model, tmp_path / "m.safetensors")
    torch.testing.assert_close(dense(x), y)
    torch.testing.assert_close(stock(x), y)
    plain = nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10)
    )
    loaded = tensorlrf.load(tmp_path / "m.safetensors", plain)
    assert torch.equal(loaded(x), model(x))


def test_it_is_compiled_once_for_each_setting() -> None:
    model, x = mlp(), seeded(5, 16, dtype=torch.float32)
    for layer in model:
        if isinstance(layer, FactoredLayer):
            layer.path_table = PathTable.single("chain")
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(1)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    settings_of: list[Any] = [1.0, 0.5, {"0": 2, "*": 0.75}, 1.0, 0.5, {"0": 2, "*": 0.75}]
    with torch.no_grad():
        for k, setting in enumerate(settings_of):
            with tensorlrf.rank_scale(model, setting):
                torch.testing.assert_close(compiled(x), model(x))
            assert len(graphs) == min(k + 1, 3)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 3
    torch.compiler.reset()
