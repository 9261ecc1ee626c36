"""Fourth phase: the times that the goals are about, every way of a case in one process."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache

from bench import gpu_cases, served
from bench.harvest.plan import TIMINGS
from bench.harvest.serve import Tell
from bench.kernel_cases import Case
from bench.report import Row

SECONDS = 0.08  # of each clock of a way


def handle(case: str, seconds: float, skip: Sequence[str], tell: Tell) -> None:
    """A row for each way: dense, chain, fold and fused, with the floor beside them.

    Raises RuntimeError, and tells no fused row, where a kernel did not compile.
    """
    served.forget()
    rows = case_of(case).measure(SECONDS)
    fallbacks, apart = served.fallbacks(), served.apart()
    if fallbacks:  # a whole step may hold one of several kernels
        rows = [row for row in rows if not row.variant.startswith("fused")]
    for row in rows:
        tell({"row": {"kind": "time", "time": asdict(row)}})
    more = f"; refused as cooperative: {', '.join(apart)}" if apart else ""
    tell({"row": {"kind": "said", "apart": apart, "say": in_words(rows) + more}})
    if fallbacks:
        raise RuntimeError(f"library products ran in the place of {', '.join(fallbacks)}")


def prepare() -> None:
    """The list of cases."""
    cases()


def case_of(name: str) -> Case:
    """The case with the ways that are asked for; raises KeyError for a name that is none."""
    (timing,) = (timing for timing in TIMINGS if timing.case == name)
    return narrowed(cases()[name](), timing.ranks)


@cache
def cases() -> dict[str, Callable[[], Case]]:
    """Names, and what makes the case."""
    return dict(gpu_cases.all_cases())


def narrowed(case: Case, ranks: Sequence[int]) -> Case:
    """The case at these ranks, all where none is given; without the ways of torch.compile, which
    takes seconds for each."""

    def kept(way: str) -> bool:
        rank = re.search(r" r=(\d+)$", way)
        asked = not (ranks and rank) or int(rank[1]) in ranks
        return asked and not way.startswith("compiled")

    return replace(case, ways={name: way for name, way in case.ways.items() if kept(name)},
                   exact={name: run for name, run in case.exact.items() if kept(name)})  # fmt: skip


def in_words(rows: Sequence[Row]) -> str:
    """One line: the times of a case in microseconds, and the floor."""
    times = ", ".join(f"{row.variant} {1e6 * row.median_s:.1f}" for row in rows)
    floors = dict.fromkeys(
        f"{row.info['floor_us']:.1f}" for row in rows if row.info.get("floor_us")
    )
    return f"{rows[0].case}: {times} us" + (f" (floor {', '.join(floors)})" if floors else "")
