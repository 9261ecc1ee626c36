"""Result files: rows of a benchmark as JSON, and as a Markdown table beside it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tensorlrf_kernels._tables import triton_version


@dataclass(frozen=True)
class Row:
    """One measured variant of one case; times in seconds, 0 where none was taken."""

    case: str
    variant: str
    median_s: float
    min_s: float
    rounds: int
    info: dict[str, Any] = field(default_factory=dict)


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on, without the name of the host."""
    about: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device != "cuda":
        return {"device": _cpu_name(), "threads": torch.get_num_threads(), **about}
    return {
        "device": torch.cuda.get_device_name(),
        **about,
        "triton": triton_version(),
        "cuda": torch.version.cuda,
        "commit": commit(),
    }


def commit() -> str:
    """What is measured: the environment says so where the checkout has no history with it."""
    named = os.environ.get("TENSORLRF_COMMIT")
    if named:
        return named
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def write_results(
    folder: Path, stem: str, rows: Sequence[Row], about: dict[str, Any], note: str = ""
) -> None:
    """Write `stem`.json and `stem`.md into `folder`, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "note": note, "rows": [asdict(row) for row in rows]}
    _replace(folder / f"{stem}.json", json.dumps(content, indent=1) + "\n")
    _replace(folder / f"{stem}.md", table(stem, rows, about, note))


def slug(device: str) -> str:
    """The folder's name for a device."""
    return device.lower().replace(" ", "-")


def onto(path: Path, rows: list[Row], about: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """The rows with those of other cases from a former run of the same GPU, which is named by its
    commit. Raises ValueError for another GPU."""
    former = json.loads(path.read_text())
    before = former["machine"]
    if before["device"] != about["device"]:
        raise ValueError(f"{path} is of {before['device']}, this is {about['device']}")
    measured = {row.case for row in rows}
    kept = [Row(**row) for row in former["rows"] if row["case"] not in measured]
    earlier = [*before.get("earlier", []), before.get("commit")]
    return [*kept, *rows], about | {"earlier": earlier}


def table(stem: str, rows: Sequence[Row], about: dict[str, Any], note: str = "") -> str:
    """Rows of a case beneath each other, with the speed relative to the case's base."""
    columns = list(dict.fromkeys(key for row in rows for key in row.info))
    head = ["case", "variant", "median", "speedup over base", *columns]
    lines = [
        f"# {stem}",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items() if value is not None),
        "",
        *([note, ""] if note else []),
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
    ]
    for row in rows:
        cells = [row.case, row.variant, "", ""]
        if row.median_s:
            base = _base([other for other in rows if other.case == row.case])
            cells[2:] = [_seconds(row.median_s), f"{base.median_s / row.median_s:.2f}"]
        cells += [_cell(row.info.get(key)) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _base(rows: Sequence[Row]) -> Row:
    """The dense row of a case, else a peer's, else the first."""
    dense = [row for row in rows if row.variant == "dense"]
    peers = [row for row in rows if not row.variant.startswith("ours")]
    return (dense or peers or list(rows))[0]


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
