"""The CRAFT detector over methods and shares: F1, latency, parameters, FLOPs; ours and a peer's.

    python bench/craft.py                           all rows that are not there yet
    python bench/craft.py --settings "svd 0.12"     of the settings with these words in their names

Methods, shares and rank shares are compared on validation scenes. Settings are then chosen by the
rules of `choose`, and measured on test scenes that no choice has seen, beside the dense detector,
plain SVD, plain Tucker and tensorly-torch. Every row is written as soon as it is measured, and a
run that is started again goes on where the last one stopped (--fresh starts over).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from detection import Counts, bootstrap_f1, bootstrap_f1_difference, evaluate, total  # noqa: E402
from detector import (  # noqa: E402
    FIRST_CONV,
    N_CALIBRATION,
    SKIP,
    as_input,
    calibration_batches,
    flops,
    latency,
    load_detector,
    parameters,
)
from scenes import Scene, make_scenes, scenes_with_words  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.files.picture import picture  # noqa: E402

ALLOWED = 0.02  # F1 that may be lost
MARGIN = 0.01  # of it used up on validation by a setting that is chosen for its speed
N_VALIDATION = 20
N_WORDS = 500
AXES = (
    ("keep", "share of the weights of its 20 convolutions with k > 1"),
    ("speedup", "speedup of the whole detector over dense"),
)
SECONDS = 20.0  # for each latency, dense and compressed in turn


@dataclass(frozen=True)
class Setting:
    """How the convolutions are compressed; `calibrated=False` is the plain method.

    budget  what `keep` is a share of: "params" or "flops"
    ranks   "uniform", in the metric of the outputs; or "auto", ranks and metric by default
    """

    method: str
    keep: float
    target: str = "original"
    rank_shares: tuple[float, float] = (0.7, 1.0)
    calibrated: bool = True
    peer: str = "ours"
    budget: str = "params"
    ranks: str = "uniform"

    @property
    def name(self) -> str:
        shares = ""
        if self.method == "tucker" and self.peer == "ours":
            shares = " ({:g}, {:g})".format(*self.rank_shares)
        how = f"data-aware, target {self.target}" if self.calibrated else "plain"
        of = "" if self.budget == "params" else f" of {self.budget.upper()}"
        how += "" if self.ranks == "uniform" else ", default ranks"
        return f"{self.peer} {self.method}{shares} {self.keep:g}{of} {how}"


CURVE = [
    *(Setting("svd", keep) for keep in (0.25, 0.2, 0.15)),
    *(Setting("tucker", keep) for keep in (0.25, 0.2, 0.15)),
    *(Setting("cp", keep) for keep in (0.25, 0.2, 0.15)),
    Setting("svd", 0.25, target="prefix"),
    Setting("tucker", 0.25, target="prefix"),
    *(Setting("svd", keep, ranks="auto") for keep in (0.25, 0.12)),
    *(Setting("svd", keep, budget="flops", ranks="auto") for keep in (0.2, 0.15)),
]
PLAIN = [
    Setting("svd", 0.25, calibrated=False),
    Setting("tucker", 0.25, calibrated=False),
    Setting("cp", 0.25, calibrated=False),
    Setting("tucker", 0.25, calibrated=False, peer="tensorly-torch"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--settings", nargs="*", default=[""], help="words in names; default all")
    parser.add_argument("--models", type=Path, help="of bench/allocation.py --models: read these")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    store = Store(options.results / "craft.json", fresh=options.fresh)
    bench = Bench(options.models)

    validation = make_scenes("validation", N_VALIDATION)
    bench.row(store, "validation", None, validation)
    for setting in [*CURVE, *PLAIN]:
        if any(words in setting.name for words in options.settings):
            bench.row(store, "validation", setting, validation)

    test = list(scenes_with_words("test", N_WORDS))
    bench.row(store, "test", None, test)
    chosen = choose(store)
    store.note("chosen", {rule: setting.name for rule, setting in chosen.items()})
    for setting in dict.fromkeys([*chosen.values(), *store.measured(PLAIN)]):
        bench.row(store, "test", setting, test)
    _write(options.results / "craft.md", markdown(store))
    plot(store, options.results / "craft.png")


def choose(store: Store) -> dict[str, Setting]:
    """By the validation rows that there are: the most accurate setting at .25, the fastest that
    loses at most MARGIN there, and the fastest that loses at most ALLOWED, with nothing in hand for
    the test."""
    dense, curve = store.rows["validation dense"]["f1"], store.measured(CURVE)

    def row(setting: Setting) -> dict[str, Any]:
        return store.rows[f"validation {setting.name}"]

    def fastest(allowed: float) -> Setting:
        good = [s for s in curve if row(s)["f1"] >= dense - allowed]
        return max(good or curve, key=lambda s: row(s)["speedup"])

    return {
        "most accurate at .25": max(
            (s for s in curve if s.keep == 0.25), key=lambda s: row(s)["f1"]
        ),
        f"fastest within {MARGIN}": fastest(MARGIN),
        f"fastest within {ALLOWED}": fastest(ALLOWED),
    }


class Bench:
    """Holds the dense detector, and the compressed ones for as long as they are needed."""

    def __init__(self, models: Path | None) -> None:
        self.models = models
        self.dense = load_detector()
        self.x = as_input(make_scenes("validation", 1))
        self.made: dict[str, tuple[nn.Module, float | None, float]] = {}

    def row(self, store: Store, split: str, setting: Setting | None, scenes: list[Scene]) -> None:
        """Measure and store one row, unless it is there already."""
        name = "dense" if setting is None else setting.name
        key = f"{split} {name}"
        if key in store.rows:
            print(f"{key}: measured before")
            return
        model, took, share = (self.dense, 0.0, 1.0) if setting is None else self.make(setting)
        counts = evaluate(model, scenes)
        seconds = latency({"dense": self.dense, "this": model}, self.x, seconds=SECONDS)
        row = {
            "split": split,
            "setting": name,
            "method": "dense" if setting is None else setting.method,
            "keep": share,
            "f1": total(counts).f1,
            "f1_interval": bootstrap_f1(counts),
            "words": total(counts).true,
            "counts": [[c.matched, c.found, c.true] for c in counts],
            "latency_s": seconds["this"],
            "dense_latency_s": seconds["dense"],
            "speedup": seconds["dense"] / seconds["this"],
            "threads": torch.get_num_threads(),
            "parameters": parameters(model),
            "gflops": flops(model, self.x) / 1e9,
            "compress_s": took,
        }
        if setting is not None:
            reference = [Counts(*c) for c in store.rows[f"{split} dense"]["counts"]]
            row["f1_lost"] = total(reference).f1 - total(counts).f1
            row["f1_lost_interval"] = bootstrap_f1_difference(reference, counts)
        store.add(key, row)
        print(f"{key}: F1 {row['f1']:.4f}, {row['speedup']:.2f}x, kept {share:.3f}")

    def make(self, setting: Setting) -> tuple[nn.Module, float | None, float]:
        """(the compressed detector, seconds it took unless it was read, share kept of its 20 k x k
        convolutions)."""
        if setting.name not in self.made:
            start = time.perf_counter()
            build: Callable[[Setting], nn.Module]
            build = self._ours if setting.peer == "ours" else self._tensorly_torch
            model, took = self._read(setting), None
            if model is None:
                model = build(setting)
                took = time.perf_counter() - start
            if setting.peer == "ours":
                tensorlrf.tune(model, self.x)
            self.made[setting.name] = (model, took, self._share(model))
        return self.made[setting.name]

    def _read(self, setting: Setting) -> nn.Module | None:
        """One that `bench/allocation.py` made of the same scenes, with the same defaults."""
        if self.models is None or setting.ranks != "auto" or setting.budget != "params":
            return None
        path = self.models / f"detector@{setting.keep:g}.safetensors"
        if not path.exists():
            return None
        return tensorlrf.load(path, self.dense).eval().to(memory_format=torch.channels_last)

    def _ours(self, setting: Setting) -> nn.Module:
        model, _ = tensorlrf.compress(
            self.dense,
            keep_params=setting.keep if setting.budget == "params" else None,
            keep_flops=setting.keep if setting.budget == "flops" else None,
            method=(
                tensorlrf.Tucker(rank_shares=setting.rank_shares)
                if setting.method == "tucker"
                else setting.method
            ),
            target=setting.target,
            allocation=setting.ranks,
            metric="outputs" if setting.ranks == "uniform" else "auto",
            calibration=calibration_batches() if setting.calibrated else None,
            skip=SKIP,
        )
        return model

    def _tensorly_torch(self, setting: Setting) -> nn.Module:
        import copy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a peer's own deprecations
            import tensorly
            from tltorch import FactorizedConv

            tensorly.set_backend("pytorch")
            model = copy.deepcopy(self.dense)
            for name, conv in self._convs().items():
                factored = FactorizedConv.from_conv(
                    conv,
                    rank=setting.keep,
                    decompose_weights=True,
                    factorization=setting.method,
                    implementation="factorized",
                )
                model.set_submodule(name, factored)
        return model.eval().requires_grad_(False)

    def _convs(self) -> dict[str, nn.Conv2d]:
        """What is factored: the convolutions with k > 1 but for the first."""
        return {
            name: m
            for name, m in self.dense.named_modules()
            if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) and name != FIRST_CONV
        }

    def _share(self, model: nn.Module) -> float:
        """Of the weights of all k x k convolutions, the dense first one counted as kept."""
        names = [FIRST_CONV, *self._convs()]

        def size(owner: nn.Module) -> int:
            return sum(
                sum(p.numel() for p in owner.get_submodule(n).parameters())
                - self.dense.get_submodule(n).out_channels
                for n in names
            )

        return size(model) / size(self.dense)


class Store:
    """Rows by name in a JSON file that is replaced in one step after each; rows that tell their
    number of threads may differ in it."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine("cpu"), "rows": {}}
        if path.exists() and not fresh:
            self.content = json.loads(path.read_text())
            if self.content["machine"] | {"threads": 0} != machine("cpu") | {"threads": 0}:
                sys.exit(f"{path} was measured on another machine; add --fresh to start over")

    @property
    def rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = self.content["rows"]
        return rows

    def measured(self, settings: Sequence[Setting]) -> list[Setting]:
        """Those with a row on validation scenes."""
        return [s for s in settings if f"validation {s.name}" in self.rows]

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        _write(self.path, json.dumps(self.content, indent=1) + "\n")

    def note(self, key: str, value: Any) -> None:
        self.content[key] = value
        _write(self.path, json.dumps(self.content, indent=1) + "\n")


def markdown(store: Store) -> str:
    about = ", ".join(f"{key} {value}" for key, value in store.content["machine"].items())
    lines = [
        "# CRAFT text detector",
        "",
        f"{about}. Scenes of 512 x 384, float32, channels_last, batch norms folded in all rows; "
        "latency is the median of one scene, dense and compressed in turn; rows on one thread were "
        "timed while other work ran beside, which meets both alike: read their speedup. Kept is "
        "the share of the weights of all 20 convolutions with k > 1; a budget of FLOPS is of what "
        f"the layers that may be factored do. {N_CALIBRATION} calibration scenes. "
        "Chosen on validation scenes: "
        + "; ".join(f"{rule}: {name}" for rule, name in store.content["chosen"].items())
        + ".",
        "",
        "| scenes | setting | kept | F1 [95%] | F1 lost [95%] | latency | speedup | threads | "
        "parameters | GFLOPs | compress |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in store.rows.values():
        low, high = row["f1_interval"]
        lost = ""
        if "f1_lost" in row:
            a, b = row["f1_lost_interval"]
            lost = f"{row['f1_lost']:+.3f} [{a:+.3f}, {b:+.3f}]"
        lines.append(
            f"| {row['split']} ({row['words']} words) | {row['setting']} | {row['keep']:.3f} | "
            f"{row['f1']:.3f} [{low:.3f}, {high:.3f}] | {lost} | {row['latency_s'] * 1e3:.0f} ms | "
            f"{row['speedup']:.2f}x | {row.get('threads', store.content['machine']['threads'])} | "
            f"{row['parameters'] / 1e6:.2f} M | {row['gflops']:.1f} | "
            f"{'' if row['compress_s'] is None else format(row['compress_s'], '.0f') + ' s'} |"
        )
    return "\n".join(lines) + "\n"


def plot(store: Store, path: Path) -> None:
    """F1 on validation scenes over parameters and over speedup, one line a method."""
    dense = store.rows["validation dense"]["f1"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for setting in store.measured([*CURVE, *PLAIN]):
        row = store.rows[f"validation {setting.name}"]
        groups.setdefault(setting.name.replace(f" {setting.keep:g} ", " "), []).append(row)
    with picture(path, (12, 6), of="craft") as figure:
        # Two rows of one axis: what works lies close together, what does not lies at zero.
        panels = figure.subplots(2, 2, sharex="col", height_ratios=(4, 1))
        for axes, (key, _) in zip([*panels[0], *panels[1]], [*AXES, *AXES], strict=True):
            axes.axhline(dense, color="black", linewidth=1, label="dense")
            axes.axhspan(
                dense - ALLOWED, dense, color="green", alpha=0.12, label=f"within {ALLOWED}"
            )
            for label, rows in groups.items():
                rows = sorted(rows, key=lambda row: row[key])
                axes.plot([r[key] for r in rows], [r["f1"] for r in rows], marker="o", label=label)
            axes.grid(alpha=0.3)
        for (upper, lower), (_, label) in zip(panels.T, AXES, strict=True):
            upper.set_ylim(0.8, 1.0)
            lower.set_ylim(-0.02, 0.1)
            lower.set_xlabel(label)
        panels[0, 0].set_ylabel(f"F1 on {N_VALIDATION} validation scenes")
        panels[0, 1].legend(fontsize=7, loc="lower left")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
