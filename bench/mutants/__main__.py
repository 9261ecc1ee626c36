"""Do the tests notice a fault? `make mutants`, within an hour on two cores.

    python -m bench.mutants draw             120 faults of a seed, into mutants.json
    python -m bench.mutants reach            which tests run their lines: one run of all tests
    python -m bench.mutants run              each against these tests, into results.json
    python -m bench.mutants compare OLD NEW  those that died in one file of results, not in another

A mutant is told by its function and the text of its line, so it outlives files that move. "gone" is
one whose line is no more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from bench.mutants.draw import draw
from bench.mutants.mutant import LIST, RESULTS, ROOT, Mutant, read_list, write_list
from bench.mutants.reach import put_probes, reached, run_tests
from bench.mutants.run import copy_tree, nearest, outcome

N, SEED = 120, 17
MAP = ROOT / "build/mutants/reached.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("draw", "reach", "run", "compare"))
    parser.add_argument("files", nargs="*", type=Path, help="of compare")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="of reach")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests against one mutant")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.what == "draw":
        kept = [m for m in read_list() if m.find() is not None] if LIST.exists() else []
        write_list(draw(N, SEED, keep=kept), SEED)
    elif given.what == "reach":
        reach(given.tests)
    elif given.what == "run":
        run(given.seconds, given.processes)
    else:
        return compare(*given.files)
    return 0


def reach(tests: list[str]) -> None:
    """Run the tests once, with a probe before the line of every mutant."""
    MAP.parent.mkdir(parents=True, exist_ok=True)
    MAP.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        files: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for number, mutant in enumerate(read_list()):
            place = mutant.find(tree)
            if place is not None:
                files[place[0]].append((number, place[1]))
        put_probes(files)
        folders = sorted({*tree.glob("tests/*/"), *tree.glob("tests/test_*.py")})
        names = [str(path.relative_to(tree)) for path in folders] if tests == ["tests"] else tests
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda part: run_tests(tree, MAP, part), (names[::2], names[1::2])))


def run(most: float, processes: int) -> None:
    """Every mutant of which there is no result yet."""
    mutants = read_list()
    tests, seconds = reached(MAP, len(mutants))
    results = read_results(RESULTS) if RESULTS.exists() else {}
    trees: Queue[Path] = Queue()

    def one(number: int) -> None:
        mutant, tree = mutants[number], trees.get()
        try:
            chosen = nearest(tests[number], seconds, mutant, most)
            length = sum(seconds[test] for test in chosen)
            results[mutant.name] = outcome(mutant, chosen, length, tree)
            print(f"{results[mutant.name]:12} {mutant.name}", flush=True)
            write_results(results, mutants)
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        for k in range(processes):
            trees.put(copy_tree(Path(folder) / str(k)))
        todo = [k for k, mutant in enumerate(mutants) if mutant.name not in results]
        list(pool.map(one, todo))
    print(dict(Counter(results.values())))


def read_results(path: Path) -> dict[str, str]:
    """Name of a mutant -> what became of it."""
    values: dict[str, str] = json.loads(path.read_text())
    return values


def write_results(results: dict[str, str], mutants: list[Mutant]) -> None:
    """In the order of the list."""
    known = {mutant.name: results[mutant.name] for mutant in mutants if mutant.name in results}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def compare(old: Path, new: Path) -> int:
    """Say which died before and did not now; 1 where there are such."""
    before, after = read_results(old), read_results(new)
    worse = 0
    for name, result in before.items():
        now = after.get(name, "not run")
        if result == "killed" and now != "killed":
            print(f"{now:12} {name}")
            worse += now != "gone"
    print(f"{Counter(before.values())} before, {Counter(after.values())} now")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
