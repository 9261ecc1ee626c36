"""Models of packed modules are compressed through the layers of their matrices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import compress
from tensorlrf.compression import _latency
from tensorlrf.compression._unpacked import packed_again, unpacked_for, unpacked_model
from tensorlrf.compression.checkpoint._architecture import describe
from tensorlrf.compression.tuning import _recurrences, _whole
from tensorlrf.errors import ArgumentError, FileFormatError
from tensorlrf.nn import FactoredLayer, FactoredLSTM, FactoredMultiheadAttention
from tensorlrf.nn.packed.unpacked import Unpacked
from tests.compression.networks import UNIFORM
from tests.compression.tuning.tuned import CHAIN, WHOLE, Clock

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
"""torch's own, of the path that nn.TransformerEncoder takes with padding."""


class Net(nn.Module):
    """An LSTM, an encoder and a decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 16, 2, batch_first=True, bidirectional=True)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)
        self.out = nn.Linear(32, 20)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        h = self.lstm(x)[0]
        memory = self.encoder(h, src_key_padding_mask=padding)
        # At padding torch's fast path has zeros, and the other one what comes out there.
        out: Tensor = self.out(self.decoder(h, memory, memory_key_padding_mask=padding))
        return out


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 6, 24) for _ in range(4)]


def is_padding() -> Tensor:
    padding = torch.zeros(16, 6, dtype=torch.bool)
    padding[0, 4:] = True
    return padding


@pytest.fixture(scope="module")
def small(net: Net, batches: list[Tensor]) -> nn.Module:
    made, _ = compress(net, keep_params=0.6, calibration=batches, skip=[], **UNIFORM)
    return made


def test_unpacked_it_computes_the_same_on_the_same_memory(net: Net, batches: list[Tensor]) -> None:
    own = unpacked_model(net)
    assert isinstance(own.lstm, FactoredLSTM)
    with torch.no_grad():
        for padding in (None, is_padding()):
            want, got = net(batches[0], padding), own(batches[0], padding)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    mine = {p.untyped_storage().data_ptr() for p in own.parameters()}
    assert mine == {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert isinstance(net.lstm, nn.LSTM)
    assert net.encoder.use_nested_tensor
    again = packed_again(copy.deepcopy(own))
    assert str(again) == str(net)
    assert again.encoder.use_nested_tensor
    assert not any(isinstance(m, Unpacked) for m in again.modules())
    for name, p in net.named_parameters():
        assert torch.equal(again.get_parameter(name), p)


def test_nearly_all_parameters_are_reached(net: Net, batches: list[Tensor]) -> None:
    small, report = compress(net, keep_params=0.6, calibration=batches, skip=[], **UNIFORM)
    total = sum(p.numel() for p in net.parameters())
    assert report.eligible.params_before >= 0.95 * total
    kept = sum(p.numel() for p in small.parameters())
    assert kept <= 0.6 * report.eligible.params_before + total - report.eligible.params_before
    assert {"lstm.input_l1", "encoder.layers.0.self_attn.q_proj", "encoder.layers.1.linear1"} <= {
        row.name for row in report.layers if row.factored
    }
    assert isinstance(net.lstm, nn.LSTM)


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_outputs_are_near_at_a_high_share(net: Net, batches: list[Tensor], target: str) -> None:
    small, report = compress(
        net, keep_params=0.95, calibration=batches, skip=[], target=target, progress=False
    )
    with torch.no_grad():
        error = (small(batches[0]) - net(batches[0])).norm() / net(batches[0]).norm()
    assert error < 0.2  # a twentieth of the weights is gone
    assert report.model_error is not None


def test_padding_takes_the_same_way(net: Net, small: nn.Module, batches: list[Tensor]) -> None:
    dense = tensorlrf.densify(small)
    assert dense.encoder.use_nested_tensor
    with torch.no_grad():
        for padding in (None, is_padding()):
            want, got = dense(batches[0], padding), small(batches[0], padding)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_to_the_same_bits(
    small: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "small.safetensors"
    tensorlrf.save(small, path)
    with torch.device("meta"):
        blank = Net()
    for given in (Net(), blank, small):
        again = tensorlrf.load(path, given).eval()
        with torch.no_grad():
            assert torch.equal(again(batches[0]), small(batches[0]))
        kinds = [type(m).__name__ for m in again.modules()]
        assert kinds == [type(m).__name__ for m in small.modules()]
    assert describe(small) == describe(Net())

    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(24, 16, 1, batch_first=True, bidirectional=True)

    with pytest.raises(FileFormatError, match="lstm"):
        tensorlrf.load(path, Other())


def test_leaving_gives_torchs_own(small: nn.Module, net: Net, batches: list[Tensor]) -> None:
    for made in (tensorlrf.densify(small), tensorlrf.export(small)):
        assert type(made.lstm) is nn.LSTM
        assert type(made.encoder.layers[0].self_attn) is nn.MultiheadAttention
        assert not any(isinstance(m, (FactoredLayer, Unpacked)) for m in made.modules())
        with torch.no_grad():
            torch.testing.assert_close(made(batches[0]), small(batches[0]), rtol=1e-4, atol=1e-5)
    assert isinstance(small.lstm, FactoredLSTM)


def test_what_is_not_factored_stays_torchs_own(net: Net, batches: list[Tensor]) -> None:
    skip = ["encoder*", "decoder*", "out"]
    small, report = compress(net, keep_params=0.7, calibration=batches, skip=skip, **UNIFORM)
    assert isinstance(small.lstm, FactoredLSTM)
    assert type(small.decoder.self_attn) is nn.MultiheadAttention
    assert small.encoder.use_nested_tensor
    assert all(row.name.startswith("lstm") for row in report.layers if row.factored)
    # Its fast path would read the weights of the others.
    only = {"encoder.layers.0.linear1": tensorlrf.SVD(rank=4), "*": None}
    small, _ = compress(net, method=only, skip=[], progress=False)
    assert isinstance(small.encoder.layers[0].self_attn, FactoredMultiheadAttention)
    assert type(small.encoder.layers[1].self_attn) is nn.MultiheadAttention
    with torch.no_grad():
        wanted = tensorlrf.densify(small)(batches[0], is_padding())
        # Rounding in float32, a few layers deep.
        torch.testing.assert_close(small(batches[0], is_padding()), wanted, rtol=1e-4, atol=1e-5)


def test_in_place(net: Net, small: nn.Module, batches: list[Tensor]) -> None:
    own = copy.deepcopy(net)
    lstm = own.lstm
    tensorlrf.compress_(own, keep_params=0.6, calibration=batches, skip=[], **UNIFORM)
    assert isinstance(own.lstm, FactoredLSTM)
    assert own.lstm is not lstm
    with torch.no_grad():
        torch.testing.assert_close(own(batches[0]), small(batches[0]))


def test_a_plan_goes_with_the_packed_model(net: Net, batches: list[Tensor]) -> None:
    plan = tensorlrf.plan(net, keep_params=0.6, calibration=batches, skip=[], progress=False)
    assert any(row.name == "lstm.recurrent_l0" for row in plan.layers)
    again = tensorlrf.Plan.from_json(plan.to_json())
    small, report = tensorlrf.apply(net, again, calibration=batches, progress=False)
    assert report.eligible.share <= 0.6
    with torch.no_grad():
        assert torch.isfinite(small(batches[0])).all()


def test_refined_it_is_no_worse(net: Net, small: nn.Module, batches: list[Tensor]) -> None:
    better, told = tensorlrf.refine(small, net, batches, steps=10, progress=False)
    assert told.after <= told.before
    assert isinstance(better.lstm, FactoredLSTM)


def test_tune_measures_its_layers(small: nn.Module, batches: list[Tensor]) -> None:
    own = copy.deepcopy(small)
    with torch.no_grad():
        want = own(batches[0])
        tuning = tensorlrf.tune(own, batches[0], seconds=0.001, progress=False)
        assert not tuning.not_reached
        (row,) = tuning.recurrences
        assert row.name == "lstm"
        assert {"kernel", "loop"} <= set(row.seconds) <= {"kernel", "loop", "kernel, frozen"}
        assert own.lstm.recurrence == row.chosen.partition(",")[0]
        assert "recurrence of lstm" in str(tuning)
        torch.testing.assert_close(own(batches[0]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["kernel", "loop", "kernel, frozen"])
def test_tune_keeps_the_fastest_way(
    net: Net, small: nn.Module, batches: list[Tensor], way: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    own: Any = copy.deepcopy(small)
    times = {"kernel": 2.0, "loop": 2.0, "kernel, frozen": 2.0, way: 1.0}
    monkeypatch.setattr(_latency, "time_calls", Clock(CHAIN))  # no layer is frozen for itself
    monkeypatch.setattr(_whole, "time_calls", Clock(WHOLE))
    monkeypatch.setattr(_recurrences, "time_calls", Clock(times))
    with torch.no_grad():
        want = own(batches[0])
        tuning = tensorlrf.tune(own, batches[0], seconds=0.001, progress=False)
        assert tuning.recurrences[0].chosen == way
        assert own.lstm.recurrence == way.partition(",")[0]
        if way.endswith("frozen"):
            assert own.lstm.recurrent_l0.is_frozen
            assert "lstm.recurrent_l0" in tuning.frozen
        torch.testing.assert_close(own(batches[0]), want, rtol=1e-4, atol=1e-5)
        tensorlrf.save(own, tmp_path / "own.safetensors")
        again: Any = tensorlrf.load(tmp_path / "own.safetensors", net)
        assert again.lstm.recurrent_l0.is_frozen == own.lstm.recurrent_l0.is_frozen
        assert torch.equal(again(batches[0]), own(batches[0]))
        never = tensorlrf.tune(own, batches[0], seconds=0.001, freeze=False, progress=False)
        assert not never.frozen


def test_the_way_of_a_recurrence_is_kept_in_files(
    net: Net, small: nn.Module, tmp_path: Path
) -> None:
    own: Any = copy.deepcopy(small)
    own.lstm.recurrence = "loop"
    tensorlrf.save(own, tmp_path / "own.safetensors")
    again: Any = tensorlrf.load(tmp_path / "own.safetensors", net)
    assert again.lstm.recurrence == "loop"
    assert str(tensorlrf.densify(own)) == str(net)


def test_fewer_ranks_for_a_while(small: nn.Module, batches: list[Tensor]) -> None:
    own: Any = copy.deepcopy(small)
    with torch.no_grad(), tensorlrf.rank_scale(own, 0.5):
        wanted = tensorlrf.densify(own)(batches[0])
        for way in ("loop", "kernel"):
            own.lstm.recurrence = way
            torch.testing.assert_close(own(batches[0]), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(own(batches[0]), wanted, rtol=1e-2)


def test_a_module_itself() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(32, 32)
    small, report = compress(lstm, keep_params=0.5, skip=[], **UNIFORM)
    assert isinstance(small, FactoredLSTM)
    assert {row.name for row in report.layers if row.factored} == {"input_l0", "recurrent_l0"}
    with pytest.raises(ArgumentError, match="use compress"):
        tensorlrf.compress_(lstm, keep_params=0.5, skip=[], **UNIFORM)
    assert type(lstm) is nn.LSTM


def test_what_hangs_on_it_is_a_reason() -> None:
    net = Net()
    net.lstm.register_forward_hook(lambda *_: None)
    _, report = compress(net, keep_params=0.6, skip=[], **UNIFORM)
    assert "has hooks" in report.layer("lstm").reason


def test_modules_in_two_places_stay_one() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(16, 16)
    model = nn.ModuleDict({"a": lstm, "b": lstm, "c": nn.Linear(16, 16)})
    own: Any = unpacked_model(model)
    assert own["a"] is own["b"]
    small: Any = compress(model, keep_params=0.5, skip=[], **UNIFORM)[0]
    assert small["a"] is small["b"]
    assert isinstance(small["a"], FactoredLSTM)


def test_only_what_a_file_names_is_unpacked(net: Net) -> None:
    assert unpacked_for(net, [name for name, _ in net.named_parameters()]) is net
    own = unpacked_for(net, ["decoder.self_attn.q_proj.left", "lstm.weight_ih_l0"])
    assert type(own.lstm) is nn.LSTM
    assert isinstance(own.decoder.self_attn, FactoredMultiheadAttention)
    assert type(own.decoder.multihead_attn) is nn.MultiheadAttention
