"""How the house stands: what is written more than once, who knows whom, how far a call goes.

    python -m bench.house                    the table of this checkout
    python -m bench.house --json house.json  and as JSON
    python -m bench.house --beside old.json  two columns

Everything but the hops is read from the syntax trees, by the rule that stands in each docstring.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.house import counts, imports, sizes
from bench.house.hops import hops
from bench.house.rendering import table
from bench.house.trees import Count


def rows() -> Iterator[tuple[str, Count]]:
    """All counts."""
    yield "descent loops", counts.descent_loops()
    yield "rank searches", counts.rank_searches()
    yield "error budgets", counts.error_budgets()
    yield "metric set-ups", counts.metric_setups()
    yield "classes of metrics", counts.metric_classes()
    yield "functions called fit_in_metric", counts.functions_called("fit_in_metric")
    yield "signatures written by hand", counts.signatures()
    yield from counts.helpers_of_tests()
    yield "warnings with a counted stacklevel", counts.stacklevels()
    yield "checks of formats outside factors/ and ops/forms/", counts.format_checks()
    yield "circles inside a package", imports.circles()
    yield "circles inside a package, imports for types too", imports.circles(types=True)
    yield "circles inside bench", imports.circles(types=True, bench=True)
    yield "imports between families", imports.between_families()
    yield from imports.private_across()
    yield f"folders of more than {sizes.MOST_FILES} files", sizes.folders()
    yield f"folders of tests of more than {sizes.MOST_FILES} files", sizes.folders_of_tests()
    yield f"files of more than {sizes.MOST_LINES} lines", sizes.long_files()
    yield from hops()
    yield from counts.files_that_name()
    yield from sizes.code()


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write it there, too")
    parser.add_argument("--beside", type=Path, help="what --json wrote of another checkout")
    given = parser.parse_args()
    found = dict(rows())
    old = None
    if given.beside is not None:
        old = {name: Count(**v) for name, v in json.loads(given.beside.read_text()).items()}
    if given.json is not None:
        values = {name: vars(count) for name, count in found.items()}
        given.json.write_text(json.dumps(values, indent=1) + "\n")
    print(table(found, old))
    return 0


if __name__ == "__main__":
    sys.exit(main())
