"""The pictures of docs/how_much.md, from result files alone: python bench/how_much.py

how_much.png          quality over the share kept, a panel a model
sensitivity_MODEL.png what each layer loses at half of its parameters, blocks by kinds
refinement.png        held-out loss over steps of refinement, in shares of what it was

No model is run. Every number is from a file of the same folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import tensorlrf  # noqa: E402
from tensorlrf.files.picture import picture  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "minilm": "MiniLM: cosine to dense",
    "efficientnet": "EfficientNet-lite0: agreement",
    "own_cnn": "own CNN: read right",
    "smollm2": "SmolLM2: perplexity",
    "detector": "CRAFT: F1",
}
METRICS = {"minilm": "cosine", "efficientnet": "agreement", "own_cnn": "right"}
"""As `bench/frontier.py` names them."""

OURS, UNIFORM, FITTED, DENSE = "#2b6cb0", "#c05621", "#2f855a", "#718096"
RULES = ("uniform", "fisher", "measured", "auto")
COLORS = (OURS, FITTED, UNIFORM, "#6b46c1", "#b83280")

Points = Sequence[tuple[float, float]]


def read(results: Path, stem: str) -> Any:
    """None where there is no such file."""
    path = results / f"{stem}.json"
    return json.loads(path.read_text()) if path.exists() else None


def line(axes: Axes, points: Points, mark: str, color: str, label: str) -> None:
    if points:
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, mark, color=color, label=label, markersize=4)


# ---- quality over the share kept --------------------------------------------------------------


def frontier_panel(axes: Axes, results: Path, name: str) -> bool:
    """From `bench/frontier.py`, with uniform ranks beside where these were measured."""
    content = read(results, f"frontier_{name}")
    if content is None:
        return allocation_panel(axes, results, name)
    points = content["frontier"]["points"]
    judged = [(p["share"], p["quality"]) for p in points if p["kind"] == "factors"]
    line(axes, [p for p in judged if p[1] is not None], "o-", OURS, "allocated, cut")
    fitted = [(row["share"], row[METRICS[name]]) for row in content["fitted"]]
    line(axes, fitted, "D", FITTED, "allocated, fitted")
    for label, own in allocation(results, name, ("uniform",)).items():
        line(axes, own, "s--", UNIFORM, label)
    axes.axhline(points[0]["quality"], color=DENSE, linewidth=1, linestyle=":", label="dense")
    return True


def allocation_panel(axes: Axes, results: Path, name: str) -> bool:
    """From `bench/allocation.py`: rules at the shares that were measured, and the dense model and
    uniform ranks as `bench/models.py` has them."""
    lines = allocation(results, name, RULES)
    dense, lines["uniform, original"] = uniform(results, name)
    lines = {label: points for label, points in lines.items() if points}
    for (label, points), color in zip(lines.items(), COLORS, strict=False):
        line(axes, points, "o-" if len(points) > 1 else "o", color, label)
    if dense is not None:
        axes.axhline(dense, color=DENSE, linewidth=1, linestyle=":", label="dense")
    if "perplexity" in TITLES[name]:
        axes.set_yscale("log")
    return bool(lines)


def allocation(results: Path, name: str, rules: Sequence[str]) -> dict[str, Points]:
    """(share kept, figure) of the rows of some rules, those of one target and metric together."""
    content = read(results, "allocation") or {"rows": {}}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in content["rows"].values():
        if row["model"] == name and row["rule"] in rules and "figure" in row:
            words = [row["rule"], row.get("target", "cut"), row.get("metric", "")]
            label = ", ".join(word for word in words if word)
            found.setdefault(label, []).append((row["kept"], row["figure"]))
    return found


def uniform(results: Path, name: str) -> tuple[float | None, Points]:
    """(the dense model's figure, those of uniform ranks fitted in order)."""
    figures = {
        row["case"]: next(v for v in row["info"].values() if isinstance(v, float))
        for row in (read(results, name) or {"rows": []})["rows"]
        if row["info"]
    }
    points = [
        (float(case.split()[0]), value)
        for case, value in figures.items()
        if case.endswith(" original")
    ]
    return figures.get("dense"), points


def craft_panel(axes: Axes, results: Path, _: str) -> bool:
    """From `bench/craft.py`: uniform ranks, validation scenes."""
    content = read(results, "craft")
    if content is None:
        return False
    rows = [row for row in content["rows"].values() if row["split"] == "validation"]
    for method, mark, color in (("svd", "o-", OURS), ("tucker", "D-", FITTED)):
        points = [
            (row["keep"], row["f1"])
            for row in rows
            if row["setting"].startswith(f"ours {method}") and "original" in row["setting"]
        ]
        line(axes, points, mark, color, f"{method}, uniform, fitted")
    dense = next(row["f1"] for row in rows if row["method"] == "dense")
    axes.axhline(dense, color=DENSE, linewidth=1, linestyle=":", label="dense")
    axes.set_ylim(bottom=0.8)
    return True


PANELS: dict[str, Callable[[Axes, Path, str], bool]] = {
    "minilm": frontier_panel,
    "efficientnet": frontier_panel,
    "own_cnn": frontier_panel,
    "smollm2": allocation_panel,
    "detector": craft_panel,
}


def draw_frontiers(results: Path, path: Path) -> None:
    with picture(path, (11, 6.4), of="how_much") as figure:
        panels = figure.subplots(2, 3).flat
        for (name, draw), axes in zip(PANELS.items(), panels, strict=False):
            axes.set_title(TITLES[name], fontsize=9)
            axes.set_visible(draw(axes, results, name))
            axes.legend(fontsize=7)
            axes.set_xlim(0, 1)
            axes.set_xlabel("share kept", fontsize=8)
            axes.tick_params(which="both", labelsize=7)
            axes.grid(alpha=0.3)
        for axes in list(figure.axes)[len(PANELS) :]:
            axes.set_visible(False)


# ---- refinement -------------------------------------------------------------------------------


def refinements(results: Path) -> dict[str, dict[str, Any]]:
    """Reports of `tensorlrf.refine`, by what was refined."""
    content = read(results, "refine") or {"rows": []}
    found = {
        row["case"].removesuffix(":all"): row["report"]
        for row in content["rows"]
        if row["case"].endswith(":all")
    }
    cnn = read(results, "own_cnn_cp") or {"rows": {}}
    if "refined" in cnn["rows"]:
        found["own CNN in CP at .25"] = cnn["rows"]["refined"]["refinement"]
    return found


def draw_refinements(results: Path, path: Path) -> None:
    """The best so far, and each checkpoint."""
    with picture(path, (6.5, 3.8), of="how_much") as figure:
        axes = figure.subplots()
        for (what, report), color in zip(refinements(results).items(), COLORS, strict=False):
            curve = [c for c in report["curve"] if c["held_out"] is not None]
            first, steps = curve[0]["held_out"], [c["step"] for c in curve]
            losses = [c["held_out"] / first for c in curve]
            best = [min(losses[: k + 1]) for k in range(len(losses))]
            done = [step / max(1, steps[-1]) for step in steps]
            axes.step(done, best, where="post", color=color, label=f"{what}, {steps[-1]} steps")
            axes.plot(done, losses, "o", color=color, alpha=0.35, markersize=3)
        axes.set_xlabel("part of the steps")
        axes.set_ylabel("held-out loss / before")
        axes.set_ylim(0, 1.3)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    results = parser.parse_args().results
    draw_frontiers(results, results / "how_much.png")
    draw_refinements(results, results / "refinement.png")
    for name, entry in (read(results, "sensitivities") or {"models": {}})["models"].items():
        known = {key: entry[key] for key in ("version", "architecture", "rule", "unit", "layers")}
        found = tensorlrf.Sensitivity.from_json(json.dumps(known))
        found.plot(results / f"sensitivity_{name}.png")


if __name__ == "__main__":
    main()
