"""Do the tests notice a fault? `make mutants`, within an hour on two cores.

    python -m bench.mutants draw             120 faults of a seed, into mutants.json
    python -m bench.mutants reach            which tests run their lines: one run of all tests
    python -m bench.mutants run              each against these tests, into results.jsonl
    python -m bench.mutants table            what became of them, by folder
    python -m bench.mutants compare OLD NEW  those that died in one file of results, not in another

A mutant is told by its function and the text of its line, so it outlives files that move. "gone" is
one whose line is no more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock

from bench.mutants.draw import draw
from bench.mutants.mutant import LIST, ROOT, read_list, write_list
from bench.mutants.reach import put_probes, reached
from bench.mutants.results import RESULTS, add_result, counts, read_results, table
from bench.mutants.run import Outcome, copy_tree, nearest, outcome, run_tests

N, SEED = 120, 17
MAP = ROOT / "build/mutants/reached.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("draw", "reach", "run", "table", "compare"))
    parser.add_argument("files", nargs="*", type=Path, help="of compare")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="of reach")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests against one mutant")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="of run, which continues it")
    parser.add_argument("--again", action="store_true", help="run what survived, too")
    given = parser.parse_args()
    if given.what == "draw":
        kept = [m for m in read_list() if m.find() is not None] if LIST.exists() else []
        write_list(draw(N, SEED, keep=kept), SEED)
    elif given.what == "reach":
        reach(given.tests, given.processes)
    elif given.what == "run":
        run(given.seconds, given.processes, given.results, given.again)
    elif given.what == "table":
        print(table(read_list(), read_results(given.results)))
    else:
        return compare(*given.files)
    return 0


def reach(tests: list[str], processes: int) -> None:
    """Run the tests once, with a probe before the line of every mutant."""
    MAP.parent.mkdir(parents=True, exist_ok=True)
    MAP.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / "tree")
        files: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for number, mutant in enumerate(read_list()):
            place = mutant.find(tree)
            if place is not None:
                files[place[0]].append((number, place[1]))
        put_probes(files)
        folders = sorted({*tree.glob("tests/*/"), *tree.glob("tests/test_*.py")})
        names = [str(path.relative_to(tree)) for path in folders] if tests == ["tests"] else tests
        parts = [names[k::processes] for k in range(processes)]
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda part: run_tests(tree, MAP, part), filter(None, parts)))


def run(most: float, processes: int, path: Path, again: bool = False) -> None:
    """Every mutant of which there is no result in that file yet, or `again` none but that it
    survived: of more `most` seconds, say. What is written last counts."""
    mutants = read_list()
    tests, seconds = reached(MAP, len(mutants))
    known = read_results(path) if path.exists() else {}
    trees: Queue[Path] = Queue()
    writes = Lock()

    def one(number: int) -> None:
        mutant, tree = mutants[number], trees.get()
        try:
            chosen = nearest(tests[number], seconds, mutant, most)
            found = outcome(mutant, chosen, sum(seconds[test] for test in chosen), tree)
        finally:
            trees.put(tree)
        with writes:
            add_result(path, mutant.name, found)
            known[mutant.name] = found
        print(f"{found.result:12} {mutant.name} {found.killer}", flush=True)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        for k in range(processes):
            trees.put(copy_tree(Path(folder) / str(k)))
        done = {n for n, found in known.items() if not (again and found.result == "survived")}
        list(pool.map(one, [k for k, m in enumerate(mutants) if m.name not in done]))
    print(counts(known))


def compare(old: Path, new: Path) -> int:
    """Say which died before and did not now; 1 where there are such. What is gone or was not run
    is said too: whoever moved its line tells where the fault would be today."""
    before, after = read_results(old), read_results(new)
    worse = 0
    for name, was in before.items():
        now = after.get(name, Outcome("not run"))
        if was.result == "killed" and now.result != "killed":
            print(f"{now.result:12} {name}, killed before by {was.killer}")
            worse += now.result != "gone"
    print(f"before: {counts(before)}\nnow:    {counts(after)}")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
