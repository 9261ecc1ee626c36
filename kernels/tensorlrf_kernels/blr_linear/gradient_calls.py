"""The single launches that only the gradients of `blr_linear` take: `panels`, a product a panel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.blr_linear.calls import OP, Panels, intermediates, of_kernel, there
from tensorlrf_kernels.blr_linear.forms import Form
from tensorlrf_kernels.blr_linear.tables import grads_table
from tensorlrf_kernels.launches import Call, LaunchConfig
from tensorlrf_kernels.lowrank_linear.fused import kept_dtype, precision


def intermediates_back(form: Form, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """As `intermediates` for the transposed matrix."""
    dtype = kept_dtype(like.dtype)
    if form.name == "blast":
        before, behind = intermediates(form, like, rows)
        return behind, before
    dt = like.new_empty(rows, max(1, form.right.slots), dtype=dtype)
    return dt, dt


def unwoven(form: Form, dy: Tensor, left: Tensor) -> Tensor:
    """dy (M, m) with the rows of each strip beside each other, padded: (M, Q S)."""
    Q, S = left.shape[:2]
    padded = torch.unflatten(F.pad(dy, (0, S * Q - dy.shape[1])), 1, (S, Q))  # (M, S, Q)
    return padded.transpose(1, 2).flatten(1)


def unwoven_bias(form: Form, bias: Tensor | None, left: Tensor) -> Tensor | None:
    return None if bias is None else unwoven(form, bias[None], left)[0]


def named(panels: Panels, name: str) -> Tensor:
    return {"left": panels.left, "right": panels.right, "dense": panels.third}[name]


def parts_of(
    config: LaunchConfig, form: Form, which: str, M: int, rows: int, panels: Panels, like: Tensor
) -> Tensor:
    """(splits of all chunks, numbers) in float32; zeros where no panel comes to everything."""
    size = named(panels, which).numel()
    those = form.dense if which == "dense" else getattr(form, which).panels
    make = torch.empty if sum(p.width * p.ranks for p in those) == size else torch.zeros
    blocks = config.blocks
    table = there(grads_table(form, which, blocks["BR"], blocks["BC"], like.device))
    each, full = _splits(config, table.total, rows)
    chunks = (M - 1) // rows
    return make(
        chunks * full + -(-(M - chunks * rows) // each),
        size,
        dtype=torch.float32,
        device=like.device,
    )


def _splits(config: LaunchConfig, tasks: int, rows: int) -> tuple[int, int]:
    """Rows of a program of `panels`, and how many that makes of a chunk of `rows`: programs enough
    for two on each of some hundred multiprocessors."""
    BM = config.blocks["BP"]
    splits = max(1, min(256 // max(1, tasks), rows // (4 * BM)))
    each = -(-rows // (splits * BM)) * BM
    return each, -(-rows // each)


def panels_calls(
    config: LaunchConfig,
    form: Form,
    which: str,
    u: Tensor,
    v: Tensor,
    parts: Tensor,
    first: int,
    rows: int,
) -> list[Call]:
    """The launch that makes u^T v for every panel, into the parts of the chunk of `rows` rows that
    begins at the `first`."""
    blocks = {name: config.blocks[name] for name in ("BR", "BC")}
    table = there(grads_table(form, which, blocks["BR"], blocks["BC"], v.device))
    if not table.total:
        return []
    each, full = _splits(config, table.total, rows)
    splits = -(-len(v) // each)
    into = parts[first // rows * full :][:splits]
    args = {
        "u": u,
        "v": v,
        "tasks": table.tasks,
        "parts": into,
        "M": len(v),
        "size": parts.shape[1],
        "TASKS": table.total,
        "ROWS": each,
        "u_row": u.stride(0),
        "u_col": u.stride(1),
        "v_row": v.stride(0),
        "v_col": v.stride(1),
    }
    constants = {
        "ADJACENT": table.adjacent,
        "ALIGN": table.align,
        "PRECISION": precision(v.dtype),
    }
    one = of_kernel(config, "panels", {"BM": config.blocks["BP"], **blocks})
    return [Call(OP, one, table.total * splits, args, constants)]
