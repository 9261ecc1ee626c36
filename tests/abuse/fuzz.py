"""Damage that grows by what it reaches: atheris over every reader, from the valid inputs on.

    make fuzz SECONDS=600

Each input is a number, which tells a reader, one of its files, and whether the checksums of that
are put right, and the bytes of the file. Inputs that lead to new lines are kept in build/fuzz, the
next run begins there; the smallest of those that were found are in tests/abuse/corpus.txt. Ends at
the first fault, and leaves its input.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parents[2] / "build" / "fuzz"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit(MISSING)
    with atheris.instrument_imports(include=["tensorlrf"]):  # as they are imported, not later
        from tests.abuse.damage import Damaged, with_checksums
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
        righted, at = divmod(int.from_bytes(data[:2], "little"), len(known))
        seed, name = known[at]
        held = data[2:]
        if righted % 2:
            held = with_checksums(held, name, seed.reader)
        # It may have found checksums that fit: what is read is another thing then, and no fault.
        case = Damaged("fuzz", {**seed.files, name: held}, lies=True)
        found = outcome(seed, case, folder)
        if found.end in FAULTS:
            raise AssertionError(f"{seed.reader.name}, {name}: {found.end}, {found.told}")

    options: list[Any] = [f"-max_total_time={given.seconds}", "-timeout=30", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, os.fspath(CORPUS)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
