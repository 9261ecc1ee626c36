"""The single launches of `blr_linear`: one kernel each, on rows that are together in memory."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf_kernels._counters import counters
from tensorlrf_kernels.blr_linear.forms import Form, cuts_of
from tensorlrf_kernels.blr_linear.tables import expand_table, shrink_table, sides
from tensorlrf_kernels.launches import Call, LaunchConfig
from tensorlrf_kernels.lowrank_linear.fused import kept_dtype, precision
from tensorlrf_kernels.lowrank_linear.launch import pad

OP = "blr_linear"
WOVEN = 16  # strips of a Monarch matrix that a program makes: a sector of memory in half precision
VECTOR = 8  # numbers of half precision that one instruction loads
MIXED = {"BM": 16, "BR": 64, "BP": 4}


class Panels(NamedTuple):
    """The tensors of a form, contiguous; `third` is those of dense blocks, or BLAST's scales."""

    left: Tensor
    right: Tensor
    third: Tensor


def fitted(form: Form, config: LaunchConfig, transposed: bool) -> dict[str, int]:
    """The tiles, none larger than what they are filled with."""
    most = _extents(form, transposed)
    return {name: min(size, most.get(name, size)) for name, size in config.blocks.items()}


@lru_cache(maxsize=512)
def _extents(form: Form, transposed: bool) -> dict[str, int]:
    into, out, _, columns = sides(form, transposed)
    dense = [(p.column, p.width) if transposed else (p.slot, p.ranks) for p in form.dense]
    lengths = [p.ranks if transposed else p.width for p in form.dense]
    cuts = cuts_of([*((p.column, p.width) for p in out.panels if p.width), *dense, (0, columns)])
    widest = pad(max(b - a for a, b in pairwise(cuts)))
    if any(cut % VECTOR for cut in cuts):
        widest = min(widest, 64)  # every address is kept in a register of its own
    return {
        "BR": pad(max((p.ranks for p in into.panels), default=1)),
        "BK": pad(max((p.width for p in into.panels), default=1)),
        "BN": widest,
        "BE": pad(max([*(p.ranks for p in out.panels), *lengths], default=1)),
    }


def chunk_of(config: LaunchConfig, rows: int, slots: int, dtype: torch.dtype) -> int:
    """Rows of a chunk: chunks are equal, whole tiles, and within the intermediate's share."""
    BM = config.blocks["BM"]
    bytes = rows * slots * kept_dtype(dtype).itemsize
    chunks = max(1, round(bytes / (config.blocks["MIB"] * 2**20)))
    return -(-rows // (chunks * BM)) * BM


def intermediates(form: Form, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """What a side is shrunk to, in the slots of the right side and of the left one: a tensor each
    for "blast", and one and the same otherwise, in the slots of whichever side reads it."""
    dtype = kept_dtype(like.dtype)
    if form.name == "blast":
        return (
            like.new_empty(rows, form.right.slots, dtype=dtype),
            like.new_empty(rows, form.left.slots, dtype=dtype),
        )
    t = like.new_empty(rows, max(1, form.left.slots), dtype=dtype)
    return t, t


def shrinks(
    config: LaunchConfig,
    form: Form,
    transposed: bool,
    x: Tensor,
    panels: Panels,
    t: tuple[Tensor, Tensor],
) -> list[Call]:
    """The launches up to the intermediate that the expansion reads, t[1]."""
    into = [shrink_call(config, form, transposed, x, panels, t[0])]
    if form.name == "blast":
        into.append(mix_call(config, form, transposed, len(x), panels.third, *t))
    return [call for call in into if call.grid]  # where all is dense there is none


def shrink_call(
    config: LaunchConfig, form: Form, transposed: bool, x: Tensor, panels: Panels, t: Tensor
) -> Call:
    blocks = fitted(form, config, transposed)
    table = there(shrink_table(form, transposed, blocks["BR"], blocks["BK"], x.device))
    args = {
        "x": x,
        "right": panels.left if transposed else panels.right,
        "place": table.place,
        "tasks": table.tasks,
        "t": t,
        "M": len(x),
        "T": t.shape[1],
        "TASKS": table.total,
        "x_row": x.stride(0),
        "x_col": x.stride(1),
    }
    constants = {
        "ADJACENT": table.adjacent,
        "ALIGN": table.align,
        "RANKS": table.ranks,
        "RUN": table.run,
        "PRECISION": precision(x.dtype),
    }
    one = of_kernel(config, "shrink", {name: blocks[name] for name in ("BM", "BR", "BK")})
    return Call(OP, one, _tiles(x, blocks) * table.total, args, constants)


def expand_call(
    config: LaunchConfig,
    form: Form,
    transposed: bool,
    x: Tensor,
    t: Tensor,
    panels: Panels,
    bias: Tensor | None,
    activation: str | None,
    y: Tensor,
    dy: Tensor | None = None,
) -> Call:
    """With dy (M, columns of y), y becomes dy activation'(z)."""
    blocks = fitted(form, config, transposed)
    table = there(expand_table(form, transposed, blocks["BN"], blocks["BE"], x.device))
    g = y if dy is None else dy
    args = {
        "x": x,
        "t": t,
        "left": panels.right if transposed else panels.left,
        "dense": panels.third,
        # A tensor that is not there is an address that nothing reads.
        "bias": y if bias is None else bias,
        "dy": g,
        "tiles": table.tiles,
        "segments": table.segments,
        "y": y,
        "M": len(x),
        "T": t.shape[1],
        "N": y.shape[1],
        "TILES": table.total,
        "x_row": x.stride(0),
        "x_col": x.stride(1),
        "dy_row": g.stride(0),
        "dy_col": g.stride(1),
    }
    constants = {
        "ACTIVATION": activation or "none",
        "BIAS": bias is not None,
        "SLOPE": dy is not None,
        "DENSE": bool(form.dense),
        "ADJACENT": table.adjacent,
        "TURNED": transposed,
        "ALIGN": table.align,
        "RANKS": table.ranks,
        "PRECISION": precision(x.dtype),
    }
    one = of_kernel(config, "expand", {name: blocks[name] for name in ("BM", "BN", "BE")})
    return Call(OP, one, _tiles(x, blocks) * table.total, args, constants)


def decode_call(
    config: LaunchConfig,
    form: Form,
    x: Tensor,
    panels: Panels,
    bias: Tensor | None,
    activation: str | None,
    t: Tensor,
    y: Tensor,
) -> Call:
    blocks = fitted(form, config, False)
    into = there(shrink_table(form, False, blocks["BR"], blocks["BK"], x.device))
    out = there(expand_table(form, False, blocks["BN"], blocks["BE"], x.device))
    args = {
        "x": x,
        "right": panels.right,
        "left": panels.left,
        "dense": panels.third,
        "bias": y if bias is None else bias,
        "place": into.place,
        "tasks": into.tasks,
        "tiles": out.tiles,
        "segments": out.segments,
        "t": t,
        "y": y,
        "counters": counters(x.device),
        "M": len(x),
        "T": t.shape[1],
        "N": y.shape[1],
        "TASKS": into.total,
        "TILES": out.total,
        "x_row": x.stride(0),
        "x_col": x.stride(1),
    }
    constants = {
        "ACTIVATION": activation or "none",
        "BIAS": bias is not None,
        "DENSE": bool(form.dense),
        "RIGHT_ADJACENT": into.adjacent,
        "LEFT_ADJACENT": out.adjacent,
        "TURNED": False,
        "RIGHT_ALIGN": into.align,
        "LEFT_ALIGN": out.align,
        "RIGHT_RANKS": into.ranks,
        "LEFT_RANKS": out.ranks,
        "RUN": into.run,
        "PRECISION": precision(x.dtype),
    }
    for other in ("BW", "MIB"):
        blocks.pop(other)
    one = replace(config, blocks=blocks)
    return Call(OP, one, config.programs, args, constants)


def weave_call(
    config: LaunchConfig,
    t: Tensor,
    left: Tensor,
    slots: int,
    y: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Call:
    """y (M, up to S Q), whose column s Q + q is strip q of t times left[q, s]: strips are `slots`
    columns apart, of which left (Q, S, R) takes the first R, as far as there are any."""
    Q, S, R = left.shape
    args = {
        "t": t,
        "left": left,
        "bias": y if bias is None else bias,
        "y": y,
        "M": len(y),
        "T": t.stride(0),
        "LAST": t.shape[1],
        "N": y.shape[1],
        "Q": Q,
        "S": S,
        "R": R,
        "SLOTS": slots,
    }
    constants = {
        "ACTIVATION": activation or "none",
        "BIAS": bias is not None,
        "PRECISION": precision(left.dtype),
    }
    half = left.dtype.itemsize == 2
    # Beside each other in registers: WOVEN tiles of BM x BS.
    BM, BE = min(config.blocks["BM"], 64 if half else 32), min(config.blocks["BW"], pad(R))
    blocks = {
        "BM": BM,
        "BS": 16,
        "BE": BE,
        "WOVEN": min(WOVEN if half else WOVEN // 2, 1 << (Q - 1).bit_length()),
        "WHOLE": int(R <= BE),
    }
    # Strips are loaded side by side: a pipeline for each would only take long to compile.
    one = replace(
        of_kernel(config, "weave", blocks),
        num_warps=8 if BM == 64 else 4,
        num_stages=1,
        # Products without tensor cores are unrolled into as many registers as they are given.
        registers=255 if half else 0,
    )
    grid = -(-len(y) // BM) * -(-S // blocks["BS"]) * -(-Q // blocks["WOVEN"])
    return Call(OP, one, grid, args, constants)


def mix_call(
    config: LaunchConfig,
    form: Form,
    transposed: bool,
    rows: int,
    scales: Tensor,
    t: Tensor,
    u: Tensor,
) -> Call:
    """u[p] = sum over q of t[q] scales[p, q], or with p and q exchanged where `transposed`."""
    p, q, r = scales.shape
    steps = scales.stride()
    if transposed:
        p, q, steps = q, p, (steps[1], steps[0], steps[2])
    args = {
        "t": t,
        "scales": scales,
        "u": u,
        "M": rows,
        "T": t.shape[1],
        "U": u.shape[1],
        "P": p,
        "Q": q,
        "R": r,
        "SLOTS": t.shape[1] // q,
        "scale_out": steps[0],
        "scale_in": steps[1],
        "scale_rank": steps[2],
    }
    blocks = {**MIXED, "BR": min(MIXED["BR"], pad(r))}
    grid = -(-rows // blocks["BM"]) * -(-(t.shape[1] // q) // blocks["BR"])
    return Call(OP, replace(of_kernel(config, "mix", blocks), num_warps=4), grid, args, {})


def of_kernel(config: LaunchConfig, kernel: str, blocks: dict[str, int]) -> LaunchConfig:
    """The launch of one of the kernels that `config` stands for."""
    return replace(config, kernel=kernel, blocks=blocks, programs=0, cooperative=False)


def _tiles(x: Tensor, blocks: dict[str, int]) -> int:
    return -(-len(x) // blocks["BM"])


def there(table: Any) -> Any:
    """The table, of which `_worthwhile` has seen that it can be had."""
    if table is None:
        raise RuntimeError("blr_linear: a table is missing inside a CUDA graph")
    return table
