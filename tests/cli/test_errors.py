"""Whatever is wrong is one line, and leaves everything as it was."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tensorlrf
from tensorlrf.cli import _compress, _inspect
from tensorlrf.decomposition import methods
from tensorlrf.errors import TensorlrfWarning
from tests.cli.calls import Program, cnn, listing, save_state
from tests.processes import printed, python

HALF = ("--keep-params", 0.5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_state(cnn(), tmp_path / "net.safetensors")


def test_a_command_line_that_cannot_be(tmp_path: Path, program: Program) -> None:
    assert "No such option: --zz" in program("compress", "--zz").error
    assert "tensorlrf compress --help" in program("compress", "--zz").error
    assert "SOURCE" in program("compress").error.upper()
    assert "No such command" in program("compres").error
    assert "--keep-params" in program("compress", tmp_path, "--keep-params", "half").error
    bare = program()
    assert bare.code == 2
    assert "tensorlrf compress minilm/" in bare.out


def test_help_and_version(program: Program) -> None:
    for command in ("compress", "inspect", "decompose"):
        done = program(command, "--help")
        assert (done.code, done.err) == (0, "")
        assert f"tensorlrf {command} " in done.out
        assert "Examples:" in done.out
    assert program("--version") == (0, f"tensorlrf {tensorlrf.__version__}\n", "")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "no budget"),
        ((*HALF, "--error", 0.1), "two budgets"),
        (("--keep-params", 1.5), "keep_params=1.5"),
        (("--keep-params", "nan"), "keep_params=nan"),
        (("--error", 0), "error=0"),
        (("--keep-params", 0.001), "at the smallest ranks"),
        ((*HALF, "--method", "lu"), "method='lu' is unknown"),
        ((*HALF, "--skip", "nothing*"), "'nothing*' matches no module"),
        ((*HALF, "--text", "x.txt"), "--text is for folders"),
        ((*HALF, "--dtype", "keep"), "--dtype is for folders"),
        ((*HALF, "--affine"), "--affine needs --text"),
        ((*HALF, "--target", "prefix"), "--target needs --text"),
        ((*HALF, "--tokens", 64), "--tokens needs --text"),
        (("--plan", "none.json"), "none.json is not a file"),
        ((*HALF, "--keep-bytes", 0.5), "keep_params=0.5 and keep_bytes=0.5 are two budgets"),
        (("--keep-bytes", 2), "keep_bytes=2.0 must be a share"),
        (("--keep-flops", 0.5), "--keep-flops looks at inputs, and so is for folders"),
        (("--keep-latency", 0.5), "--keep-latency looks at inputs"),
        ((*HALF, "--allocation", "fisher"), "--allocation fisher looks at inputs"),
        ((*HALF, "--allocation", "block_influence"), "--allocation block_influence looks at"),
        ((*HALF, "--allocation", "greed"), "allocation='greed' is unknown"),
        ((*HALF, "--least-share", 1.5), "least_share=1.5 must be a share"),
        ((*HALF, "--sensitivity", "none.json"), "--sensitivity none.json is not a file"),
        (
            (*HALF, "--sensitivity", "none.json", "--allocation", "energy"),
            "leave out one of them",
        ),
        (
            (*HALF, "--plan", "none.json", "--least-share", 0.1),
            "leave out --keep-params and --least-share",
        ),
    ],
)
def test_options_that_cannot_be(
    more: tuple[object, ...], words: str, source: Path, tmp_path: Path, program: Program
) -> None:
    target = tmp_path / "small.safetensors"
    assert words in program("compress", source, "-o", target, *more).error
    assert listing(tmp_path) == {"net.safetensors"}


def test_plans_that_cannot_be(source: Path, tmp_path: Path, program: Program) -> None:
    plan = json.loads(program("compress", source, *HALF, "--plan-only", "--json").out)
    path = tmp_path / "plan.json"

    def refused(text: str) -> str:
        path.write_text(text)
        target = tmp_path / "small.safetensors"
        return program("compress", source, "-o", target, "--plan", path).error

    assert "is no plan" in refused("{")
    row = plan["layers"][0]
    assert row["method"] is not None
    for entry, value, words in (
        ("method", {"name": "svd", "rank": 999}, "rank=999"),
        ("method", {"name": "lu", "rank": 2}, "'lu'"),
        ("name", "missing", "'missing'"),
    ):
        changed = {**row, entry: value}
        assert words in refused(json.dumps({**plan, "layers": [changed, *plan["layers"][1:]]}))
    assert listing(tmp_path) == {"net.safetensors", "plan.json"}


def test_sources_that_cannot_be(tmp_path: Path, program: Program) -> None:
    def refused(name: str) -> str:
        return program("compress", tmp_path / name, "-o", tmp_path / "s.safetensors", *HALF).error

    assert "is not there" in refused("missing.safetensors")
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert "no .safetensors" in refused("weights.bin")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 7)
    assert "damaged" in refused("cut.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    assert "no tensors" in refused("empty.safetensors")
    save_file({"norm.weight": torch.ones(4)}, tmp_path / "norm.safetensors")
    assert "no eligible layer" in refused("norm.safetensors")
    save_file({"a.weight": torch.full((16, 16), torch.nan)}, tmp_path / "nan.safetensors")
    assert "NaN" in refused("nan.safetensors")
    save_state(cnn(), tmp_path / "net.safetensors")
    program("compress", tmp_path / "net.safetensors", "-o", tmp_path / "small.safetensors", *HALF)
    assert "compressed already" in refused("small.safetensors")


def test_nothing_is_replaced_without_force(source: Path, tmp_path: Path, program: Program) -> None:
    target = tmp_path / "there.safetensors"
    target.write_bytes(b"mine")
    assert "--force" in program("compress", source, "-o", target, *HALF).error
    assert target.read_bytes() == b"mine"
    assert program("compress", source, "-o", target, *HALF, "--force").code == 0
    tensorlrf.load(target, cnn())
    before = source.read_bytes()
    assert "the source itself" in program("compress", source, "-o", source, *HALF, "--force").error
    assert source.read_bytes() == before


def test_targets_that_cannot_be(source: Path, tmp_path: Path, program: Program) -> None:
    def refused(target: Path) -> str:
        return program("compress", source, "-o", target, *HALF).error

    assert "-o is missing" in program("compress", source, *HALF).error
    assert "is a folder" in refused(tmp_path)
    assert "missing" in refused(tmp_path / "nowhere" / "s.safetensors")
    assert ".safetensors" in refused(tmp_path / "small.bin")
    assert listing(tmp_path) == {"net.safetensors"}


def test_a_folder_that_may_not_be_written_to(
    source: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The administrator may write anywhere, so the system's answer is put in.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    target = tmp_path / "small.safetensors"
    assert "cannot be written to" in program("compress", source, "-o", target, *HALF).error


def test_a_full_disk(
    source: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    target = tmp_path / "small.safetensors"
    assert "No space left" in program("compress", source, "-o", target, *HALF).error
    np.save(tmp_path / "k.npy", np.ones((4, 4)))
    more = ("--rank", 1, "-o", target)
    assert "No space left" in program("decompose", tmp_path / "k.npy", *more).error
    assert listing(tmp_path) == {"net.safetensors", "k.npy"}


def test_ctrl_c_leaves_nothing(
    source: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    target = ("-o", tmp_path / "small.safetensors")
    monkeypatch.setattr(_compress, "apply", interrupted)
    done = program("compress", source, *target, *HALF)
    assert done == (130, "", "interrupted; nothing was written\n")
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", interrupted)
    assert program("compress", source, *target, *HALF).code == 130
    assert listing(tmp_path) == {"net.safetensors"}


@pytest.mark.parametrize("word", ["SIGTERM", "SIGHUP"])
def test_what_ends_the_program_cleans_up(
    word: str, source: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.Signals[word]
    before = signal.signal(number, signal.SIG_DFL)  # also where nohup runs the tests

    def end(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # asked twice, it still cleans up

    given = ("compress", source, "-o", tmp_path / "small.safetensors", *HALF)
    try:
        for module, call in ((_compress, "apply"), (os, "fsync")):
            with monkeypatch.context() as patch:
                patch.setattr(module, call, end)
                assert program(*given) == (128 + number, "", "interrupted; nothing was written\n")
            assert listing(tmp_path) == {"net.safetensors"}
            assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _inspect._report

    def asked(*given: Any) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        return real(*given)

    monkeypatch.setattr(_inspect, "_report", asked)
    np.save(tmp_path / "k.npy", np.eye(4))
    target = tmp_path / "f.safetensors"
    program("decompose", tmp_path / "k.npy", "--rank", 1, "-o", target)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert program("inspect", target).code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interruption_after_the_writing_says_so(
    source: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_compress, "show", interrupted)
    target = tmp_path / "small.safetensors"
    given = ("compress", source, "-o", target, *HALF)
    for more in ((), ("--force",)):
        assert program(*given, *more) == (130, "", f"interrupted; {target} is written\n")
        tensorlrf.load(target, cnn())


def test_a_traceback_only_with_debug(tmp_path: Path, program: Program) -> None:
    line = program("inspect", tmp_path / "none").error
    done = program("inspect", tmp_path / "none", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == line


def test_what_should_not_happen_says_so(
    source: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a\nbug")

    monkeypatch.setattr(_compress, "apply", broken)
    target = ("-o", tmp_path / "small.safetensors")
    done = program("compress", source, *target, *HALF)
    assert done.code == 1
    assert done.err == "error: RuntimeError: a bug (this should not happen; --debug shows where)\n"


def test_warnings_of_ours_are_a_line(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "k.npy", np.eye(4))
    svd = methods.registered("svd")

    @functools.wraps(svd.fit)
    def warns(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("thin\nice", TensorlrfWarning, stacklevel=1)
        return svd.fit(*args, **kwargs)

    monkeypatch.setitem(methods._METHODS, "svd", replace(svd, fit=warns))
    given = ("decompose", tmp_path / "k.npy", "--rank", 2, "-o", tmp_path / "f.safetensors")
    done = program(*given, "--json")
    assert done.code == 0
    assert done.err == "warning: thin ice\n"
    assert json.loads(done.out)["rank"] == 2


def test_a_terminal_gets_whole_numbers(
    source: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    given = ("compress", source, *HALF, "--plan-only")
    plain = program(*given).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = program(*given).out
    assert [line.rstrip() for line in shown.splitlines()] == plain.splitlines()


def test_a_process_of_its_own(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.safetensors"
    done = python("-m", "tensorlrf", "compress", source, "-o", target, *HALF, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["keep_params"] == 0.5
    tensorlrf.load(target, cnn())


def test_a_process_that_is_refused(tmp_path: Path) -> None:
    done = python("-m", "tensorlrf.cli", "inspect", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_library_does_not_import_the_parser() -> None:
    assert printed("import sys, tensorlrf; print('typer' in sys.modules)") == "False"
