"""What cannot be saved or loaded, and what is left behind: nothing."""

from __future__ import annotations

import copy
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tensorlrf import io
from tensorlrf.compression.checkpoint._file import load, save, write_checkpoint
from tensorlrf.compression.checkpoint._inspect import inspect
from tensorlrf.decomposition import svd
from tensorlrf.errors import (
    ArgumentError,
    FileError,
    FileFormatError,
    TensorlrfError,
    UnsupportedError,
)
from tensorlrf.nn import factorize
from tests.compression.checkpoint.saved import Net, blank, compressed, net, same

# ---- paths -------------------------------------------------------------------------------------


def test_what_exists_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text("precious")
    with pytest.raises(FileError, match="overwrite=True"):
        save(compressed(), path)
    with pytest.raises(FileError, match="overwrite=True"):
        write_checkpoint(path, {}, {})
    assert path.read_text() == "precious"
    save(compressed(), path, overwrite=True)
    assert same(load(path, blank()), compressed())
    assert os.listdir(tmp_path) == ["m"]


def test_a_link_into_nothing_exists_too(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileError, match="exists"):
        save(compressed(), tmp_path / "m")


def test_folders_that_are_missing_or_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="missing"):
        save(compressed(), tmp_path / "nowhere" / "m")
    with pytest.raises(FileError, match="is a folder"):
        save(compressed(), tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_leaves_what_was_there(tmp_path: Path) -> None:
    save(compressed(), tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    with files_up_to(4096), pytest.raises(FileError, match="cannot be written"):
        save(net(), tmp_path / "m", overwrite=True)
    with files_up_to(4096), pytest.raises(FileError, match="cannot be written"):
        save(net(), tmp_path / "other")
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_refusal_of_the_system_is_one_clear_error(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    save(compressed(), tmp_path / "old")
    before = (tmp_path / "old").read_bytes()
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(FileError, match=os.strerror(code)):
                save(compressed(), tmp_path / "old", overwrite=True)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == before


def test_nothing_to_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileError):
            load(path, net())
        with pytest.raises(FileError):
            inspect(path)
    save(compressed(), tmp_path / "m")
    with pytest.raises(ArgumentError, match="model=None"):
        load(tmp_path / "m")
    with pytest.raises(ArgumentError, match="device='nowhere'"):
        load(tmp_path / "m", net(), device="nowhere")
    with pytest.raises(ArgumentError, match="model is a str"):
        load(tmp_path / "m", "net")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="model is a dict"):
        save({}, tmp_path / "n")  # type: ignore[arg-type]


def test_files_of_other_kinds(tmp_path: Path) -> None:
    io.save_factors(svd(torch.randn(4, 3), rank=1), tmp_path / "factors")
    with pytest.raises(FileFormatError, match="load_factors"):
        load(tmp_path / "factors", net())
    torch.save({}, tmp_path / "pickle")
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        load(tmp_path / "pickle", net())
    save(compressed(), tmp_path / "model")
    with pytest.raises(FileFormatError, match="without factors"):
        io.load_factors(tmp_path / "model")


# ---- models that no file can hold --------------------------------------------------------------


class Stateful(nn.Linear):
    def __init__(self, state: Any) -> None:
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Packed(nn.Linear):
    """Keeps its weight as quantised layers do."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "packed"] = torch.zeros(1)


def recipe_of_sets() -> nn.Module:
    layer = factorize(nn.Linear(4, 4), "svd", rank=1)
    layer.recipe = {"modes": {1, 2}}
    return nn.Sequential(layer)


def overlapping() -> nn.Module:
    model = nn.Linear(4, 4, bias=False)
    model.register_buffer("bits", model.weight.detach().view(torch.int32)[0])
    return model


def sparse() -> nn.Module:
    model = nn.Module()
    model.register_buffer("held", torch.eye(3).to_sparse())
    return model


def double_complex() -> nn.Module:
    model = nn.Module()
    model.register_buffer("held", torch.zeros(2, dtype=torch.complex128))
    return model


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3, device="meta")), r"0\.weight is on the meta"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"0\.weight is lazy"),
        (sparse, "held is a Tensor"),
        (double_complex, "complex128"),
        (overlapping, "overlaps in memory with weight"),
        (lambda: nn.Sequential(Packed(2, 2)), r"0\.packed"),
        (lambda: nn.Sequential(Stateful(torch.zeros(1))), "extra state of '0'"),
        (lambda: nn.Sequential(Stateful({1: 2})), "extra state of '0'"),
        (lambda: nn.Sequential(Stateful(float("nan"))), "extra state of '0'"),
        (recipe_of_sets, "recipe of '0'"),
    ],
)
def test_what_cannot_be_saved_is_named(make: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(TensorlrfError, match=told):
        save(make(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_with_names_that_collide(tmp_path: Path) -> None:
    f = svd(torch.randn(4, 3), rank=1)
    for tensors, factors in [
        ({}, {"a.bias": f}),
        ({"a.weight": torch.zeros(1)}, {"a.weight": f}),
        ({"a.left": torch.zeros(1)}, {"a.weight": f}),
    ]:
        with pytest.raises(ArgumentError, match=r"a\."):
            write_checkpoint(tmp_path / "m", tensors, factors)
    with pytest.raises(ArgumentError, match="plan"):
        write_checkpoint(tmp_path / "m", {}, {"a.weight": f}, plan={"a": {1}})
    assert list(tmp_path.iterdir()) == []


# ---- architectures that do not fit -------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(compressed(), tmp_path / "model")
    return tmp_path / "model"


def changed(change: Any) -> Net:
    model = net()
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: setattr(m, "head", nn.Linear(24, 17)), r"'head' is Linear\(weight=\(17, 24"),
        (lambda m: setattr(m, "head", nn.Identity()), r"'head' is Identity\(\) in the model"),
        (lambda m: setattr(m, "more", nn.ReLU()), r"'more' is ReLU\(\).*missing in the file"),
        (lambda m: delattr(m, "head"), "'head' is missing in the model"),
        (lambda m: setattr(m.features[3], "stride", (1, 1)), r"'features\.3'"),
        (
            lambda m: m.features.__setitem__(0, nn.Conv2d(3, 8, 3, padding="same")),
            "0.bias.*missing",
        ),
        (lambda m: m.__setattr__("again", nn.Linear(16, 24)), None),
    ],
)
def test_another_architecture_is_told_by_its_first_differences(
    change: Any, told: str | None, file: Path
) -> None:
    model = changed(change)
    before = copy.deepcopy(model)
    if told is None:  # two layers of the model become one: what they are in the file
        again: Any = load(file, model)
        assert again.again is again.hidden
    else:
        with pytest.raises(FileFormatError, match=told):
            load(file, model)
    assert same(model, before)
    assert type(model.hidden) is nn.Linear


def test_a_factored_layer_where_the_file_has_a_dense_one(tmp_path: Path) -> None:
    save(net(), tmp_path / "dense")
    with pytest.raises(FileFormatError, match=r"features\.3\.weight.*factored in the model"):
        load(tmp_path / "dense", compressed())


def test_layers_that_cannot_be_replaced_say_why(tmp_path: Path) -> None:
    linear = nn.Linear(4, 4)
    save(nn.Sequential(factorize(linear, "svd", rank=1)), tmp_path / "m")
    hooked = nn.Sequential(nn.Linear(4, 4))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match=r"'0'.*hooks"):
        load(tmp_path / "m", hooked)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(FileFormatError, match="ParametrizedLinear"):
        load(tmp_path / "m", normed)
    with pytest.raises(UnsupportedError, match="lazy"):
        load(tmp_path / "m", nn.Sequential(nn.LazyLinear(4)))


def test_a_parametrized_model_is_saved_as_it_is(tmp_path: Path) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m", nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))))
    x = torch.randn(2, 4)
    assert torch.equal(again(x), model(x))


def test_tensors_on_meta_in_lists_are_found(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.anchors = [torch.zeros(2)]  # type: ignore[assignment]
        return model

    save(make(), tmp_path / "m")
    assert same(load(tmp_path / "m", make()), load(tmp_path / "m", make()))
    with torch.device("meta"):
        given = make()
    with pytest.raises(ArgumentError, match="anchors"):
        load(tmp_path / "m", given)
