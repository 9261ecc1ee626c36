"""torchao's `quantize_` on factored layers: run by test_torchao.py in a process that has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import (
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quant_api,
    quantize_,
)
from torchao.quantization.granularity import PerGroup

import tensorlrf
import tensorlrf.torchao
from tensorlrf.errors import TensorlrfWarning, UnsupportedError
from tensorlrf.nn import FactoredConv2d, FactoredEmbedding, FactoredLinear, factorize
from tensorlrf.ops import PathTable
from tests.hf.models import MODELS, output

CONFIGS = {
    "int8": Int8WeightOnlyConfig(),
    "int8, activations too": Int8DynamicActivationInt8WeightConfig(),
    "int4 in groups": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
    "float8": Float8WeightOnlyConfig(),
}
INT8 = CONFIGS["int8"]


def on(path: str, layer: Any) -> Any:
    layer.path_table = PathTable.single(path)
    return layer


def dense(m: int = 64, n: int = 64) -> nn.Linear:
    torch.manual_seed(m + n)
    return nn.Linear(n, m, device="cpu", dtype=torch.float32)


def factored(word: str = "svd", rank: Any = 16) -> Any:
    return on("chain", factorize(dense(), word, rank))


def net() -> nn.Sequential:
    """Every format with Linear layers, a dense path, dense layers before and behind."""
    return nn.Sequential(
        dense(), factored(), nn.GELU(), factored("cp"), on("dense", factored()), factored("tucker"),
        nn.ReLU(), dense(),
    ).eval()  # fmt: skip


def rows(n: int = 5) -> Tensor:
    return torch.randn(n, 64, generator=torch.Generator(device="cpu").manual_seed(n), device="cpu")


def out(model: nn.Module, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(rows() if x is None else x)
    return y


def kinds(model: nn.Module) -> list[str]:
    return [type(m.weight).__name__ for m in model.modules() if type(m) is nn.Linear]


@pytest.mark.parametrize("word", CONFIGS)
def test_it_acts_as_on_what_export_makes(word: str) -> None:
    small = net()
    exported = tensorlrf.export(small)
    before = out(small)
    quantize_(exported, CONFIGS[word])
    quantize_(small, CONFIGS[word])
    assert not any(isinstance(m, FactoredLinear) for m in small.modules())
    assert kinds(small) == kinds(exported)
    assert len(set(kinds(small))) == 1
    assert kinds(small)[0] not in ("Parameter", "Tensor")
    for x in (rows(), rows(1), rows(40).reshape(2, 20, 64)):
        assert torch.equal(out(small, x), out(exported, x))
    # By eight bits 1% and by four some 15% of the norm, through six layers.
    assert 0 < (out(small) - before).norm() < 0.5 * before.norm()


def test_in_half_precision() -> None:
    small = net().bfloat16()
    exported = tensorlrf.export(small)
    quantize_(exported, INT8)
    quantize_(small, INT8)
    assert torch.equal(out(small, rows().bfloat16()), out(exported, rows().bfloat16()))


def test_the_model_may_be_a_layer_and_is_the_same_object_after() -> None:
    alone = factored()
    exported = tensorlrf.export(alone)
    quantize_(alone, INT8)
    quantize_(exported, INT8)
    assert torch.equal(out(alone), out(exported))
    inside = nn.Sequential(factored())
    inside.order = [inside[0]]  # beside the tree of modules
    quantize_(inside, INT8)
    assert inside[0] is inside.order[0]
    again = copy.deepcopy(inside)
    assert torch.equal(out(again), out(inside))


def test_it_is_smaller() -> None:
    def held(model: nn.Module) -> int:
        return sum(
            one.numel() * one.element_size()
            for p in model.parameters()
            for one in ([p.qdata, p.scale] if hasattr(p, "qdata") else [p])
        )

    small = net()
    bytes_before = held(small)
    quantize_(small, INT8)
    assert held(small) < 0.35 * bytes_before  # a scale of four bytes for 16 or 64 codes, and biases


@pytest.mark.parametrize("name", ["llama", "llama with its table", "qwen2", "gpt2"])
def test_models_of_transformers(name: str) -> None:
    def all_but_tables(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and "embed" not in name

    small = MODELS[name]()
    exported = tensorlrf.export(small)
    quantize_(exported, INT8, filter_fn=all_but_tables)
    quantize_(small, INT8)
    assert torch.equal(output(small), output(exported))


# ---- what stays, and is said ---------------------------------------------------------------------


@pytest.mark.parametrize("word", ["monarch", "blast", "blr", "kron", "tt"])
def test_a_format_without_linear_layers(word: str) -> None:
    small = nn.Sequential(on("chain", factorize(dense(), word, 0.5)), dense())
    before = out(small[:1])
    with pytest.warns(TensorlrfWarning, match="on the format '.*' is not made of Linear layers"):
        quantize_(small, INT8)
    assert torch.equal(out(small[:1]), before)
    assert kinds(small)[-1] == "Int8Tensor"


def test_an_lstm_reads_its_matrices() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(16, 16, device="cpu", dtype=torch.float32)
    small = nn.ModuleList([factorize(lstm, "svd", 4), dense()])
    x = torch.ones(3, 2, 16, device="cpu")
    before = small[0](x)[0]
    with pytest.warns(TensorlrfWarning, match="a FactoredLSTM reads its matrices by itself"):
        quantize_(small, INT8)
    assert torch.equal(small[0](x)[0], before)
    assert kinds(small)[-1] == "Int8Tensor"


def test_convolutions_and_embeddings_stay_as_those_of_torch_do() -> None:
    small = nn.ModuleList(
        [
            factorize(nn.Conv2d(4, 8, 3, device="cpu"), "svd", 2),
            factorize(nn.Embedding(20, 16, device="cpu"), "svd", 4),
        ]
    )
    before = {name: t.clone() for name, t in small.state_dict().items()}
    quantize_(small, INT8)
    assert isinstance(small[0], FactoredConv2d)
    assert isinstance(small[1], FactoredEmbedding)
    assert all(torch.equal(t, before[name]) for name, t in small.state_dict().items())


# ---- filters and names ---------------------------------------------------------------------------


def test_filters() -> None:
    def all_but_the_first(module: nn.Module, name: str) -> bool:
        return name != "0" and isinstance(module, (nn.Linear, FactoredLinear))

    small = nn.Sequential(factored(), factored())
    quantize_(small, INT8, filter_fn=all_but_the_first)
    assert isinstance(small[0], FactoredLinear)
    assert kinds(small) == ["Int8Tensor"] * 2
    every = nn.Sequential(factored(), factored())
    quantize_(every, INT8, filter_fn=None)
    assert kinds(every) == ["Int8Tensor"] * 4


# Told of the very configuration that is tried.
@pytest.mark.filterwarnings("ignore:Config Deprecation. _default is deprecated:UserWarning")
def test_layers_by_name() -> None:
    for names in ({"1": INT8}, {"_default": INT8, "0": None}, {"re:[1-9]": INT8}):
        small = nn.Sequential(factored(), factored())
        quantize_(small, FqnToConfig(names), filter_fn=None)
        assert isinstance(small[0], FactoredLinear)
        assert kinds(small) == ["Int8Tensor"] * 2
    small = nn.Sequential(factored())
    before = out(small)
    with pytest.raises(UnsupportedError, match=r"the parameter 'left' of a factored layer.*name"):
        quantize_(small, FqnToConfig({"0.left": INT8}), filter_fn=None)
    assert torch.equal(out(small), before)


def test_a_layer_with_hooks_is_refused_as_export_refuses_it() -> None:
    small = nn.Sequential(factored())
    before = out(small)
    hook = small[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="has hooks"):
        quantize_(small, INT8)
    assert isinstance(small[0], FactoredLinear)
    hook.remove()
    assert torch.equal(out(small), before)


def test_it_is_registered_once() -> None:
    handlers, default = dict(quant_api._QUANTIZE_CONFIG_HANDLER), quantize_.__defaults__
    tensorlrf.torchao.register()
    assert handlers == quant_api._QUANTIZE_CONFIG_HANDLER
    assert quantize_.__defaults__ == default


def test_a_quantised_model_is_not_saved_as_one_of_ours(tmp_path: Any) -> None:
    small = net()
    quantize_(small, INT8)
    with pytest.raises(UnsupportedError, match="Int8Tensor"):
        tensorlrf.save(small, tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())
    torch.save(small.state_dict(), tmp_path / "small.pt")
    again = tensorlrf.export(net())
    quantize_(again, INT8)
    again.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True), assign=True)
    assert torch.equal(out(again), out(small))
