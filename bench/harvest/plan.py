"""What a harvest does with its minutes: phases in their order, cases by how much hangs on them.

Plain data, without torch: the driver starts at once, and what a case is, its worker knows. A
further phase is one more entry of `phases`, and a module of its name in this folder with a function
`handle(case, seconds, skip, tell)`, and perhaps one `prepare()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SECONDS = 525.0  # of the whole, from the first line to the last
MOST_COMPILED = 300  # distinct launches that are compiled ahead


@dataclass(frozen=True)
class Task:
    """One case.

    op       the process that it runs in; cases of one op share it, until it breaks
    case     its name
    seconds  after which it is killed, since its process was ready; of a case with parts, after
             which a part is
    again    how often a case with parts is taken up behind the part that broke it
    """

    op: str
    case: str
    seconds: float
    again: int = 0


class Phase(NamedTuple):
    """Cases that belong together, and their seconds; `side_by_side` of them at the same time."""

    name: str
    seconds: float
    tasks: tuple[Task, ...]
    side_by_side: int = 1


# ---- the checks ---------------------------------------------------------------------------------

OPS = (
    *("lowrank_linear", "kron_linear", "cp_conv2d", "tucker_conv2d", "blr_linear", "mttkrp"),
    *("lowrank_swiglu", "tt_linear", "lowrank_embedding", "tt_embedding", "sparse_mttkrp"),
)
SHAPES = ("flagship", "ragged", "decode")
FEW_ROWS = ("lowrank_linear", "lowrank_swiglu", "blr_linear", "kron_linear")  # have "decode"

# ---- the timings --------------------------------------------------------------------------------


class Timing(NamedTuple):
    """A case of `bench.gpu_cases`, and the ranks of it that are timed; none: all that it has."""

    op: str
    case: str
    ranks: tuple[int, ...] = ()


TIMINGS = (
    Timing("kron_linear", "kron 64x64 (x) 64x64 s=2, M=8192"),
    Timing("lowrank_linear", "linear llama3-8b 4096x4096 M=16", (64, 256)),
    Timing("conv2d", "conv resnet50 64-64 3x3 at 56, batch 32", (64,)),
    Timing("lowrank_linear", "linear llama3-8b 4096x4096 M=8192", (64, 128)),
    Timing("blr_linear", "blr b=256 r=16, M=8192"),
    Timing("mttkrp", "mttkrp (400, 400, 400) (0,)"),
    Timing("conv2d", "conv resnet50 128-128 3x3 at 28, batch 32", (64,)),
    Timing("lowrank_swiglu", "mlp M=8192"),
    Timing("tt_linear", "tt 8^4 R=8, M=8192"),
    Timing("training", "training M=8192"),
    Timing("embedding", "embedding M=8192 r=256"),
    Timing("kron_linear", "kron 64x64 (x) 64x64 s=1, M=8192"),
    Timing("kron_linear", "kron 64x64 (x) 64x64 s=4, M=8192"),
    Timing("lowrank_linear", "linear llama3-8b 4096x4096 M=1", (64, 256)),
    Timing("conv2d", "conv resnet50 256-256 3x3 at 14, batch 32", (64, 128)),
    Timing("blr_linear", "blr b=256 r=16, M=16"),
    Timing("training", "training kron 64x64 (x) 64x64 s=2, M=8192"),
    Timing("training", "CP training"),
    Timing("mttkrp", "mttkrp (400, 400, 400) (1,)"),
    Timing("kron_linear", "kron 64x64 (x) 64x64 s=4, M=2048"),
    Timing("kron_linear", "kron 64x64 (x) 64x64 s=2, M=2048"),
    Timing("blr_linear", "blr b=512 r=32, M=8192"),
    Timing("lowrank_linear", "linear llama3-8b 4096x4096 M=128", (64, 256)),
    Timing("lowrank_swiglu", "mlp M=16"),
    Timing("training", "training blr b=256 r=16, M=8192"),
    Timing("training", "training SwiGLU M=8192"),
    Timing("tt_linear", "tt 8^4 R=16, M=8192"),
    Timing("blr_linear", "blr b=512 r=32, M=16"),
    Timing("mttkrp", "mttkrp (512, 512, 3, 3) (0,)"),
    Timing("kron_linear", "kron 64x64 (x) 64x64 s=1, M=2048"),
    Timing("embedding", "TT embedding M=8192 R=64"),
    Timing("training", "embedding training r=64"),
    Timing("training", "training tt 8^4 R=8, M=8192"),
)

# ---- what is tuned ------------------------------------------------------------------------------


class Tuning(NamedTuple):
    """A problem of `bench.tune` by its bucket; in bfloat16, forward."""

    op: str
    bucket: str

    def __str__(self) -> str:
        return f"{self.op} {self.bucket}"


TUNINGS = (
    Tuning("kron_linear", "8192x64x64x64x64x2"),
    Tuning("lowrank_linear", "16x4096x4096x64"),
    Tuning("cp_conv2d", "131072x64x64x64"),
    Tuning("tucker_conv2d", "32768x128x1024x64"),
    Tuning("lowrank_linear", "8192x4096x4096x64"),
    Tuning("blr_linear", "8192x4096x4096x256"),
)

# ---- all of it ----------------------------------------------------------------------------------


def phases(cores: int) -> tuple[Phase, ...]:
    """All phases, for a machine of so many cores."""
    shapes = [(op, s) for s in SHAPES for op in OPS if s != "decode" or op in FEW_ROWS]
    checkers = max(1, min(8, cores - 2))
    testers = max(1, min(12, cores - 2))
    each = 90.0 / len(TUNINGS)
    return (
        Phase(
            "environment",
            15.0,
            (
                Task("ceilings", "ceilings", 12.0),
                # What waits for itself may wait for ever.
                Task("barrier", "barrier", 6.0),
                Task("ceilings", "shares", 12.0),
            ),
        ),
        Phase("compile", 55.0, (Task("compile", "launches", 55.0),)),
        Phase("check", 60.0, tuple(Task(op, f"{op} {s}", 25.0) for op, s in shapes), checkers),
        Phase("time", 200.0, tuple(Task(t.op, t.case, 20.0) for t in TIMINGS)),
        Phase("tune", 90.0, tuple(Task("tune", str(t), each + 5.0) for t in TUNINGS)),
        Phase(
            "test",
            105.0,
            tuple(Task(f"{k}", f"{k}/{testers}", 40.0, again=4) for k in range(testers)),
            testers,
        ),
    )


def chosen(names: str, of: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases of these names, divided by commas, in the order of `of`; all where none is named.

    Raises ValueError for a name that is none.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [phase.name for phase in of]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"PHASES={names!r}: {unknown[0]!r} is none of {', '.join(known)}")
    return tuple(phase for phase in of if not wanted or phase.name in wanted)
