"""On a device that was asked for are the block at hand, what goes through it, and its fits; nothing
of the CPU's meets them there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tensorlrf
from tensorlrf.compression import _working_copy
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.scale import _run
from tensorlrf.compression.scale._device import device_of
from tensorlrf.compression.scale.blocks import _states, _walk
from tensorlrf.errors import ArgumentError
from tests.compression.scale.blocks.networks import WORDS, contents, ids, net, on_meta, saved
from tests.elsewhere import DEVICE, there

hf: Any = importlib.import_module("transformers")

# Batches are few.
pytestmark = pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[torch.device]]:
    """Where layers are factored; of what blocks put out it is seen that it waits on the CPU."""
    found: set[torch.device] = set()

    def factor(own: Any) -> Any:
        def noting(name: str, layer: DenseLayer, *given: Any) -> Any:
            found.add(layer.device)
            return own(name, layer, *given)

        return noting

    class Seen(_states.States):
        def put(self, key: Any, output: Any) -> None:
            super().put(key, output)
            waiting = [leaf for leaf in self._held[key].leaves if isinstance(leaf, Tensor)]
            assert all(leaf.device.type == "cpu" for leaf in waiting)
            got = pytree.tree_leaves(self.get(key))
            assert all(leaf.device == self.device for leaf in got if isinstance(leaf, Tensor))

    with monkeypatch.context() as patch:
        for module in (_working_copy, _run):
            patch.setattr(module, "factor", factor(module.factor))
        patch.setattr(_walk, "States", Seen)
        yield found


def outputs(path: Path, model: nn.Module | None = None) -> Tensor:
    with torch.no_grad():
        made = tensorlrf.load(path, model).eval()(ids()[0])
    return made if isinstance(made, Tensor) else made.logits


@pytest.mark.parametrize("inputs", ["original", None])
def test_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str | None) -> None:
    """Fitted to inputs, and by weights."""
    source = saved(net(blocks=2), tmp_path / "a.safetensors")
    call: dict[str, Any] = {"keep_params": 0.5, "threads": 1, "progress": False}
    if inputs is not None:
        call |= {"model": on_meta(net(blocks=2)), "calibration": ids(3), "inputs": inputs}
    tensorlrf.compress_checkpoint(source, tmp_path / "here", **call)
    with there() as device, noted(monkeypatch) as devices:
        report = tensorlrf.compress_checkpoint(source, tmp_path / "there", device=device, **call)
        again = tensorlrf.compress_checkpoint(source, tmp_path / "there", device=device, **call)
    assert devices == {DEVICE}
    assert again.already
    assert report.layers
    assert torch.equal(*(outputs(tmp_path / name, net(blocks=2)) for name in ("here", "there")))


def test_of_a_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rotary tables, which are in no file, and a table of words."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "in")
    batches = [{"input_ids": one, "use_cache": False} for one in ids(2)]
    call: dict[str, Any] = {"keep_params": 0.5, "threads": 1, "progress": False}
    call |= {"calibration": batches, "inputs": "prefix", "memory_limit": 1 << 20}
    tensorlrf.compress_checkpoint(tmp_path / "in", tmp_path / "here", **call)
    with there() as device, noted(monkeypatch) as devices:
        tensorlrf.compress_checkpoint(tmp_path / "in", tmp_path / "there", device=device, **call)
    assert devices == {DEVICE}
    one, other = (outputs(tmp_path / name) for name in ("here", "there"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # attention has kernels for the CPU


def test_a_run_goes_on_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU by its name is the CPU; another device is another run."""
    source, out = saved(net(blocks=2), tmp_path / "a.safetensors"), tmp_path / "out"
    call: dict[str, Any] = {"keep_params": 0.5, "threads": 1, "progress": False}
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", **call)
    with monkeypatch.context() as patch:
        patch.setattr(_run, "factor", _fails)
        with pytest.raises(MemoryError):
            tensorlrf.compress_checkpoint(source, out, **call)
    with there() as device, pytest.raises(ArgumentError, match="device was None, is 'lazy'"):
        tensorlrf.compress_checkpoint(source, out, device=device, **call)
    tensorlrf.compress_checkpoint(source, out, device="cpu", **call)
    assert contents(out) == contents(tmp_path / "whole")


def _fails(*_: Any) -> Any:
    raise MemoryError


def test_what_is_no_device(tmp_path: Path) -> None:
    source = saved(net(), tmp_path / "a.safetensors")
    wrong: list[tuple[Any, str]] = [
        ("gpu", r"device='gpu' is no device: give a word of torch"),
        (2.5, r"device=2.5 is no device"),
        ("meta", "device='meta' holds no values"),
        ("hpu", r"device='hpu' is not available here .*; leave it out for the CPU"),
    ]
    for device, told in wrong:
        with pytest.raises(ArgumentError, match=told):
            tensorlrf.compress_checkpoint(source, tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


def test_ranks_have_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        size = 2

    monkeypatch.setattr(torch, "get_device_module", lambda device: Several)
    group: Any = Two()
    with there():
        for rank, number in ((0, 0), (1, 1), (5, 2)):
            monkeypatch.setenv("LOCAL_RANK", f"{rank}")
            assert device_of("lazy", group).index == number
            assert device_of("lazy:1", group).index == 1
        monkeypatch.delenv("LOCAL_RANK")
        assert device_of("lazy", group) == DEVICE
    assert device_of(None, group) == device_of("cpu:0", group) == torch.device("cpu")


class Several:
    @staticmethod
    def device_count() -> int:
        return 3
