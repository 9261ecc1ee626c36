"""Subclasses of an embedding that scale what they look up, as many models do by the root of the
width: by which number, seen by running them on a table that is known.

The table stands in for the weight, which is not read: T[i, j] = t[i + j] for random signs times
powers of two, so that no two rows are alike, it takes the memory of one row and one column, and a
product with any number is exact but for that number's own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.nn.behaviour.arguments import more_arguments
from tensorlrf.nn.copies import copy_of

SEEDS = 16
"""Tables of other numbers: a scale and its rounding give the same for nearly all of them."""


def scale_of(table: Any) -> float | str:
    """The number c by which `table`, an nn.Embedding or a subclass, multiplies the rows of its
    weight, or the reason why it gives no multiple of rows.

    In eval and in training mode, on indices of several shapes and both dtypes, in float64 and in
    the dtype of the weight, outputs are those of F.embedding times c, exactly. Where c comes from a
    buffer on the meta device it is NaN: that it is one number is seen, and not which.
    """
    if type(table) is nn.Embedding:
        return 1.0
    more = more_arguments(table, nn.Embedding)
    if more:
        return f"subclass of Embedding whose forward takes more than indices ({', '.join(more)})"
    device = _device_of(table)
    blank = any(b.is_meta for b in table.buffers())
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch._C.DisableTorchFunction(),  # whoever watches a pass has nothing to see here
    ):
        try:
            exact = _scale_in(table, torch.float64, device)
            own = _scale_in(table, table.weight.dtype, device)
        except Exception as error:
            return f"subclass of Embedding whose forward fails ({type(error).__name__}: {error})"
        if exact is None or own is None:
            return "subclass of Embedding whose forward is no multiple of what is looked up"
        if blank:
            return math.nan
        # Some round c to the dtype of the weight before they multiply, others do not.
        return exact if _is_near(table, exact, device) else own


def _scale_in(table: Any, dtype: torch.dtype, device: torch.device) -> float | None:
    """The number that all outputs on a table of this dtype are multiples by, if there is one."""
    rows = _stand_in(table, dtype, device)
    found: set[float] = set()
    for ids, got in _looks(table, rows):
        want = F.embedding(ids, rows)
        if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
            return None
        found |= set((got / want).flatten().tolist())
        if len(found) > 1:
            return None
    scale = found.pop()
    return scale if scale and math.isfinite(scale) else None


def _is_near(table: Any, scale: float, device: torch.device) -> bool:
    """Whether the scale as it is gives the very outputs, on a table of other numbers."""
    for seed in range(SEEDS):
        rows = _stand_in(table, table.weight.dtype, device, exact=False, seed=seed)
        looks = _looks(table, rows)
        if not all(torch.equal(got, F.embedding(ids, rows) * scale) for ids, got in looks):
            return False
    return True


def _looks(table: Any, rows: Tensor) -> Iterator[tuple[Tensor, Any]]:
    """Indices, and what a copy of the table with these rows for its weight gives for them."""
    memo: dict[int, Any] = {id(table.weight): nn.Parameter(rows, requires_grad=False)}
    memo |= {
        id(b): torch.full_like(b, 0.75, device=rows.device) for b in table.buffers() if b.is_meta
    }
    bare: Any = object.__new__(type(table))
    # Hooks are no part of what it computes, and may be those of a pass that is under way.
    kept = {k: v for k, v in vars(table).items() if not k.endswith("_hooks")}
    vars(bare).update(vars(nn.Module()) | kept)
    twin: Any = copy_of(bare, memo)
    n, draws = len(rows), torch.Generator().manual_seed(0)
    ends = [0, n - 1, *(() if table.padding_idx is None else (table.padding_idx,))]
    some = torch.randint(0, n, (3, 5), generator=draws, dtype=torch.int64, device="cpu")
    edges = torch.tensor(ends, dtype=torch.int32, device="cpu")
    for training in (False, True):
        for module in twin.modules():
            module.training = training
        for ids in (some.to(rows.device), edges.to(rows.device), some[0, 0].to(rows.device)):
            yield ids, twin(ids.clone())


def _stand_in(
    table: Any, dtype: torch.dtype, device: torch.device, *, exact: bool = True, seed: int = 1
) -> Tensor:
    """A table (n, d) that takes n + d - 1 numbers."""
    n, d = table.weight.shape
    draws = torch.Generator().manual_seed(seed)
    numbers = torch.randn(n + d - 1, generator=draws, dtype=torch.float64, device="cpu")
    if exact:
        powers = torch.randint(
            -3, 4, numbers.shape, generator=draws, dtype=torch.int64, device="cpu"
        )
        numbers = torch.where(numbers < 0, -1.0, 1.0).to(torch.float64) * 2.0**powers
    return numbers.to(device, dtype).as_strided((n, d), (1, 1))


def _device_of(table: Any) -> torch.device:
    """Where it can be run: of a weight without values that of a buffer with some."""
    places = [t.device for t in (table.weight, *table.buffers()) if not t.is_meta]
    return places[0] if places else torch.device("cpu")
