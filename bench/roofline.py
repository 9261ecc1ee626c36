"""Rooflines: what the cost model expects of any layer, and what a GPU run measured.

    python -m bench.roofline 4096x4096 --rank 32 64 128 --device H200        by the model alone
    python -m bench.roofline 64x64x3x3 --format cp --rank 32 --plot roofline.png
    python -m bench.roofline --measured bench/results/nvidia-h200/kernels.json --plot kernels.png

Everything that no measurement stands behind says "model": the floor is the least time in which the
operands can be moved and the products made, the estimate that of the best path.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorlrf.errors import TensorlrfError
from tensorlrf.ops.explain import DTYPES, FORMATS, ROWS, explain, sample

COLORS = {"dense": "0.45", "chain": "tab:blue", "fused": "tab:red", "fold": "tab:green"}


def model_table(
    shape: Sequence[int], ranks: Sequence[int], rows: Sequence[int], **options: Any
) -> str:
    """Markdown: floor and estimate of every path, in microseconds, marked as a model."""
    format, dtype = options["format"], options["dtype"]
    lines = []
    for rank in ranks:
        found = explain(sample(format, shape, rank, dtype), rows, device=options["device"])
        paths = list(next(iter(found.seconds.values())))
        if not lines:
            name = "x".join(map(str, shape))
            dtype_name = str(dtype).removeprefix("torch.")
            lines += [
                f"{format} {name}, {dtype_name}, on {found.device}. "
                "All times are of the cost model (model), in microseconds.",
                "",
                "| rank | rows | floor (model) | "
                + " | ".join(f"{path} (model)" for path in paths)
                + " | chosen (model) |",
                "|" + " --- |" * (4 + len(paths)),
            ]
        for M in rows:
            cells = [f"{1e6 * found.seconds[M][path]:.1f}" for path in paths]
            cells = [str(rank), str(M), f"{1e6 * found.floor[M]:.1f}", *cells, found.chosen[M]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_model(
    path: Path, shape: Sequence[int], ranks: Sequence[int], rows: Sequence[int], **options: Any
) -> None:
    """Time over the floor of every path against the rows, one panel a rank; marked as a model."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(ranks), figsize=(4.2 * len(ranks), 3.6), squeeze=False, sharey=True
    )
    for axis, rank in zip(axes[0], ranks, strict=True):
        factors = sample(options["format"], shape, rank, options["dtype"])
        found = explain(factors, rows, device=options["device"])
        for way in next(iter(found.seconds.values())):
            times = [found.seconds[M][way] / found.floor[M] for M in rows]
            axis.plot(rows, times, marker="o", label=way, color=COLORS.get(way))
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="rows", title=f"rank {rank}")
    axes[0][0].set_ylabel("time over the floor (model)")
    axes[0][0].legend()
    name = "x".join(map(str, shape))
    figure.suptitle(f"{options['format']} {name} on {found.device}: cost model, nothing measured")
    _save(figure, path)


def plot_measured(result: dict[str, Any], path: Path) -> None:
    """Measured rows as a roofline: the factored product's FLOP/s against its FLOPs a byte, under
    the roofs that were measured in the same run; one point a case, path and rank."""
    from matplotlib import pyplot as plt

    constants = result["machine"]["constants"]
    figure, axis = plt.subplots(figsize=(7.5, 5))
    rows = [row for row in result["rows"] if row["info"].get("flops")]
    kinds = [row["info"].get("path") or row["variant"].split(" r=")[0] for row in rows]
    for kind in dict.fromkeys(kinds):
        own = [row for row, name in zip(rows, kinds, strict=True) if name == kind]
        axis.scatter(
            [row["info"]["flops"] / row["info"]["bytes"] for row in own],
            [row["info"]["flops"] / row["median_s"] for row in own],
            s=14,
            label=kind,
            color=COLORS.get(kind),
        )
    low, high = axis.get_xlim()
    intensity = [max(low, 1e-1), constants["rate_half"] / constants["bandwidth"], max(high, 1e3)]
    roof = [min(constants["rate_half"], constants["bandwidth"] * x) for x in intensity]
    axis.plot(intensity, roof, color="black", linewidth=1, label="roof, measured")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs a byte of the factored layer",
        ylabel="FLOP/s",
        title=f"{result['machine']['device']}, {result['machine']['commit']}",
    )
    axis.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None} if path.suffix == ".png" else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__)
    parser.add_argument("shape", nargs="?", help="of the weight: OUTxIN, or OUTxINxKHxKW")
    parser.add_argument("--rank", type=int, nargs="+", default=[64])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--format", default="lowrank", choices=FORMATS)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--device", default="H200")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument("--measured", type=Path, help="a result file in place of the model")
    given = parser.parse_args(arguments)
    try:
        if given.measured is not None:
            if given.plot is None:
                parser.error("--measured needs --plot FILE to write to")
            plot_measured(json.loads(given.measured.read_text()), given.plot)
            return 0
        if given.shape is None:
            parser.error("give a shape, as 4096x4096, or --measured FILE")
        shape = [int(size) for size in given.shape.split("x")]
        options = {"format": given.format, "dtype": DTYPES[given.dtype], "device": given.device}
        print(model_table(shape, given.rank, given.rows, **options))
        if given.plot is not None:
            plot_model(given.plot, shape, given.rank, given.rows, **options)
    except (TensorlrfError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
