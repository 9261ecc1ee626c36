"""What is to hold on any system, Python and torch: run as a program, it tells each check's outcome
as JSON (check -> how it failed; empty where it holds).

It needs what tensorlrf needs, and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

if "--windows" in sys.argv:  # before anything of tensorlrf is imported
    from tests.platforms import windows

    windows.pose()

import tensorlrf
from tensorlrf.cli._outcome import show
from tensorlrf.errors import FileError, FileFormatError, MissingFileError, TensorlrfError
from tensorlrf.files.folder import filling, put_right
from tensorlrf.files.safetensors import write

Check = Callable[[Path], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))
    return nn.Sequential(*layers).eval()


def small() -> nn.Module:
    return tensorlrf.compress(net(), keep_params=0.6)[0]


def ran(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 5 * 24).view(5, 24))


def refused(kind: type[TensorlrfError], act: Callable[[], object], word: str) -> None:
    told = ""
    try:
        act()
    except kind as error:
        told = str(error)
    assert word in told, f"no {kind.__name__} with {word!r}: {told}"


@check
def two_lines_compress(_: Path) -> None:
    model, report = tensorlrf.compress(net(), keep_params=0.6, calibration=[torch.randn(200, 24)])
    assert len(report.layers) == 2
    assert ran(model).isfinite().all()


@check
def a_model_is_saved_and_loaded(folder: Path) -> None:
    model, path = small(), folder / "model.safetensors"
    tensorlrf.save(model, path)
    assert torch.equal(ran(tensorlrf.load(path, net())), ran(model))
    tensorlrf.save(model, path, overwrite=True)
    assert torch.equal(ran(tensorlrf.load(path, net())), ran(model))
    assert [one.name for one in folder.iterdir()] == [path.name]


@check
def factors_are_saved_and_loaded(folder: Path) -> None:
    from tensorlrf.io import load_factors, save_factors

    for k in range(20):  # bytes of all values, line feeds among them
        factors = tensorlrf.svd(torch.randn(16, 12, generator=torch.Generator().manual_seed(k)), 3)
        save_factors(factors, folder / "f.safetensors", overwrite=True)
        again = load_factors(folder / "f.safetensors")
        assert torch.equal(again.to_dense(), factors.to_dense())


@check
def a_folder_is_filled_and_filled_again(folder: Path) -> None:
    for target in (folder / "new", folder):
        for k in range(3):  # b comes and goes
            with filling(target, names=("a", "b", "c"), overwrite=k > 0) as part:
                (part / "a").write_bytes(f"{k}\n".encode())
                (part / ("b" if k == 1 else "c")).write_bytes(b"c\n")
            assert (target / "a").read_bytes() == f"{k}\n".encode()
            assert (target / "b").exists() == (k == 1)


@check
def what_was_broken_off_is_finished(folder: Path) -> None:
    """Before each renaming in turn, by what no code of ours catches."""
    target, old, new = folder / "t", {"a": b"old a", "b": b"old b"}, {"a": b"new a", "c": b"new c"}
    seen = []
    for n in itertools.count():
        shutil.rmtree(target, ignore_errors=True)
        for name, data in old.items():
            (folder / "t").mkdir(exist_ok=True)
            (target / name).write_bytes(data)
        broken = broken_off(n, lambda: put(target, new))
        put_right(target)
        seen.append({one.name: one.read_bytes() for one in sorted(target.iterdir())})
        assert [one.name for one in folder.iterdir()] == ["t"]
        if not broken:
            break
    assert seen == sorted(seen, key=lambda one: one == new), "the old or the new, and in this order"
    assert all(one in (old, new) for one in seen)
    assert len(seen) > 4


def put(target: Path, files: dict[str, bytes]) -> None:
    with filling(target, names=("a", "b", "c"), overwrite=True) as part:
        for name, data in files.items():
            (part / name).write_bytes(data)


def broken_off(n: int, act: Callable[[], None]) -> bool:
    """Whether it was broken off, before the n-th renaming."""
    count, rename = itertools.count(), os.rename

    def last(*given: Any) -> None:
        if next(count) == n:
            raise KeyboardInterrupt
        rename(*given)

    with mock.patch.object(os, "rename", last):
        try:
            act()
        except KeyboardInterrupt:
            return True
    return False


@check
def what_was_there_stays(folder: Path) -> None:
    model, path = small(), folder / "model.safetensors"
    tensorlrf.save(model, path)
    before = path.read_bytes()
    refused(FileError, lambda: tensorlrf.save(model, path), "overwrite=True")
    with open(path, "rb"):  # nobody replaces what another reads
        if "--windows" in sys.argv:
            refused(FileError, lambda: tensorlrf.save(model, path, overwrite=True), "as it was")
    assert path.read_bytes() == before
    assert [one.name for one in folder.iterdir()] == [path.name]


@check
def errors_are_ours(folder: Path) -> None:
    refused(MissingFileError, lambda: tensorlrf.load(folder / "none", net()), "none")
    refused(FileError, lambda: tensorlrf.save(small(), folder), "folder")
    refused(MissingFileError, lambda: tensorlrf.save(small(), folder / "no" / "f"), "missing")
    (folder / "noise").write_bytes(b"\r\n" * 40)
    refused(FileFormatError, lambda: tensorlrf.load(folder / "noise", net()), "damaged")


@check
def journals_and_logs(folder: Path) -> None:
    journal, log = folder / "journal", folder / "run.jsonl"
    batches = [torch.randn(8, 24, generator=torch.Generator().manual_seed(0))]
    first = tensorlrf.sensitivity(net(), batches, journal=journal)
    assert tensorlrf.sensitivity(net(), batches, journal=journal).to_json() == first.to_json()
    with tensorlrf.log_to(log):
        small()
    assert b"\r" not in log.read_bytes()
    assert all(json.loads(line) for line in log.read_text("utf-8").splitlines())


@check
def the_command_line(folder: Path) -> None:
    from tensorlrf.cli import main as command

    np.save(folder / "t.npy", np.random.default_rng(0).standard_normal((8, 7, 6)))
    out = folder / "f.safetensors"
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        more = ("--method", "tucker", "--rank", "3")
        assert command([*map(str, ("decompose", folder / "t.npy", *more, "-o", out))]) == 0
        assert command(["inspect", str(out), "--verify"]) == 0
    assert "Tucker" in told.getvalue()
    with contextlib.redirect_stderr(told):
        assert command(["inspect", str(folder / "none")]) == 2


@check
def a_checkpoint_is_compressed_and_called_again(folder: Path) -> None:
    source, small = folder / "in.safetensors", folder / "small"
    about = {f"layers.{k}.weight": torch.randn(24, 32) for k in range(2)}
    write(source, about, {})
    for target in (folder / "small.safetensors", small):
        first = tensorlrf.compress_checkpoint(source, target, keep_params=0.5, progress=False)
        held = {one.name: one.read_bytes() for one in folder.rglob("*.safetensors")}
        tensorlrf.compress_checkpoint(source, target, keep_params=0.5, progress=False)
        assert held == {one.name: one.read_bytes() for one in folder.rglob("*.safetensors")}
        assert len(first.layers) == 2
    assert not list(folder.rglob(".*"))


@check
def tables_are_printed_where_text_is_not_unicode(_: Path) -> None:
    _, report = tensorlrf.compress(net(), keep_params=0.6)
    for encoding in ("cp1252", "cp437", "ascii", "utf-8"):
        raw = io.BytesIO()
        with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding=encoding)) as out:
            show(report, as_json=False)
            out.flush()
        table = raw.getvalue().decode(encoding)
        assert len(table.splitlines()) == len(str(report).splitlines())
        assert (table.rstrip() == str(report).rstrip()) == (encoding == "utf-8")


@check
def the_system_is_as_posed(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"")
    if "--windows" not in sys.argv:
        os.close(os.open(folder, os.O_RDONLY))
        return
    for act in (
        lambda: os.open(folder, os.O_RDONLY),
        lambda: os.open(folder / "a:b", os.O_WRONLY | os.O_CREAT),
        lambda: os.rename(path, folder / "g"),
        lambda: os.replace(folder / "h", path),
        lambda: path.unlink(),
    ):
        (folder / "h").write_bytes(b"")
        with open(path, "rb"):
            try:
                act()
            except OSError:
                continue
        raise AssertionError("not refused")
    file = os.open(path, os.O_WRONLY)
    os.write(file, b"1\n")
    os.close(file)
    assert path.read_bytes() == b"1\r\n"


def main() -> None:
    told: dict[str, str] = {}
    warnings.simplefilter("error", tensorlrf.errors.TensorlrfWarning)
    for name, one in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                one(Path(folder))
                told[name] = ""
            except BaseException:
                told[name] = traceback.format_exc()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
