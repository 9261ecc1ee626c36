"""What the goals' launches compile to, for chips that need not be here.

    python -m bench.static                     all goals on all chips: prints, writes nothing
    python -m bench.static --chip H200         on one
    python -m bench.static --goal "cp 56"      goals whose name has these words
    python -m bench.static --write             and writes the table of this Triton; with a chip or
                                               part of a name these rows of the table that is there

The tables are in bench/results/static, one for each version of Triton; a diff of them shows what a
change does. Some two minutes a chip.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.report import Row, table, write_results
from bench.static.goals import GOALS
from bench.static.results import FOLDER, NOTE, among, judged, kept, stem
from tensorlrf_kernels._tables import triton_version
from tensorlrf_kernels.chips import KNOWN, known_chip
from tensorlrf_kernels.launches import HAS_TRITON


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--chip", help="name of a known one; all, if none is given")
    parser.add_argument("--goal", default="", help="part of the names to judge")
    parser.add_argument("--write", action="store_true", help="write the table")
    given = parser.parse_args(arguments)
    if not HAS_TRITON:
        print("error: triton is not installed, and nothing else compiles kernels", file=sys.stderr)
        return 2
    try:
        chips = [known_chip(given.chip)] if given.chip else list(KNOWN.values())
        goals = [goal for goal in GOALS if given.goal in goal.name]
        if not goals:
            raise ValueError(f"--goal {given.goal!r} is in none of the names")
        former = kept()
        if given.write and (given.chip or given.goal) and not former:
            raise ValueError(f"{stem()} has no table, of which --chip and --goal write a part")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for chip in chips:
        for goal in goals:
            rows.append(judged(goal, chip))
            print(rows[-1].case, rows[-1].variant, rows[-1].info, flush=True)
    about = {"triton": triton_version()}
    if given.write:
        write_results(FOLDER, stem(), among(former, rows), about, NOTE)
    else:
        print(table(stem(), rows, about, NOTE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
