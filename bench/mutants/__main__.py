"""Do the tests notice a fault? `make mutants`, within an hour on two cores.

    python -m bench.mutants draw      120 faults of a seed, into mutants.json
    python -m bench.mutants relocate  where their code is today, into moved.json
    python -m bench.mutants reach     which tests run their lines: one run of all tests
    python -m bench.mutants run       each against these tests, into after.jsonl; continues
    python -m bench.mutants table     what became of them, by folder
    python -m bench.mutants compare   before beside after; fails where one died before and lives

A mutant goes by the name with which it was drawn. Its code may have moved or been rewritten since;
`relocate` follows it by rule, and what no rule finds is told by hand in moved.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from queue import Queue
from threading import Lock

from bench.mutants.draw import draw
from bench.mutants.moved import MOVED, Moved, read_moved, relocated_all, write_moved
from bench.mutants.mutant import LIST, ROOT, read_list, write_list
from bench.mutants.reach import put_probes, reached
from bench.mutants.results import AFTER, BEFORE, add_result, beside, counts, read_results, table
from bench.mutants.run import copy_tree, nearest, outcome, run_tests

N, SEED = 120, 17
MAP = ROOT / "build/mutants/reached.jsonl"
FILES = 12
"""Of tests, that are run by one process: a run that was ended goes on with the next ones."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("draw", "relocate", "reach", "run", "table", "compare"))
    parser.add_argument("files", nargs="*", type=Path, help="of compare: two, where not the usual")
    parser.add_argument("--only", default="*", help="mutants in files of this glob (reach, run)")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="of reach")
    parser.add_argument("--anew", action="store_true", help="reach, run: forget what was done")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests against one mutant")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=AFTER, help="of run, which continues it")
    parser.add_argument("--again", action="store_true", help="run what died before and lives, too")
    given = parser.parse_args()
    if given.what == "draw":
        kept = [m for m in read_list() if m.find() is not None] if LIST.exists() else []
        write_list(draw(N, SEED, keep=kept), SEED)
    elif given.what == "relocate":
        return relocate()
    elif given.what == "reach":
        reach(given.tests, given.processes, given.only, given.anew)
    elif given.what == "run":
        if given.anew:
            given.results.unlink(missing_ok=True)
        run(given.seconds, given.processes, given.results, given.again, given.only)
    elif given.what == "table":
        print(table(read_list(), read_results(given.results)))
    else:
        return compare(*(given.files or (BEFORE, AFTER)))
    return 0


def relocate() -> int:
    """Follow the mutants; 1 where some are to be told by hand."""
    known = {row.mutant: row for row in read_moved()} if MOVED.exists() else {}
    rows, missing = relocated_all(known)
    write_moved(rows)
    print("\n".join(f"to be told by hand in {MOVED.name}: {name}" for name in missing))
    return int(bool(missing))


def reach(tests: list[str], processes: int, only: str = "*", anew: bool = False) -> None:
    """Run the tests once, with a probe before the line of every mutant; those that were run for
    the map that is there are not run again."""
    MAP.parent.mkdir(parents=True, exist_ok=True)
    if anew:
        MAP.unlink(missing_ok=True)
    done = _mapped()
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / "tree")
        files: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for number, fault in enumerate(read_moved()):
            place = fault.find(tree)
            if place is not None and fnmatch(fault.path, only):
                files[place[0]].append((number, place[1]))
        put_probes(files)
        names = [name for name in _test_files(tree, tests) if name not in done]
        # Dealt out, so that slow files, which lie together, are not of one part.
        count = -(-len(names) // FILES)
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda k: _map(tree, names[k::count]), range(count)))


def _map(tree: Path, files: list[str]) -> None:
    run_tests(tree, MAP, files)
    with MAP.open("a") as notes:
        notes.writelines(json.dumps([None, name]) + "\n" for name in files)


def _mapped() -> set[str]:
    lines = MAP.read_text().splitlines() if MAP.exists() else []
    return {name for value, name in map(json.loads, lines) if value is None}


def _test_files(tree: Path, tests: list[str]) -> list[str]:
    found = [
        path
        for name in tests
        for path in ([tree / name] if name.endswith(".py") else (tree / name).rglob("test_*.py"))
    ]
    return sorted(str(path.relative_to(tree)) for path in found)


def run(most: float, processes: int, path: Path, again: bool = False, only: str = "*") -> None:
    """Every mutant of which there is no result in that file yet, and with `again` those that died
    before and survived: of more `most` seconds, say. What is written last counts."""
    faults = read_moved()
    tests, seconds = reached(MAP, len(faults))
    known = read_results(path) if path.exists() else {}
    before = read_results(BEFORE)
    trees: Queue[Path] = Queue()
    writes = Lock()

    def is_due(fault: Moved) -> bool:
        if fault.name not in known:
            return True
        return again and before[fault.name].result == "killed" != known[fault.name].result

    def one(number: int) -> None:
        fault, tree = faults[number], trees.get()
        try:
            chosen = nearest(tests[number], seconds, fault, most)
            found = outcome(fault, chosen, sum(seconds[test] for test in chosen), tree)
        finally:
            trees.put(tree)
        with writes:
            add_result(path, fault.name, found)
            known[fault.name] = found
        print(f"{found.result:12} {fault.name} {found.killer}", flush=True)

    due = [k for k, fault in enumerate(faults) if is_due(fault) and fnmatch(fault.path, only)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        for k in range(processes):
            trees.put(copy_tree(Path(folder) / str(k)))
        list(pool.map(one, due))
    print(counts(known))


def compare(old: Path, new: Path) -> int:
    """Say row by row what became of them; 1 where one died before and does not now: it survives, is
    not reached or was not run, or its line is gone."""
    rows, worse = beside(read_results(old), read_results(new))
    print(rows)
    print("\n".join(f"died before, not now: {name}" for name in worse))
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
