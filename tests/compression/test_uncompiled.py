"""Models behind torch.compile: what is compiled is unwrapped, and compiled again by the user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.errors import ArgumentError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    return nn.Sequential(block, nn.Linear(32, 32))


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def whole() -> nn.Module:
    return compiled(net())


def a_block() -> nn.Module:
    model = net()
    model[0] = compiled(model[0])
    return model


def a_layer() -> nn.Module:
    model = net()
    model[1] = compiled(model[1])
    return model


def twice() -> nn.Module:
    return compiled(a_block())


@pytest.mark.parametrize("make", [whole, a_block, a_layer, twice])
def test_a_compiled_model_is_compressed_as_the_model_that_it_wraps(
    make: Callable[[], nn.Module],
) -> None:
    model, plain = make(), net()
    names = [name for name, _ in model.named_modules()]
    data = [torch.randn(80, 32) for _ in range(3)]
    settings: Any = {"keep_params": 0.5, "skip": [], "calibration": data, "progress": False}
    small, report = tensorlrf.compress(model, **settings)
    want, told = tensorlrf.compress(plain, **settings)
    assert [row.name for row in report.layers] == [row.name for row in told.layers]
    assert {key: t.shape for key, t in small.state_dict().items()} == {
        key: t.shape for key, t in want.state_dict().items()
    }
    torch.testing.assert_close(small(data[0]), want(data[0]))
    assert [name for name, _ in model.named_modules()] == names
    with torch.no_grad():  # with grad, dynamo itself warns of what comes into an inner wrapper
        torch.testing.assert_close(model(data[0]), plain(data[0]))


def test_files_know_nothing_of_compilation(tmp_path: Path) -> None:
    small, _ = tensorlrf.compress(net(), keep_params=0.5, skip=[], progress=False)
    tensorlrf.save(compiled(small), tmp_path / "small.safetensors")
    x = torch.randn(3, 32)
    for target in (net(), whole(), a_block()):
        again = tensorlrf.load(tmp_path / "small.safetensors", target)
        assert torch.equal(again(x), small(x))
    for leave in (tensorlrf.export, tensorlrf.densify):
        torch.testing.assert_close(leave(compiled(small))(x), small(x))


def test_in_place_only_where_no_wrapper_would_go_on_with_old_layers() -> None:
    model, x = whole(), torch.randn(3, 32)
    model(x)
    before = model(x)
    tensorlrf.compress_(model, keep_params=0.5, skip=[], progress=False)
    after = model(x)
    assert not torch.allclose(after, before)
    assert torch.equal(after, uncompiled(model)(x))
    with pytest.raises(ArgumentError, match="compile them after compress_"):
        tensorlrf.compress_(a_block(), keep_params=0.5, skip=[], progress=False)


def test_what_is_not_compiled_is_left_as_it_is() -> None:
    model = net()
    assert uncompiled(model) is model
    shared = nn.Linear(4, 4)
    tree = nn.Sequential(shared, shared, compiled(nn.ReLU()))
    bare = uncompiled(tree)
    assert isinstance(bare, nn.Sequential)
    assert bare[0] is bare[1] is shared
    assert isinstance(bare[2], nn.ReLU)
