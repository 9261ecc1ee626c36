"""A real text detector on its factors: what is won and what is lost, in a few minutes on a laptop.

    python examples/demo.py            keeps a quarter of the 3x3 convolutions
    python examples/demo.py --keep .2  or another share

Prints what the detector is worth at every size, from one look at it; then, of one size, the table
of layers, F1 on scenes that took no part in any choice, parameters, FLOPs and measured latency
before and after. Writes a picture of found words, the report and the factors to demo-output/, reads
the factors back into the architecture, and compares outputs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from detection import (
    bootstrap_f1,
    bootstrap_f1_difference,
    detect,
    draw_boxes,
    evaluate,
    side_by_side,
    total,
)
from detector import (
    SKIP,
    as_input,
    calibration_batches,
    flops,
    latency,
    load_detector,
    parameters,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import Scene, scenes_with_words
from torch import nn

import tensorlrf

N_WORDS = 500

SHARES = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
N_LOOKED_AT = 5  # scenes that the frontier is made of, one of them to judge by
QUARTER = (192, 256)  # pixels of the part of a scene that sizes are timed on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--keep", type=float, default=0.25, help="share of parameters (default .25)"
    )
    parser.add_argument("--method", default="svd", choices=["svd", "tucker", "cp"])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=170)

    console.rule("CRAFT text detector, 3x3 convolutions on factors")
    dense, batches = load_detector(), calibration_batches()
    start = time.perf_counter()
    found = tensorlrf.frontier(
        dense,
        batches[:N_LOOKED_AT],
        shares=sorted({*SHARES, options.keep}),
        method=options.method,
        allocation="fisher",
        example=_corner(batches[0]),
        evaluations=3,
        skip=SKIP,
    )
    console.print(found)
    took = time.perf_counter() - start
    console.print(
        f"looked at {N_LOOKED_AT} scenes in {took:.0f} s; times are those of a quarter of a scene\n"
    )

    # Ranks that are uniform: those that lose least at so many parameters keep the layers of the
    # largest pictures, which hold few of them and most of the time.
    start = time.perf_counter()
    small, report = tensorlrf.compress(
        dense,
        keep_params=options.keep,
        method=options.method,
        target="original",
        allocation="uniform",
        metric="outputs",
        calibration=batches,
        skip=SKIP,
    )
    took = time.perf_counter() - start
    console.print(report)
    console.print(f"compressed in {took:.0f} s, without a gradient step\n")

    scenes = list(scenes_with_words("test", N_WORDS))
    x = as_input(scenes[:1])
    tensorlrf.tune(small, x)
    before = _counts(dense, scenes, "dense")
    after = _counts(small, scenes, "factored")
    seconds = latency({"dense": dense, "factored": small}, x, seconds=15)
    console.print(_summary(dense, small, before, after, seconds, x))
    low, high = bootstrap_f1_difference(before, after)
    n_words = sum(len(scene.words) for scene in scenes)
    console.print(
        f"F1 lost: {total(before).f1 - total(after).f1:+.3f}, 95% bootstrap interval "
        f"[{low:+.3f}, {high:+.3f}], on {n_words} words in {len(scenes)} scenes\n"
    )

    picture = options.output / "before-after.png"
    _draw(dense, small, scenes[0], picture)
    (options.output / "report.md").write_text(report.to_markdown())
    file = options.output / "craft.safetensors"
    _round_trip(dense, small, x, file)
    console.print(f"found words before and after: {picture}")
    console.print(f"report: {options.output / 'report.md'}")
    console.print(
        f"factors: {file} ({file.stat().st_size / 1e6:.1f} MB), read back into the architecture: "
        "outputs agree to the bit"
    )


def _corner(x: torch.Tensor) -> torch.Tensor:
    height, width = QUARTER
    return x[..., :height, :width].contiguous(memory_format=torch.channels_last)


def _counts(model: nn.Module, scenes: list[Scene], name: str) -> list:
    return [
        counts
        for scene in track(scenes, f"looking for words, {name}", transient=True)
        for counts in evaluate(model, [scene])
    ]


def _summary(dense, small, before, after, seconds, x) -> Table:
    table = Table("", "dense", "factored", "ratio")
    (low0, high0), (low1, high1) = bootstrap_f1(before), bootstrap_f1(after)
    table.add_row(
        "F1 (95% interval)",
        f"{total(before).f1:.3f} [{low0:.3f}, {high0:.3f}]",
        f"{total(after).f1:.3f} [{low1:.3f}, {high1:.3f}]",
        "",
    )
    rows = [
        ("parameters", parameters(dense), parameters(small), "{:,}"),
        ("FLOPs a scene (G)", flops(dense, x) / 1e9, flops(small, x) / 1e9, "{:.1f}"),
        ("latency a scene (ms)", seconds["dense"] * 1e3, seconds["factored"] * 1e3, "{:.0f}"),
    ]
    for name, a, b, form in rows:
        table.add_row(name, form.format(a), form.format(b), f"{a / b:.2f}x")
    return table


def _draw(dense: nn.Module, small: nn.Module, scene: Scene, path: Path) -> None:
    pictures = [
        draw_boxes(scene.image, detect(model, scene.image), scene.boxes) for model in (dense, small)
    ]
    side_by_side(*pictures).save(path)


def _round_trip(dense: nn.Module, small: nn.Module, x: torch.Tensor, file: Path) -> None:
    """Save the model, load it into a fresh copy of the architecture, compare the outputs."""
    tensorlrf.save(small, file, overwrite=True)
    again = tensorlrf.load(file, dense)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), small(x), rtol=0, atol=0)


if __name__ == "__main__":
    main()
