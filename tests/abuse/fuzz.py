"""Damage that grows by what it reaches: atheris over every reader, from the valid inputs on.

    make fuzz SECONDS=600
    python -m tests.abuse.fuzz --keep

Each input is a number, which tells a reader, one of its files, and whether the checksums of that
are put right, and the bytes of the file. Inputs that lead to new lines are kept in build/fuzz, the
next run begins there. Ends at the first fault, and leaves its input. --keep fuzzes nothing, and
puts the smallest input for each thing that readers say into tests/abuse/corpus.txt, which tests
read.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parents[2] / "build" / "fuzz"
LARGEST, SAME = 3000, 60
"""Bytes of what is kept, at the most; characters of a message by which it is told from others."""

MISSING = (
    "atheris is not installed, and nothing else needs it: .venv/bin/python -m pip install atheris, "
    "which has wheels for CPython on Linux, and run `make fuzz` again"
)


def seeds(folder: Path) -> list[tuple[Any, str]]:
    """A valid input of each reader, and the name of a file of it."""
    from tests.abuse.law import Seed
    from tests.abuse.readers import READERS

    found = []
    for reader in READERS.values():
        seed = Seed.of(reader, folder)
        found += [(seed, name) for name in seed.files if reader.is_foreign(name)]
    return found


def input_of(data: bytes, known: list[tuple[Any, str]]) -> tuple[Any, Any]:
    """(what is read of the valid files, the damaged one)."""
    from tests.abuse.corpus import Found
    from tests.abuse.damage import with_checksums

    righted, at = divmod(int.from_bytes(data[:2], "little"), len(known))
    seed, name = known[at]
    held = with_checksums(data[2:], name, seed.reader) if righted % 2 else data[2:]
    return seed, Found(seed.reader.name, name, held)


def keep_smallest() -> None:
    """Of the inputs that were kept, and of those that are in the corpus."""
    from tests.abuse import corpus
    from tests.abuse.law import REFUSED, outcome

    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp()) / "f"
    known = seeds(folder)
    of = {seed.reader.name: seed for seed, _ in known}
    inputs = [input_of(path.read_bytes(), known)[1] for path in CORPUS.glob("*")]
    kept: dict[tuple[str, str], Any] = {}
    for one in sorted([*corpus.found(), *inputs], key=lambda one: len(one.data)):
        if one.reader not in of or len(one.data) > LARGEST:
            continue
        found = outcome(of[one.reader], one.case(of[one.reader]), folder)
        told = re.sub(r"'[^']*'|[0-9]+|/[^ ]*", "", found.told)
        if found.end == REFUSED:
            kept.setdefault((one.reader, told[:SAME]), one)
    corpus.keep(kept.values())
    print(f"{len(kept)} of {len(inputs)} inputs are in {corpus.PATH}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    if given.keep:
        keep_smallest()
        return
    try:
        import atheris
    except ImportError:
        sys.exit(MISSING)
    with atheris.instrument_imports(include=["tensorlrf"]):  # as they are imported, not later
        from tests.abuse.law import FAULTS, outcome
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp()) / "f"
    known = seeds(folder)
    CORPUS.mkdir(parents=True, exist_ok=True)
    for k, (seed, name) in enumerate(known):
        data = seed.files[name]
        assert isinstance(data, bytes)
        for righted in (0, 1):
            number = (k + righted * len(known)).to_bytes(2, "little")
            (CORPUS / f"seed-{k}-{righted}").write_bytes(number + data)

    def one_input(data: bytes) -> None:
        seed, one = input_of(data, known)
        case = one.case(seed)
        found = outcome(seed, case, folder)
        if found.end in FAULTS:
            raise AssertionError(f"{one.reader}, {one.name}: {found.end}, {found.told}")

    options: list[Any] = [f"-max_total_time={given.seconds}", "-timeout=30", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, os.fspath(CORPUS)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
