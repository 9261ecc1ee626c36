"""How far a call goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from bench.house.trees import PACKAGES, ROOT, Count


def hops() -> Iterator[tuple[str, Count]]:
    """Files of ours that a call goes through until the work is done: those on the way (in which a
    function is still running then), each once; and all that were entered by then."""
    import torch

    import tensorlrf

    def decompose() -> None:
        tensorlrf.cp(torch.randn(6, 5, 4, dtype=torch.float64), 2, n_iter_max=3, random_state=0)

    draws = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(4, 6, 3)
    layer.weight.data = torch.randn(layer.weight.shape, generator=draws)
    x = torch.randn(1, 4, 8, 8, generator=draws)
    yield from _both("from `tensorlrf.cp` to the sweep", _hops(decompose, _is_sweep))
    for word in ("cp", "tucker", "svd", "tt", "kron"):
        small = tensorlrf.nn.factorize(layer, word, 3)
        small.path_table = tensorlrf.ops.PathTable.single("chain")
        with torch.no_grad():
            small(x)
            found = _hops(lambda run=small: run(x), _is_convolution)  # type: ignore[misc]
        yield from _both(f"from `FactoredConv2d.forward` ({word}) to the library call", found)


def _is_sweep(frame: FrameType, event: str, argument: Any) -> bool:
    """The function that makes a sweep of CP: it is called so, or MTTKRP is taken in it."""
    name = frame.f_code.co_name
    return event == "call" and ("sweep" in name.lower() or "mttkrp" in name.lower())


def _is_convolution(frame: FrameType, event: str, argument: Any) -> bool:
    return event == "c_call" and getattr(argument, "__name__", "").startswith("conv")


Hops = tuple[list[str], list[str]]


def _hops(call: Callable[[], Any], arrived: Callable[[FrameType, str, Any], bool]) -> Hops:
    """(files on the way, files entered) from a call until `arrived` says so."""
    entered: dict[str, None] = {}
    on: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if on or event not in ("call", "c_call"):
            return
        path = _ours(frame)
        if path:
            entered[path] = None
        if path and arrived(frame, event, argument):
            above: FrameType | None = frame
            while above is not None:
                if _ours(above):
                    on.insert(0, _ours(above))
                above = above.f_back

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(before)
    if not on:
        raise RuntimeError("the call never came to what it is watched for; see the rule")
    return list(dict.fromkeys(on)), list(entered)


def _ours(frame: FrameType) -> str:
    if frame.f_code.co_filename.startswith("<lowered"):
        return "<lowered>"  # the straight code of a form, which is in no file
    path = Path(frame.f_code.co_filename)
    inside = any(path.is_relative_to(ROOT / package) for package in PACKAGES)
    return str(path.relative_to(ROOT)) if inside else ""


def _both(name: str, found: Hops) -> Iterator[tuple[str, Count]]:
    on, entered = found
    yield f"files {name}", Count(len(on), on)
    yield f"files entered {name}", Count(len(entered))
