"""Launches as values: how a kernel is to be launched, and one launch made ready."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch

from tensorlrf_kernels.chips import LEAST_CAPABILITY, Chip, chip_of

HAS_TRITON = find_spec("triton") is not None  # looked for, not imported
# In a debug run, how often a program asks whether the others have come to a barrier; then a device
# assertion names the barrier, where the launch would hang. 0: for ever.
POLLS = int(os.environ.get("TENSORLRF_POLLS") or 0)


class Workload(Protocol):
    """What a launch is chosen for, as far as tables and tuning look into it."""

    def __hash__(self) -> int:
        """Of its value."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the operands."""

    @property
    def tf32(self) -> bool:
        """Whether float32 products may be made in it."""

    @property
    def bucket(self) -> str:
        """Problems of one bucket share a launch."""


class Problem(NamedTuple):
    """What a launch is chosen for: y (rows, out) from x (rows, inp) through `rank`."""

    rows: int
    out: int
    inp: int
    rank: int
    dtype: torch.dtype
    tf32: bool = False  # whether float32 products may be made in it

    @property
    def empty(self) -> bool:
        """Whether a size is zero."""
        return not (self.rows and self.out and self.inp and self.rank)

    @property
    def bucket(self) -> str:
        """Every size rounded up to a power of two."""
        sizes = (power_above(size) for size in self[:3])
        return "x".join(map(str, (*sizes, max(16, power_above(self.rank)))))


def power_above(size: int) -> int:
    """The least power of two that is no less than `size`; 1 for zero."""
    return 1 << max(0, size - 1).bit_length()


@dataclass(frozen=True)
class LaunchConfig:
    """How one kernel is launched for a range of shapes.

    kernel       its name in the op's `kernel.py`
    blocks       sizes of its tiles, by the names that they have there
    programs     of a persistent grid; 0 where the shape gives the grid
    cooperative  whether all programs must run at once, to wait for each other
    registers    most of a thread. With 0 the assembler chooses, and may spill a few so that more
                 programs fit a multiprocessor
    """

    kernel: str
    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 3
    programs: int = 0
    cooperative: bool = False
    registers: int = 0

    def rescheduled(self, least_warps: int = 2) -> Iterator[LaunchConfig]:
        """The same tiles by half or twice the warps, or with a stage more or less in the pipeline;
        for tuning to try."""
        for warps in (self.num_warps // 2, self.num_warps * 2):
            if least_warps <= warps <= 16:
                yield replace(self, num_warps=warps)
        for stages in (self.num_stages - 1, self.num_stages + 1):
            if 1 <= stages <= 5:
                yield replace(self, num_stages=stages)

    def regridded(self, chip: Chip, most: int) -> Iterator[LaunchConfig]:
        """A persistent grid of half or twice the programs, at most so many a multiprocessor;
        likewise."""
        each = 2 * chip.multiprocessors
        for programs in (self.programs // 2, self.programs * 2):
            if self.programs and each // 2 <= 2 * programs <= most * each:
                yield replace(self, programs=programs)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kernel": self.kernel,
            "blocks": dict(self.blocks),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "programs": self.programs,
            "cooperative": self.cooperative,
            "registers": self.registers,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LaunchConfig:
        """Inverse of `to_json`; raises ValueError for anything else."""
        try:
            blocks = {str(name): int(size) for name, size in values["blocks"].items()}
            return cls(**{**values, "blocks": blocks})
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{values!r} is not a launch configuration") from None

    def __hash__(self) -> int:
        sizes = tuple(sorted(self.blocks.items()))
        return hash((self.kernel, sizes, self.num_warps, self.num_stages, self.programs))

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        counts = {"programs": self.programs, "registers": self.registers}
        rest = "".join(f" {name}={count}" for name, count in counts.items() if count)
        return f"{self.kernel} {sizes} warps={self.num_warps} stages={self.num_stages}{rest}"


@dataclass(frozen=True)
class Call:
    """One launch of a kernel: everything but the compiled code.

    op        the op whose `kernel.py` holds the kernel
    grid      number of programs
    args      runtime arguments by name, tensors or integers; None where the kernel reads nothing
    constants compile-time arguments by name, the tiles of `config` apart
    """

    op: str
    config: LaunchConfig
    grid: int
    args: Mapping[str, Any]
    constants: Mapping[str, Any]

    @property
    def function(self) -> Any:
        """The kernel; imports triton."""
        return getattr(kernels_of(self.op), self.config.kernel)

    @property
    def arguments(self) -> dict[str, Any]:
        """Runtime and compile-time arguments together."""
        return {**self.args, **self.constants, **self.config.blocks}

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside the arguments."""
        options: dict[str, Any] = {
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
        }
        if self.config.registers:
            options["maxnreg"] = self.config.registers
        if self.config.cooperative:
            options["launch_cooperative_grid"] = True
        if POLLS:  # device assertions are compiled in debug mode alone, and only ours are wanted
            options |= {"debug": True, "sanitize_overflow": False}
        return options

    def launch(self) -> Any:
        """Launch on the current stream of the arguments' device, compiling first if need be;
        returns the compiled kernel."""
        return self.function[(self.grid,)](**self.arguments, **self.options)


def launch(calls: Sequence[Call]) -> list[Any]:
    """Launch one after the other, on the device of the first call's tensors; returns the compiled
    kernels."""
    if not calls:
        return []
    device = next(t.device for t in calls[0].args.values() if isinstance(t, torch.Tensor))
    # Not cuda: Triton's interpreter. To enter a device costs more than to ask for it.
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return [call.launch() for call in calls]
    with torch.cuda.device(device):
        return [call.launch() for call in calls]


class Launched(NamedTuple):
    """What is remembered of a launch that failed: others of the op, and other ops, go on."""

    op: str
    chip: str
    dtype: torch.dtype
    config: LaunchConfig


def execute(
    config: LaunchConfig,
    build: Callable[[LaunchConfig], tuple[Sequence[Call], Any]],
    *,
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    bound: Callable[[Sequence[Call], Sequence[Any], Any], None] | None = None,
) -> Any | None:
    """Launch the calls that `build` makes and return what they fill; None where these kernels do
    not compile on this chip, with one warning.

    A cooperative launch that the device refuses is made as launches apart. Both are remembered for
    the configuration, and for nothing else. `bound` is told of the calls that were launched, their
    compiled kernels, and what they fill.
    """
    chip = chip_of(device)
    if not supports(chip):
        return None
    launched = Launched(op, chip.name, dtype, config)
    if config.cooperative and launched in _apart:
        launched = launched._replace(config=replace(config, cooperative=False))
    if launched in _failed:
        return None
    try:
        calls, result = build(launched.config)
        kernels = launch(calls)
    except Exception as error:
        if launched.config.cooperative and "cooperative" in str(error):
            _apart.add(launched)
            return execute(config, build, op=op, device=device, dtype=dtype, bound=bound)
        if not _did_not_compile(error):
            raise
        _failed.add(launched)
        reason = (str(error).strip().splitlines() or [""])[-1]
        say_once(
            f"{op}: the kernel for {dtype} does not compile on {chip.name} as {launched.config} "
            f"({type(error).__name__}: {reason}); library products run in its place"
        )
        return None
    if bound is not None and kernels:
        bound(calls, kernels, result)
    return result


@cache
def kernels_of(op: str) -> Any:
    """The module with the op's kernels; imports triton."""
    return importlib.import_module(f"tensorlrf_kernels.{op}.kernel")


def supports(chip: Chip) -> bool:
    """Whether kernels are launched on this chip at all."""
    return HAS_TRITON and chip.capability >= LEAST_CAPABILITY


def say_once(message: str) -> None:
    """A RuntimeWarning of the line that called this library, the first time that this message is
    given."""
    if message not in _said:
        _said.add(message)
        frame = _outside(sys._getframe())
        warnings.warn_explicit(message, RuntimeWarning, frame.f_code.co_filename, frame.f_lineno)


def _outside(frame: FrameType) -> FrameType:
    """The nearest caller that is neither of ours nor of torch, which stands between a layer and its
    kernel; the outermost one where there is none, as in a thread of autograd."""
    within = True
    while within and frame.f_back is not None:
        frame = frame.f_back
        within = str(frame.f_globals.get("__name__")).partition(".")[0] in _WITHIN
    return frame


_WITHIN = ("tensorlrf_kernels", "tensorlrf", "torch", "contextlib", "threading")


def _did_not_compile(error: Exception) -> bool:
    """Whether the error came before the kernel ran: of Triton, LLVM or ptxas, a missing C compiler
    or an unwritable cache. Mistakes of ours and errors of the device are neither."""
    mistakes = (TypeError, ValueError, LookupError, NameError, AttributeError)
    if isinstance(error, (*mistakes, torch.OutOfMemoryError)):
        # Some of what Triton's front end raises is a ValueError too.
        return type(error).__module__.startswith("triton")
    text = str(error)
    return ("[CUDA]" not in text and "CUDA error" not in text) or "kernel image" in text


_failed: set[Launched] = set()  # did not compile
_apart: set[Launched] = set()  # cooperative launches that the device refused
_said: set[str] = set()
