"""What a launch's machine code says of it: registers, residence, instructions, and two bounds.

The bounds are of arithmetic, nothing was measured: the issue bound is the time in which the busiest
multiprocessor can issue what its programs cannot leave out, at the clock of the data sheet; the
bandwidth bound the time in which the least bytes can be moved, where the streamed operand comes no
faster than its bytes in flight allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.static.flow import Flow, Loop, every, flow_of
from bench.static.goals import Goal, Launch
from bench.static.sass import PIPES, Instruction, by_pipe, parse
from bench.static.source import loop_at, operand_at
from bench.static.work import AT_TIMES, PASSES, STREAMED, TASKS, Sizes, sizes_of
from tensorlrf_kernels._aot import binary_of, disassembled, usage_of
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import Call

REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that each block takes beside its own
POLL = "poll"
ISSUED = 4  # instructions a cycle and multiprocessor
CLOCK = {(8, 0): 1.41e9, (9, 0): 1.98e9, (10, 0): 1.965e9}  # Hz, the boost of data sheets
# s from memory under load: 28 KB a multiprocessor in flight are then just what an H200's bandwidth
# takes. A lead, until a GPU has been asked.
LATENCY = 28 * 1024 * 132 / 4.3e12


@dataclass(frozen=True)
class Judged:
    """One launch on one chip.

    grid         programs; `config` is how they are launched
    spilled      bytes of a thread in local memory
    shared       bytes of a block
    resident     blocks that fit a multiprocessor
    warps        at once on a multiprocessor, of the blocks that are launched
    waves        rounds in which the grid, or a persistent grid its first tasks, passes through
    fences       device-wide memory barriers in the code
    in_flight    bytes that asynchronous copies have under way on a multiprocessor in the loop with
                 the most of them; `streamed` those of the operand that comes from memory
    per_unit     instructions of a warp for a `unit` of work, in all and in `pipes`
    loops        instructions of a pass by loop, of every pass + of some; what is in none first
    issue_us, bandwidth_us, floor_us  None where the code or the case does not tell
    """

    config: str
    grid: int
    registers: int
    spilled: int
    shared: int
    resident: int
    warps: int
    waves: int
    fences: int
    in_flight: int
    streamed: int
    unit: str
    per_unit: float | None
    pipes: str
    loops: str
    tensor_ops: str
    issue_us: float | None
    bandwidth_us: float | None
    floor_us: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def judge(goal: Goal, launch: Launch, chip: Chip) -> Judged:
    """Compile the launch for the chip and read its code."""
    call = launch.call
    cubin, dynamic = binary_of(call, chip)
    usage = usage_of(cubin)
    code = parse(disassembled(cubin))
    flow = flow_of(code)
    warps = call.config.num_warps
    shared = dynamic + max(RESERVED, usage.get("SHARED", 0))
    resident = residents(usage["REG"], shared, warps, chip)
    launched = min(resident, -(-call.grid // chip.multiprocessors))
    sizes = sizes_of(call)
    passes = _passes(goal, flow, code, sizes)
    in_flight, streamed = (n * launched for n in _on_the_way(goal, flow, code, call))
    slots = None if passes is None else _slots(flow, passes, sizes, code, call.grid)
    unit = _per_unit(goal, flow, code, passes, sizes)
    tasks = TASKS[goal.kernel](sizes) if goal.kernel in TASKS else 0
    reached = [code[k] for k in flow.reached]
    return Judged(
        config=str(call.config),
        grid=call.grid,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=shared,
        resident=resident,
        warps=launched * warps,
        waves=max(-(-call.grid // (resident * chip.multiprocessors)), -(-tasks // call.grid)),
        fences=sum(i.fences_device for i in reached),
        in_flight=in_flight,
        streamed=streamed,
        unit=goal.unit,
        per_unit=None if unit is None else round(sum(unit.values()), 1),
        pipes=_in_words(unit),
        loops=_loops_in_words(flow, code),
        tensor_ops=_in_words(Counter(i.root for i in reached if i.pipe == "tensor")),
        issue_us=None if slots is None else _issue(slots, call.grid, warps, chip),
        bandwidth_us=_bandwidth(launch, streamed, chip),
        floor_us=_floor(launch, goal, chip),
    )


def _in_words(counts: Mapping[str, float] | None) -> str:
    return ", ".join(f"{name} {round(n, 1):g}" for name, n in (counts or {}).items() if n)


def residents(registers: int, shared: int, warps: int, chip: Chip) -> int:
    """Blocks that fit a multiprocessor at once: registers are given to warps by 256."""
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // of_warp // warps
    return min(by_registers, (chip.shared_memory + RESERVED) // shared, WARPS // warps, BLOCKS)


# ---- instructions -------------------------------------------------------------------------------


def name_of(loop: Loop, code: list[Instruction]) -> str:
    """The source's name of a loop; POLL of a short one that the compiler made, to wait for a copy
    or for a product."""
    if len(loop.always) <= 4 and any(code[k].root == "SYNCS" for k in loop.always):
        return POLL
    if named := loop_at(code[loop.latch].file, code[loop.latch].line):
        return named
    # Of a branch that belongs to no line, what most of the other instructions belong to.
    inner = {name_of(each, code) for each in loop.inner}
    names = Counter(loop_at(code[k].file, code[k].line) for k in loop.always)
    found = [name for name, _ in names.most_common() if name and name not in inner]
    return found[0] if found else POLL if len(loop.always) <= 8 else ""


def _loops_in_words(flow: Flow, code: list[Instruction]) -> str:
    counts = [("", flow.always, flow.at_times)]
    named = [(name_of(loop, code), loop) for loop in every(flow.loops)]
    counts += [(name, loop.always, loop.at_times) for name, loop in named if name != POLL]
    return ", ".join(f"{name} {len(a)}+{len(b)}".strip() for name, a, b in counts)


def _passes(
    goal: Goal, flow: Flow, code: list[Instruction], sizes: Sizes
) -> Mapping[str, float] | None:
    """Passes of each loop by all programs; None where one is not known."""
    known = {**PASSES.get(goal.op, {}), POLL: lambda v: 0}
    names = {name_of(loop, code) for loop in every(flow.loops)}
    if not names <= known.keys():
        return None
    return {name: known[name](sizes) for name in names}


Counts = dict[str, float]


def _counts(loop: Loop | Flow, code: list[Instruction], share: float, scale: float) -> Counts:
    always = by_pipe([code[k] for k in loop.always])
    at_times = by_pipe([code[k] for k in loop.at_times])
    return {pipe: scale * (always[pipe] + share * at_times[pipe]) for pipe in PIPES}


def _share(name: str, sizes: Sizes) -> float:
    return AT_TIMES[name](sizes) if name in AT_TIMES else 0.0


def _sum(parts: list[Counts]) -> Counts:
    return {pipe: sum(part[pipe] for part in parts) for pipe in PIPES}


def _slots(
    flow: Flow, passes: Mapping[str, float], sizes: Sizes, code: list[Instruction], grid: int
) -> Counts:
    """Instructions of a warp, by pipe, in the mean over the programs."""
    parts = [_counts(flow, code, 0.0, 1.0)]
    for loop in every(flow.loops):
        name = name_of(loop, code)
        parts.append(_counts(loop, code, _share(name, sizes), passes[name] / grid))
    return _sum(parts)


def _per_unit(
    goal: Goal,
    flow: Flow,
    code: list[Instruction],
    passes: Mapping[str, float] | None,
    sizes: Sizes,
) -> Counts | None:
    """Of a pass of the goal's loop without what only some passes do, or of a program's share."""
    if isinstance(goal.of, int):
        if passes is None:
            return None
        whole = _slots(flow, passes, sizes, code, sizes.grid)
        return {pipe: n / goal.of for pipe, n in whole.items()}
    loops = [loop for loop in every(flow.loops) if name_of(loop, code) == goal.of]
    if not loops or (loops[0].inner and passes is None):
        return None
    parts = [_counts(loops[0], code, 0.0, 1.0)]
    for inner in every(loops[0].inner):
        assert passes is not None
        name = name_of(inner, code)
        parts.append(_counts(inner, code, 0.0, passes[name] / passes[goal.of]))
    return _sum(parts)


# ---- bytes and bounds ---------------------------------------------------------------------------


def _on_the_way(goal: Goal, flow: Flow, code: list[Instruction], call: Call) -> tuple[int, int]:
    """Bytes that the asynchronous copies of a program have under way while a tile is used: in all,
    in the loop with the most of them, and those of the streamed operand."""
    streams = STREAMED.get(goal.kernel, ())
    each = (call.config.num_stages - 1) * call.config.num_warps
    most = streamed = 0
    for loop in every(flow.loops):
        copies = [code[k] for k in (*loop.always, *loop.at_times) if code[k].copied]
        most = max(most, each * sum(i.copied for i in copies))
        mine = [i.copied for i in copies if operand_at(i.file, i.line) in streams]
        streamed = max(streamed, each * sum(mine))
    return most, streamed


def _issue(slots: Counts, grid: int, warps: int, chip: Chip) -> float:
    programs = -(-grid // chip.multiprocessors)
    cycles = programs * warps * sum(slots.values()) / ISSUED
    return _us(cycles / CLOCK[chip.capability])


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def _bandwidth(launch: Launch, streamed: int, chip: Chip) -> float | None:
    if launch.bytes is None:
        return None
    x = _streamed_bytes(launch.call)
    reached = chip.bandwidth
    if streamed and x:
        reached = min(reached, streamed * chip.multiprocessors / LATENCY)
    x = min(x, launch.bytes)
    return _us(x / reached + (launch.bytes - x) / chip.bandwidth)


def _streamed_bytes(call: Call) -> int:
    """Of the operand of which most is in flight, where its size is that of a matrix x (M, K)."""
    v = sizes_of(call)
    if call.op in ("lowrank_linear", "lowrank_swiglu") and call.config.kernel == "prefill":
        return int(v.M * v.K * call.args["x"].dtype.itemsize)
    return 0


def _floor(launch: Launch, goal: Goal, chip: Chip) -> float | None:
    if launch.bytes is None or launch.flops is None:
        return None
    given = [t.dtype for t in launch.call.args.values() if hasattr(t, "dtype")]
    dtype = next(dtype for dtype in given if dtype.is_floating_point)
    # Full precision takes three products of TF32 at the least.
    rate = chip.tf32_rate / 3 if goal.op == "mttkrp" else chip.matmul_rate(dtype)
    return _us(max(launch.bytes / chip.bandwidth, launch.flops / rate))
