"""What each layer of the models of the examples can lose, kept for pictures and for plans.

    python bench/sensitivities.py minilm own_cnn efficientnet detector
    python bench/sensitivities.py smollm2 --from demo-output/sensitivities/smollm2-fisher-8.json

Entries of sensitivities.json are what `tensorlrf.Sensitivity.from_json` reads, in four digits;
`bench/how_much.py` draws them. One that `bench/allocation.py` found is taken from its file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.judged import FIGURES  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.subjects import SUBJECTS, subject  # noqa: E402
from tensorlrf.files.replace import replacing  # noqa: E402

RULES = {"efficientnet": "fisher"}
"""Where "auto" would take long."""

EVERY = {"minilm": 3, "detector": 3}
"""Of so many calibration batches one is used."""


def found(name: str) -> dict[str, Any]:
    about, figure = subject(name), FIGURES[name]
    model = about.load()
    batches = about.calibration()[:: EVERY.get(name, 1)]
    start = time.process_time()
    made = tensorlrf.sensitivity(
        model, batches, rule=RULES.get(name, "auto"), skip=list(about.skip) or None,
        loss=figure.loss, readout=figure.readout, progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    return {"batches": len(batches), "seconds": seconds, **json.loads(made.to_json())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--from", type=Path, dest="file", help="of one model, found before")
    parser.add_argument("models", nargs="+", choices=SUBJECTS, metavar="MODEL")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results / "sensitivities.json"
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    for name in given.models:
        if given.file is not None:
            content = json.loads(given.file.read_text())
            entry = {"seconds": content["seconds"], **content["sensitivity"]}
        else:
            entry = found(name)
        for row in entry["layers"]:
            row["losses"] = [float(f"{loss:.4g}") for loss in row["losses"]]
        models[name] = entry
        content = {"machine": machine("cpu"), "models": models}
        with replacing(path, overwrite=True) as temporary:
            Path(temporary).write_text(json.dumps(content) + "\n")
        print(f"{name}: {entry['rule']}, {len(entry['layers'])} layers, {entry['seconds']:.0f} s")


if __name__ == "__main__":
    main()
