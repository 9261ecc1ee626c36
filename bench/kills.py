"""Runs that are killed at random instants: the bytes in the end, and what is left over.

    python bench/kills.py --number 100

Runs by layers are killed by SIGKILL so many times, other writers a quarter as often, and commands
on folders of transformers and on two ranks a tenth, in a process that was forked from one in which
everything is imported: the instants are those of the work, evenly spread over an undisturbed run,
and told by the calls of the system that a run has made, so that those of a machine that is busy are
too. A run that was killed is killed again on its way up to three times, and then finished. Disks
are full where --full is given: runs by layers into file systems of memory (root makes them) that
are too small at first, and larger later.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import Row, machine, onto, write_results  # noqa: E402
from tensorlrf.errors import FileError  # noqa: E402
from tests.abuse.commands import OF_TRANSFORMERS, ranks  # noqa: E402
from tests.abuse.killed import kills_of  # noqa: E402
from tests.abuse.reader import files_of, write  # noqa: E402
from tests.abuse.writers import LONG, OTHERS, streams, two_sources  # noqa: E402

WIDTH = 128
NOTE = (
    "Runs killed at random instants and then finished; equal: how many of them ended with the "
    "bytes of an undisturbed run; torn: kills that left a target neither old nor new; left: names "
    "beside the output after the last run; quarters: how many of the first kills of all runs fell "
    "into each quarter of the undisturbed run, by the calls of the system that were made."
)


def full(folder: Path) -> Row:
    """A run into a disk that has no room: the same call goes on once it has, to the same bytes."""
    two_sources(folder, WIDTH)
    call = {"keep_params": 0.5, "threads": 1, "progress": False, "shard_bytes": 40 * WIDTH}
    tensorlrf.compress_checkpoint(folder / "in", folder / "whole", **call)
    disk, refused, begun = folder / "disk", 0, time.perf_counter()
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        for size in range(96, 4096, 32):
            try:
                tensorlrf.compress_checkpoint(folder / "in", disk / "out", **call)
                break
            except FileError:
                refused += 1
            remount = f"remount,size={size}k"
            subprocess.run(["mount", "-o", remount, disk], check=True)
        equal = files_of(disk / "out") == files_of(folder / "whole")
        left = [one.name for one in disk.iterdir() if one.name != "out"]
    finally:
        subprocess.run(["umount", disk], check=True)
    seconds = time.perf_counter() - begun
    info = {"kills": refused, "runs": 1, "equal": int(equal), "torn": 0, "left": " ".join(left)}
    return Row("compress_checkpoint, disk full", "refused", seconds, seconds, refused, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as above:
        times = dict.fromkeys(streams(WIDTH), given.number)
        times |= dict.fromkeys((*OTHERS, *LONG), max(1, given.number // 4))
        times |= dict.fromkeys((*ranks(WIDTH), *OF_TRANSFORMERS), max(1, given.number // 10))
        for writer, number in times.items():
            if given.only not in writer.name:
                continue
            begun = time.perf_counter()
            found = kills_of(writer, Path(above) / "f", number)
            seconds = time.perf_counter() - begun
            info = {
                "kills": found.kills,
                "runs": found.trials,
                "equal": found.equal,
                "torn": found.torn,
                "left": " ".join(found.left),
                "quarters": " ".join(map(str, found.fell)),
            }
            rows.append(Row(writer.name, "killed", seconds / found.trials, 0.0, found.trials, info))
            print(writer.name, info, f"{seconds:.0f} s", flush=True)
            keep(given.results, rows)
        if given.full:
            write({}, Path(above) / "f")
            rows.append(full(Path(above) / "f"))
            print(rows[-1].case, rows[-1].info, flush=True)
            keep(given.results, rows)


def keep(folder: Path | None, rows: list[Row]) -> None:
    """Those of writers that are done, with the others of a former run."""
    if folder is None:
        return
    former = folder / "kills.json"
    all_rows = onto(former, rows, machine("cpu"))[0] if former.exists() else rows
    write_results(folder, "kills", all_rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
