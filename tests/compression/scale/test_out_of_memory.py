"""Where memory ends, the error names what takes less of it, true for the place; files are as they
were."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression import _working_copy
from tensorlrf.compression.refinement import _course
from tensorlrf.compression.scale import _run
from tensorlrf.errors import ArgumentError, CalibrationWarning, is_out_of_memory, lowered_by
from tests.cli.calls import Program
from tests.cli.conftest import program
from tests.compression.scale.test_checkpoint import contents, net, sharded

__all__ = ["program"]

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 4398046511104 bytes."
)

FULL = [MemoryError(), RuntimeError(ALLOCATOR), torch.OutOfMemoryError("CUDA out of memory.")]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def data(count: int = 4) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [
        torch.randn(64, 16, generator=draws, device="cpu", dtype=torch.float32)
        for _ in range(count)
    ]


def full(error: Exception, after: int = 0) -> Any:
    left = [after]

    def raises(*_: Any, **__: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise copy.copy(error)
        return None

    return raises


def notes(error: BaseException) -> str:
    return "; ".join(getattr(error, "__notes__", ()))


def test_what_the_allocator_says_is_known() -> None:
    """By what torch raises in truth, too."""
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8, device="cpu")
    assert is_out_of_memory(found.value)
    assert all(is_out_of_memory(error) for error in FULL)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
    outer = ArgumentError("batch 3")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)


def test_the_inner_place_tells() -> None:
    with (
        pytest.raises(MemoryError) as found,
        lowered_by(lambda: "outside"),
        lowered_by(lambda: "inside"),
    ):
        raise MemoryError
    assert notes(found.value) == "memory ended inside"
    with pytest.raises(RuntimeError) as other, lowered_by(lambda: "never"):
        raise RuntimeError("shapes do not fit")
    assert notes(other.value) == ""


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_by_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What is done is kept, and the same call goes on."""
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", keep_params=0.5)
    own, left = _run.factor, [3]

    def factor(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise copy.copy(error)
        return own(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_run, "factor", factor)
        with pytest.raises(type(error)) as found:
            tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    told = notes(found.value)
    assert "while 1.up (32 x 16) was read or factored" in told
    assert "6.14 kB" in told
    assert "skip=['1.up']" in told
    # As the note says: with more memory the same call goes on
    assert tensorlrf.compress_checkpoint(source, out, keep_params=0.5).resumed == 3
    assert contents(out) == contents(tmp_path / "whole")


def test_skip_is_a_way_out_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    own = _run.factor

    def factor(name: str, *args: Any) -> Any:
        if name == "1.down":
            raise MemoryError
        return own(name, *args)

    monkeypatch.setattr(_run, "factor", factor)
    with pytest.raises(MemoryError):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    report = tensorlrf.compress_checkpoint(
        source, out, keep_params=0.5, skip=["1.down"], restart=True
    )
    assert "1.down" in report.stays


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_in_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(_working_copy, "factor", full(error))
    given = model()
    before = [p.clone() for p in given.parameters()]
    for calibration, limit in ((None, False), (data(), True)):
        with pytest.raises(type(error)) as found:
            tensorlrf.compress(given, keep_params=0.5, skip=[], calibration=calibration)
        told = notes(found.value)
        assert told.count("memory ended") == 1
        assert "while 0 (16 x 16) was factored" in told
        assert "--stream" in told
        assert ("memory_limit=" in told) is limit
    assert all(torch.equal(p, q) for p, q in zip(given.parameters(), before, strict=True))


class Greedy(nn.Module):
    """Takes more than there is, from so many rows on."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.inner, self.rows = nn.Linear(16, 16), rows

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= self.rows:
            torch.empty(1 << 60, dtype=torch.uint8, device="cpu")
        y: Tensor = self.inner(x)
        return y


@pytest.mark.parametrize("what", ["compress", "calibrate", "refine"])
def test_passes_want_smaller_batches(what: str) -> None:
    calls = {
        "compress": lambda batches: tensorlrf.compress(
            Greedy(64), keep_params=0.5, skip=[], calibration=batches, allocation="uniform"
        ),
        "calibrate": lambda batches: tensorlrf.calibrate(Greedy(64), batches, skip=[]),
        "refine": lambda batches: tensorlrf.refine(
            tensorlrf.compress(Greedy(64), keep_params=0.5, skip=[])[0],
            Greedy(64),
            batches,
            steps=1,
        ),
    }
    with pytest.raises(ArgumentError, match="smaller batches take less") as found:
        calls[what](data())
    assert is_out_of_memory(found.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # of few samples
        calls[what]([batch[:63] for batch in data()])  # as it says


def test_training(monkeypatch: pytest.MonkeyPatch) -> None:
    given = model()
    small, _ = tensorlrf.compress(given, keep_params=0.5, skip=[])
    small, given = nn.Sequential(small, copy.deepcopy(small)), nn.Sequential(given, model())
    monkeypatch.setattr(_course.Course, "_step", full(RuntimeError(ALLOCATOR)))
    with pytest.raises(RuntimeError) as found:
        tensorlrf.refine(small, given, data(), steps=2)
    for setting in ("accumulate=", "checkpointing=True", "lora="):
        assert setting in notes(found.value)
    with pytest.raises(RuntimeError) as found:
        tensorlrf.refine(small, given, data(), steps=2, checkpointing=True, lora=2)
    assert "checkpointing" not in notes(found.value)
    assert "lora=" not in notes(found.value)


def test_gradients_that_find_no_room_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is then made without them, as for a model that has none."""
    from tensorlrf.compression.losses import _probe

    monkeypatch.setattr(_probe, "fisher_losses", full(RuntimeError(ALLOCATOR)))
    with pytest.warns(CalibrationWarning, match="memory ends, and smaller batches take less"):
        tensorlrf.plan(model(), keep_params=0.5, skip=[], calibration=data())


def test_the_program_tells_in_a_line(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.safetensors"
    save_file(model().state_dict(), source)
    monkeypatch.setattr(_run, "factor", full(RuntimeError(ALLOCATOR)))
    done = program("compress", source, "-o", tmp_path / "b.safetensors", "--keep-params", ".5",
                   "--stream")  # fmt: skip
    assert done.code == 2
    assert done.err.startswith("error: no memory is left: ")
    assert "--skip" in done.err
    assert done.err.count("\n") == 1


SCRIPT = """
import resource, sys
import torch, tensorlrf
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (260 << 20),) * 2)
try:
    tensorlrf.compress_checkpoint(sys.argv[1], sys.argv[2], keep_params=.5, progress=False)
except (MemoryError, RuntimeError) as error:
    print(type(error).__name__, error, *getattr(error, "__notes__", ["none"]), sep="; ")
else:
    print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are of Linux")
def test_a_process_that_has_too_little(tmp_path: Path) -> None:
    """In truth: a layer whose decomposition has no room under the limit of the process."""
    draws = torch.Generator().manual_seed(0)
    wide = torch.randn(4096, 6144, generator=draws, device="cpu", dtype=torch.float32)
    save_file({"small.weight": wide[:64, :64].clone(), "wide.weight": wide},
              tmp_path / "a.safetensors")  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.safetensors"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "memory ended while wide (4096 x 6144) was read or factored" in done.stdout, done
    assert "302 MB" in done.stdout
