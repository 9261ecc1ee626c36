"""Refinement of compressed models: held-out and test figures before and after, over seconds.

    python bench/refine.py                                 all rows that are not there yet
    python bench/refine.py --rows smollm2@.8:all           these, measured anew
    python bench/refine.py --rows minilm@.4:all+steps=40 --results DIR      shorter, elsewhere
    python bench/refine.py --settings --rows minilm@.4:all+lr=.01+steps=40    without test figures

A row is MODEL@SHARE:PHASES, PHASES "all" or some of them with commas; arguments of `refine`
may follow. Each row is a process of its own on one thread, and the file is written anew after each.
The budget is in steps, about ten minutes of one core at the most, but for SmolLM2's (`--seconds`).
Models are compressed once, and lie in `--work` from then on, as MODEL@SHARE.safetensors (the share
as it is in the row): one that is there already is taken. `--settings` compares arguments of
`refine` on held-out batches of calibration alone, and writes refine_settings.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.refine_cases import CASES, Case  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.resident import Resident  # noqa: E402

ROWS = (
    *(f"minilm@{share}:all" for share in (".6", ".4", ".25")),
    *(f"efficientnet@{share}:all" for share in (".9", ".8", ".6")),
    "own_cnn@.25:all",
    *(f"smollm2@{share}:all" for share in (".9", ".8", ".6")),
)
NOTE = (
    "Before and after tensorlrf.refine on one thread, one row a process: MiniLM's 36 linears, the "
    "1 x 1 convolutions of EfficientNet-lite0, the five convolutions of the example's own CNN as "
    "CP, SmolLM2's 210 linears (calibrated on news and docstrings), each compressed to the share "
    "behind the @ by the defaults. The "
    "held-out loss (1 - cosine of pooled embeddings; KL of the classes, or of the next tokens, in "
    "nats) is on documents and pictures that neither the fit nor training has seen; refinement "
    "chooses by it what it keeps. Other work ran beside on the machine: read the steps and the CPU "
    "seconds."
)
TEST_NOTE = (
    "Test figures are those of bench/models.py; perplexity of 4 windows of unseen news. MiniLM's "
    "steps are of 8 texts each, but those at .4, measured before the others, are of 16."
)


@dataclass(frozen=True)
class Spec:
    """A row.

    name     model and share, as they are written
    phases   None for all
    options  of `refine`
    """

    name: str
    phases: list[str] | None
    options: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> Spec:
        """ "minilm@.4:local,global+lr=.01". Raises ValueError."""
        head, *options = text.split("+")
        found = re.fullmatch(r"(\w+)@(\d*\.\d+|1):([a-z,]+)", head)
        if found is None or found[1] not in CASES or not all("=" in o for o in options):
            raise ValueError(
                f"a row is MODEL@SHARE:PHASES[+ARGUMENT=VALUE], as minilm@.4:all+lr=.01, with a "
                f"model of {', '.join(CASES)}; got {text!r}"
            )
        pairs = (option.partition("=") for option in options)
        phases = None if found[3] == "all" else found[3].split(",")
        return cls(head.partition(":")[0], phases, {key: _value(v) for key, _, v in pairs})

    def case(self, work: Path) -> Case:
        model, _, share = self.name.partition("@")
        return CASES[model](float(share), work)


def _value(text: str) -> Any:
    if hasattr(torch, text) and isinstance(getattr(torch, text), torch.dtype):
        return getattr(torch, text)
    try:
        return json.loads(re.sub(r"^\.", "0.", text))
    except json.JSONDecodeError:
        return text


def compressed(spec: Spec, case: Case, work: Path) -> nn.Module:
    """The compressed model, from the disk where it is there."""
    path = work / f"{spec.name}.safetensors"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        small, _ = tensorlrf.compress(
            case.dense, calibration=case.fit, loss=case.loss, progress=False, **case.budget
        )  # fmt: skip
        tensorlrf.save(small, path)
    return tensorlrf.load(path, case.dense)


def measure(text: str, seconds: float, work: Path, *, tests: bool) -> dict[str, Any]:
    """Figures of a row; those on test inputs only where `tests`."""
    torch.set_num_threads(1)
    spec = Spec.of(text)
    case = spec.case(work)
    small = compressed(spec, case, work)
    budget = {"seconds": seconds} if case.steps is None else {"steps": case.steps}
    options = spec.options if "steps" in spec.options else {**budget, **spec.options}
    resident, began = Resident(), time.process_time()
    better, report = tensorlrf.refine(
        small, case.dense, case.data, loss=case.loss, holdout=case.holdout, groups=case.groups,
        phases=spec.phases, progress=False, **options,
    )  # fmt: skip
    row = {
        "case": text,
        "cpu_s": time.process_time() - began,
        "peak_mb": resident.peak_mb(),
        "report": json.loads(report.to_json()),
    }
    if tests:
        row["test"] = {"before": case.judge(small), "after": case.judge(better)}
    return row


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """As Markdown."""
    tests = any("test" in row for row in rows)
    beside = ["test before", "test after"] if tests else []
    header = ["case", "held-out before", "after", *beside, "steps", "seconds", "CPU", "peak MB"]
    header.append("ended")
    lines = [
        "# refine" if tests else "# Settings of refine",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        f"{NOTE} {TEST_NOTE}" if tests else NOTE,
        "",
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
    ]
    for row in rows:
        report = tensorlrf.Refinement.from_json(json.dumps(row["report"]))
        figures = [_figures(row["test"][when]) for when in ("before", "after")] if tests else []
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        cells = [row["case"], f"{report.before:.4g}", f"{report.after:.4g}", *figures]
        cells += [f"{report.steps}", f"{report.seconds:.0f}", f"{row['cpu_s']:.0f}", peak]
        lines.append(f"| {' | '.join([*cells, report.reason])} |")
    return "\n".join(lines) + "\n"


def _figures(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def _ordered(rows: dict[str, dict[str, Any]], *, tests: bool) -> list[dict[str, Any]]:
    """Those of ROWS first; what was written when rows had other names goes."""
    if not tests:
        return [rows[name] for name in sorted(rows)]
    others = (name for name in rows if name not in ROWS and "@" in name)
    return [rows[name] for name in (*ROWS, *others) if name in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "build/refine")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rows", nargs="*", default=[], help="of " + ", ".join(ROWS))
    parser.add_argument("--settings", action="store_true", help="without test figures")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        row = measure(given.measure, given.seconds, given.work, tests=not given.settings)
        print(json.dumps(row))
        return
    path = given.results / ("refine_settings.json" if given.settings else "refine.json")
    about = machine("cpu") | {"threads": 1}
    former = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["case"]: row for row in former}
    for text in given.rows or [row for row in ROWS if row not in rows]:
        Spec.of(text)  # what is none is told before the first one runs
    for text in given.rows or [row for row in ROWS if row not in rows]:
        command = [sys.executable, __file__, "--measure", text, "--seconds", str(given.seconds)]
        command += ["--work", str(given.work), *(["--settings"] if given.settings else [])]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{text}: failed", flush=True)
            continue
        rows[text] = json.loads(run.stdout.splitlines()[-1])
        ordered = _ordered(rows, tests=not given.settings)
        given.results.mkdir(parents=True, exist_ok=True)
        content = {"machine": about, "note": NOTE, "rows": ordered}
        path.write_text(json.dumps(content, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(ordered, about))
        told = tensorlrf.Refinement.from_json(json.dumps(rows[text]["report"]))
        print(f"{text}: {told.title}", flush=True)


if __name__ == "__main__":
    main()
