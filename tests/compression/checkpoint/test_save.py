from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint._architecture import describe, fingerprint
from tensorlrf.compression.checkpoint._file import load, save, write_checkpoint
from tensorlrf.compression.checkpoint._inspect import inspect
from tensorlrf.compression.checkpoint.named_tensors import named_tensors
from tensorlrf.decomposition import svd
from tensorlrf.files.safetensors import DTYPES
from tensorlrf.nn import FactoredLayer, factorize
from tensorlrf.ops import PathTable
from tests.compression.checkpoint.saved import Net, blank, compressed, equal, image, net, same
from tests.processes import printed


def round_trip(model: nn.Module, architecture: nn.Module, folder: Path) -> Any:
    save(model, folder / "model.safetensors")
    return load(folder / "model.safetensors", architecture)


# ---- the architecture --------------------------------------------------------------------------


def test_a_model_and_its_compressed_form_are_one_architecture() -> None:
    wanted = fingerprint(net())
    assert fingerprint(net(seed=1)) == wanted
    assert fingerprint(blank()) == wanted
    for model in (compressed(), compressed().half(), compressed().train(), compressed().to("meta")):
        assert fingerprint(model) == wanted


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "head", nn.Linear(24, 17)),
        lambda m: setattr(m, "head", nn.Sequential(nn.Linear(24, 16))),
        lambda m: setattr(m, "more", nn.ReLU()),
        lambda m: m.features.__setitem__(2, nn.GELU()),
        lambda m: setattr(m.features[3], "stride", (1, 1)),
        lambda m: setattr(m.features[3], "padding_mode", "zeros"),
        lambda m: setattr(m.features[0], "padding", (1, 1)),
        lambda m: m.register_buffer("more", torch.zeros(1)),
        lambda m: m.register_parameter("more", nn.Parameter(torch.zeros(1))),
    ],
)
def test_another_architecture_has_another_fingerprint(change: Any) -> None:
    model = net()
    change(model)
    assert fingerprint(model) != fingerprint(net())


def test_a_description_has_a_line_for_each_module_in_order() -> None:
    assert list(describe(compressed())) == [
        n for n, _ in net().named_modules(remove_duplicate=False)
    ]


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("architecture", [blank, lambda: net(seed=5), lambda: compressed(seed=5)])
def test_outputs_are_equal_bit_for_bit(
    dtype: torch.dtype, architecture: Any, tmp_path: Path
) -> None:
    model = compressed().to(dtype)
    given = architecture()
    before = copy.deepcopy(given)
    again = round_trip(model, given, tmp_path)
    with torch.no_grad():
        assert equal(again(image(dtype)), model(image(dtype)))
    assert isinstance(again, Net)
    assert isinstance(again.head, FactoredLayer)
    assert again.hidden is again.again
    assert all(p.tensor.dtype in (dtype, torch.int64, torch.float32) for p in named_tensors(again))
    if not any(p.is_meta for p in given.parameters()):
        assert same(given, before)
    assert not {p.data_ptr() for p in again.parameters()} & {
        p.data_ptr() for p in given.parameters()
    }


def test_a_dense_model_comes_back(tmp_path: Path) -> None:
    model = net()
    assert same(round_trip(model, blank(), tmp_path), model)


def test_a_model_that_is_one_layer(tmp_path: Path) -> None:
    linear = nn.Linear(6, 5)
    again = round_trip(factorize(linear, "svd", rank=2), linear, tmp_path)
    assert isinstance(again, FactoredLayer)
    assert type(linear) is nn.Linear


def test_recipe_tables_and_type_name_come_back(tmp_path: Path) -> None:
    model = compressed()
    head: Any = model.head
    head.recipe = {"method": "svd", "options": {"tol": 1e-7, "modes": [0, 1]}, "rank": 2}
    head.stands_for = "Linear"
    head.measured = {"a device": PathTable(((16, "chain"), (None, "dense")))}
    again = round_trip(model, blank(), tmp_path)
    assert again.head.recipe == head.recipe
    assert again.head.measured == head.measured
    assert again.hidden.recipe == {"method": "svd", "rank": 3}


def test_what_was_measured_here_runs_again(tmp_path: Path) -> None:
    model = compressed()
    head: Any = model.head
    table = PathTable(((7, "dense"), (None, "chain")))
    head.set_measured(head.device_key, table)
    assert round_trip(model, blank(), tmp_path).head.path_table == table


def test_flags_are_those_of_the_architecture(tmp_path: Path) -> None:
    given = net().train()
    given.features.eval()
    given.head.requires_grad_(False)
    given.features[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    again = round_trip(compressed(), given, tmp_path)
    assert {n: m.training for n, m in again.named_modules()} == {
        n: m.training for n, m in given.named_modules()
    }
    frozen = {n for n, p in again.named_parameters() if not p.requires_grad}
    assert frozen == {"head.left", "head.right", "head.bias", "features.0.weight"}


def test_the_same_model_makes_the_same_file(tmp_path: Path) -> None:
    save(compressed(), tmp_path / "a")
    save(compressed(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_in_a_new_process(tmp_path: Path) -> None:
    model = compressed()
    save(model, tmp_path / "model.safetensors")
    torch.save(image(), tmp_path / "x.pt")
    printed(
        "import torch; from tensorlrf.compression.checkpoint._file import load\n"
        "from tests.compression.checkpoint.saved import blank\n"
        f"folder = {str(tmp_path)!r}\n"
        "model = load(folder + '/model.safetensors', blank())\n"
        "with torch.no_grad(): y = model(torch.load(folder + '/x.pt'))\n"
        "torch.save(y, folder + '/y.pt')\n"
    )
    with torch.no_grad():
        assert equal(torch.load(tmp_path / "y.pt"), model(image()))


# ---- layouts, ties, other modules --------------------------------------------------------------


def test_memory_formats_come_back(tmp_path: Path) -> None:
    model = compressed().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.head.left.data = model.head.left.data.T.contiguous().T  # type: ignore[union-attr]
    again = round_trip(model, blank(), tmp_path)
    assert {p.name: p.tensor.stride() for p in named_tensors(again)} == {
        p.name: p.tensor.stride() for p in named_tensors(model)
    }
    assert same(again, model)


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.back = nn.Linear(7, 4, bias=False)
        self.inner = nn.Linear(4, 4)
        if tie:
            self.out.weight = self.embed.weight
            self.back.weight = nn.Parameter(self.embed.weight.detach().T)
        self.first_row = self.embed.weight.detach()[:1]
        self.held = [self.embed.weight]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tied_weights_stay_tied(device: str, tmp_path: Path) -> None:
    model = Tied()
    model.inner = factorize(model.inner, "svd", rank=1)  # type: ignore[assignment]
    with torch.device(device):
        given = Tied()
    again = round_trip(model, given, tmp_path)
    assert again.out.weight is again.embed.weight
    assert again.back.weight is not again.embed.weight
    for one in (again.back.weight, again.first_row):
        assert one.untyped_storage().data_ptr() == again.embed.weight.untyped_storage().data_ptr()
    assert same(again, model)
    assert (tmp_path / "model.safetensors").read_bytes().count(b'"data_offsets"') == 4


def test_ties_of_the_file_are_made_and_ties_of_the_model_alone_are_refused(tmp_path: Path) -> None:
    apart = Tied(tie=False)
    assert round_trip(Tied(), apart, tmp_path).out.weight.shape == (7, 4)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="tied in the model"):
        round_trip(apart, Tied(), tmp_path)


def test_lists_of_tensors_point_into_the_new_model(tmp_path: Path) -> None:
    again = round_trip(Tied(), Tied(), tmp_path)
    assert again.held[0] is again.embed.weight


def test_a_recurrent_layer_runs_on_what_was_loaded(tmp_path: Path) -> None:
    model = nn.LSTM(3, 4)
    x = torch.randn(2, 1, 3)
    assert equal(round_trip(model, nn.LSTM(3, 4), tmp_path)(x)[0], model(x)[0])


def test_a_transient_tensor_is_the_architectures_own_in_the_dtype_of_the_file(
    tmp_path: Path,
) -> None:
    given = net()
    given.table = torch.full((16,), 0.3)
    given.scale = torch.tensor(2.0)
    again = round_trip(compressed().half(), given, tmp_path)
    assert equal(again.table, given.table.half())
    assert again.scale == 2.0
    assert again.table.data_ptr() != given.table.data_ptr()
    again.offset.zero_()
    assert given.offset.any()


class Counter(nn.Linear):
    """Keeps a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.seen: Any = 0

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


def test_extra_state_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(Counter())
    model[0].seen = [3, "a"]
    assert round_trip(model, nn.Sequential(Counter()), tmp_path)[0].seen == [3, "a"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5)], ids=str)
def test_buffers_of_every_dtype(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    model, given = nn.Module(), nn.Module()
    model.register_buffer("held", (3 * torch.rand(shape)).to(dtype))
    given.register_buffer("held", torch.empty(shape, dtype=dtype, device="meta"))
    assert equal(round_trip(model, given, tmp_path).held, model.held)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv3d(3, 4, (1, 3, 2), padding="same"),
        nn.Conv2d(4, 8, 3, groups=2, dilation=2, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_convolutions_of_all_kinds(layer: Any, method: str, tmp_path: Path) -> None:
    rank = (2, 2) if method == "tucker" else 2
    options = {"random_state": 0} if method == "cp" else {}
    model = nn.Sequential(factorize(layer, method, rank=rank, **options))
    again = round_trip(model, nn.Sequential(copy.deepcopy(layer).to("meta")), tmp_path)
    x = torch.randn(2, layer.in_channels, *(9,) * (layer.weight.ndim - 2))
    with torch.no_grad():
        assert equal(again(x), model(x))
    # On an architecture that is compressed already, with another rank.
    other = nn.Sequential(factorize(layer, "svd", rank=1))
    with torch.no_grad():
        assert equal(load(tmp_path / "model.safetensors", other)(x), model(x))


# ---- checkpoints without a model ---------------------------------------------------------------


def checkpoint(model: nn.Module, path: Path) -> None:
    tensors: dict[str, Tensor] = dict(model.state_dict())
    named = ("head.weight", "features.3.weight", "hidden.weight")
    factors = {name: svd(tensors.pop(name), rank=2) for name in named}
    for name in list(tensors):
        if name.startswith("again."):
            del tensors[name]
    write_checkpoint(path, tensors, factors, plan={"head": {"rank": 2}})


def test_a_checkpoint_is_matched_by_names(tmp_path: Path) -> None:
    model = net()
    checkpoint(model, tmp_path / "c")
    again: Any = load(tmp_path / "c", blank_but_transient())
    assert isinstance(again.head, FactoredLayer)
    assert again.again is again.hidden
    assert again.head.recipe == {"rank": 2}
    wanted = svd(model.head.weight.detach(), rank=2).to_dense()
    assert equal(again.head.weight, wanted)
    assert equal(again.features[0].weight, model.features[0].weight)  # type: ignore[arg-type]
    assert inspect(tmp_path / "c").fingerprint is None


def blank_but_transient() -> Net:
    """On meta, but for what no checkpoint has."""
    model = blank()
    model.table, model.scale = net().table, net().scale
    return model


def test_a_checkpoint_cannot_fill_what_the_architecture_has_no_values_of(tmp_path: Path) -> None:
    checkpoint(net(), tmp_path / "c")
    with pytest.raises(ValueError, match="'table'"):
        load(tmp_path / "c", blank())


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_tells_the_layers_and_the_totals(tmp_path: Path) -> None:
    model = compressed()
    save(model, tmp_path / "m")
    report = inspect(tmp_path / "m", verify=True)
    assert [row.name for row in report.layers] == ["features.3", "hidden", "head"]
    assert report.layer("again") is report.layer("hidden")
    assert report.layer("head").rank == 2
    assert report.layer("head").params_after == 2 * (24 + 16)
    assert report.fingerprint == fingerprint(net())
    lasting = [*model.parameters(), model.offset, *model.features[1].buffers()]
    assert report.params_after == sum(t.numel() for t in lasting)
    dense = net()
    lasting = [*dense.parameters(), dense.offset, *dense.features[1].buffers()]
    assert report.params_before == sum(t.numel() for t in lasting)
    assert report.size == (tmp_path / "m").stat().st_size
    assert report.plan == {"hidden": {"method": "svd", "rank": 3}}
    for word in ("features.3", "hidden", "cp", "lowrank", "version 1"):
        assert word in str(report)
    assert json.loads(report.to_json())["layers"][0]["format"] == "cp"
