"""The CNN of `examples/own_cnn.py` in CP at a quarter: which ranks, how many pictures, refined.

    python bench/own_cnn_cp.py                       all rows that are not there yet
    python bench/own_cnn_cp.py --rows fisher:512     these, measured anew

Rows are RULE:PICTURES, each a process of its own. Every row is judged on fresh pictures in the
training fonts, by which the row is chosen that gets refined, and on the test fonts, by which
nothing is chosen. "refined" comes last: the chosen row after `tensorlrf.refine`, which is no longer
training-free.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import numpy as np  # noqa: E402
import own_cnn  # noqa: E402
import torch  # noqa: E402
from common import call, interval  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402

KEEP = 0.25
BATCH = 64
PICTURES = (512, 2048)
RULES = ("uniform", "measured", "fisher")
ROWS = ("dense", *(f"{rule}:{n}" for n in PICTURES for rule in RULES), "refined")
STEPS = 160

NOTE = """The CNN of examples/own_cnn.py, five 3 x 3 convolutions and a head, in CP with a \
quarter of their weights, fitted in order (target="original") to the first pictures that it was \
trained on. Right, of 1,000 pictures each: in the training fonts, freshly drawn (valid), and in \
others (test), with 95% intervals; log loss in nats. Refined: the row with the least log loss on \
the former, after tensorlrf.refine on the first 2,048 pictures (160 steps of 64). A layer that the \
rule leaves dense has no rank. Seconds are CPU seconds of one thread; other work ran beside."""


def trained(work: Path) -> nn.Module:
    """The dense net, from the disk where it is there."""
    path = work / "own_cnn.safetensors"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        save_file(own_cnn.train(*own_cnn.digits("train", 4000)).state_dict(), path)
    net = own_cnn.Net()
    net.load_state_dict(load_file(path))
    return net.eval()


def judged(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Of each picture whether it is read right, and the mean log loss."""
    logits = torch.cat([call(net, part) for part in x.split(256)])
    return {
        "right": (logits.argmax(1) == y).int().tolist(),
        "nats": float(nn.functional.cross_entropy(logits, y)),
    }


def measure(row: str, chosen: str, work: Path) -> dict[str, Any]:
    """Figures of a row; `chosen` is the one to refine."""
    net = trained(work)
    x, _ = own_cnn.digits("train", 4000)
    told: dict[str, Any] = {}
    small = net
    if row == "refined":
        given = tensorlrf.load(work / f"{chosen.replace(':', '-')}.safetensors", own_cnn.Net())
        batches = list(x[: max(PICTURES)].split(BATCH))
        start = time.process_time()
        small, report = tensorlrf.refine(given.eval(), net, batches, steps=STEPS, progress=False)
        told = {"seconds": time.process_time() - start, "of": chosen}
        told["refinement"] = json.loads(report.to_json())
    elif row != "dense":
        rule, n = row.split(":")
        start = time.process_time()
        small, report = tensorlrf.compress(
            net, keep_params=KEEP, method="cp", calibration=list(x[: int(n)].split(BATCH)),
            allocation=rule, metric="outputs", skip=[], progress=False,
        )  # fmt: skip
        told = {"seconds": time.process_time() - start, "kept": report.eligible.share}
        told["layers"] = {row.name: row.rank for row in report.layers if row.eligible}
        tensorlrf.save(small, work / f"{row.replace(':', '-')}.safetensors", overwrite=True)
    sets = {"valid": own_cnn.digits("train", 1000, seed=1), "test": own_cnn.digits("test", 1000)}
    return told | {name: judged(small, *pictures) for name, pictures in sets.items()}


def best(rows: dict[str, dict[str, Any]]) -> str:
    """The row with the least log loss in the training fonts."""
    return min((row for row in rows if ":" in row), key=lambda row: rows[row]["valid"]["nats"])


def markdown(rows: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    lines = ["# own_cnn_cp", "", ", ".join(f"{k} {v}" for k, v in about.items()), "", NOTE, ""]
    head = ["rule", "pictures", "right, valid", "right, test", "log loss, valid", "test"]
    head += ["kept", "rank of each layer", "seconds"]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, row in rows.items():
        rule, _, n = name.partition(":")
        if name == "refined":
            rule = f"{row['of']}, refined"
        cells = [rule, n, _right(row["valid"]), _right(row["test"])]
        cells += [f"{row[part]['nats']:.3f}" for part in ("valid", "test")]
        cells.append(f"{row['kept']:.3f}" if "kept" in row else "")
        ranks = row.get("layers", {}).values()
        cells.append(", ".join("dense" if rank is None else f"{rank}" for rank in ranks))
        cells.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _right(judged: dict[str, Any]) -> str:
    right = np.array(judged["right"])
    low, high = interval(lambda drawn: float(right[drawn].mean()), len(right))
    return f"{right.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "build/own_cnn_cp")
    parser.add_argument("--rows", nargs="*", default=[], choices=ROWS, metavar="ROW")
    parser.add_argument("--measure", nargs=2, metavar=("ROW", "CHOSEN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(measure(*given.measure, given.work)))
        return
    path = given.results / "own_cnn_cp.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    about = machine("cpu") | {"threads": 1}
    for row in given.rows or [row for row in ROWS if row not in rows]:
        chosen = best(rows) if row == "refined" else ""
        command = [sys.executable, __file__, "--measure", row, chosen, "--work", str(given.work)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{row}: failed", flush=True)
            continue
        rows[row] = json.loads(run.stdout.splitlines()[-1])
        ordered = {name: rows[name] for name in ROWS if name in rows}
        content = {"machine": about, "note": NOTE, "rows": ordered}
        for suffix, text in ((".json", json.dumps(content)), (".md", markdown(ordered, about))):
            temporary = path.with_name(f".{path.stem}{suffix}.part")
            temporary.write_text(text.rstrip() + "\n")
            os.replace(temporary, path.with_suffix(suffix))
        print(row, {part: _right(rows[row][part]) for part in ("valid", "test")}, flush=True)


if __name__ == "__main__":
    main()
