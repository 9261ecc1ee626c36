"""`max_drop=` on real models: the budget that is found beside a grid of forty that are all judged.

    python bench/max_drop.py                         all rows that are not there yet
    python bench/max_drop.py --rows efficientnet:2   these rows, whatever there is
    python bench/max_drop.py --results DIR           elsewhere
    python bench/max_drop.py --sensitivities DIR     what `bench/allocation.py` found, where it did

Each row is a process of its own on one thread, and the files are written anew after each. What a
row has judged lies in `--work`, so that one that was stopped goes on; remove it to start anew.

The metric is searched on some data and looked at once more on data of their own. Plans are judged
by cheap models, their layers cut, by the search as in the grid. The drop that is asked for is twice
the bound on that of the mildest plan, which is the least one that any plan can be told to meet:
where the mildest plan loses nothing, that is twice what the data resolve. Of MiniLM, whose mildest
plan loses something, ten times that bound is asked for as well. The grid is judged from the share
that was found down (what is above it cannot be better), and no further where five in a row lose
more than twice as much as is allowed.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.allocation_ranks import replace_text  # noqa: E402
from bench.pooled import Pooled  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.compression.calibration._layer_moments import Calibration  # noqa: E402
from tensorlrf.compression.frontier._judge import Evaluate, Judge  # noqa: E402
from tensorlrf.compression.frontier._prospect import Prospect  # noqa: E402
from tensorlrf.compression.frontier._search import ladder  # noqa: E402
from tensorlrf.compression.frontier._smallest import Smallest  # noqa: E402
from tensorlrf.compression.plan._request import Request  # noqa: E402

LEAST = {"minilm": 0.4875, "efficientnet": 0.4875, "detector": 0.08}
"""A model -> the least share of its grid."""

RULES = {"minilm": "fisher", "efficientnet": "measured", "detector": "measured"}
"""A model -> what "auto" takes."""

TIMES = {"minilm": (2, 10), "efficientnet": (2,), "detector": (2,)}
"""A model -> what is asked for, in bounds on the drop of the mildest plan."""

ROWS = tuple(f"{name}:{times}" for name in LEAST for times in TIMES[name])
GRID = 40
HOPELESS = 5
"""Shares of the grid in a row that lose more than twice as much as is allowed."""

GOAL = 1.05
"""Most that the share that was found may be of the best of the grid."""


@dataclass(frozen=True)
class Case:
    """A model, and a metric on two sets of data.

    batches  that tell what layers can lose; on none of them the metric looks
    loss     of the outputs, as `tensorlrf.frontier` takes it
    search   the metric on the data to search by
    second   the same on data that the search does not see
    about    what a reader of the table must know
    """

    model: nn.Module
    batches: list[Any]
    skip: Sequence[str]
    loss: str
    search: Evaluate
    second: Evaluate
    about: str


# ---- the models -------------------------------------------------------------------------------


def case(name: str) -> Case:
    """Raises KeyError for a name that is not in LEAST."""
    return {"minilm": _minilm, "efficientnet": _efficientnet, "detector": _detector}[name]()


class Cosine:
    """Of each text the cosine to the embedding of the given model."""

    def __init__(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches
        self.wanted = self._embedded(model)

    def __call__(self, model: nn.Module) -> Tensor:
        return nn.functional.cosine_similarity(self._embedded(model), self.wanted)

    @torch.no_grad()
    def _embedded(self, model: nn.Module) -> Tensor:
        return torch.cat([model(**batch) for batch in self.batches])


class Agreement:
    """Of each crop whether it has the class that the given model gives it; groups are pictures."""

    def __init__(self, model: nn.Module, pictures: list[Tensor]) -> None:
        self.pictures = pictures
        self.labels = [k for k, crops in enumerate(pictures) for _ in crops]
        self.wanted = self._classes(model)

    def __call__(self, model: nn.Module) -> tuple[Tensor, list[int]]:
        return (self._classes(model) == self.wanted).float(), self.labels

    @torch.no_grad()
    def _classes(self, model: nn.Module) -> Tensor:
        return torch.cat([model(crops).argmax(1) for crops in self.pictures])


class F1:
    """Of each scene."""

    def __init__(self, scenes: list[Any]) -> None:
        self.scenes = scenes

    def __call__(self, model: nn.Module) -> list[float]:
        import detection

        return [counts.f1 for counts in detection.evaluate(model, self.scenes)]


def _minilm() -> Case:
    import minilm
    import texts

    tokenizer = minilm.load_tokenizer()
    model = Pooled(minilm.load_minilm()).eval()
    known = texts.background()
    fitted = [text for k, text in enumerate(known) if k % 3]
    kept = [text for k, text in enumerate(known) if not k % 3]
    batches = minilm.batches(tokenizer, fitted, 32, minilm.CALIBRATION_TOKENS)
    return Case(
        model, batches[::2], [f"encoder.{glob}" for glob in minilm.SKIP], "cosine",
        Cosine(model, minilm.batches(tokenizer, kept)),
        Cosine(model, minilm.batches(tokenizer, texts.documents())),
        f"MiniLM with mean pooling, its 36 linears, {len(batches[::2])} batches of 32 documents; "
        f"mean cosine to the dense embedding, searched on {len(kept)} other documents of "
        "lee_background.cor, second set the 50 of lee.cor",
    )  # fmt: skip


def _efficientnet() -> Case:
    import efficientnet

    # With textures and pages to search by, from which no calibration picture comes, the mildest
    # plan changes a class in three.
    model, unseen = efficientnet.load_efficientnet(), efficientnet.unseen_crops()
    return Case(
        model, efficientnet.calibration_batches(), efficientnet.SKIP, "kl",
        Agreement(model, unseen[::2]), Agreement(model, unseen[1::2]),
        "EfficientNet-lite0, its 1 x 1 convolutions, 16 crops of each of 15 pictures; share of "
        f"crops with the dense model's class, searched on 8 crops of each of {len(unseen[::2])} "
        f"other pictures, second set 8 crops of each of {len(unseen[1::2])} more; pictures are "
        "groups",
    )  # fmt: skip


def _detector() -> Case:
    import detector
    from scenes import make_scenes

    return Case(
        detector.load_detector(), detector.calibration_batches(), list(detector.SKIP), "relative",
        F1(make_scenes("validation", 20)), F1(make_scenes("test", 20)),
        "CRAFT, its 3 x 3 convolutions, 12 scenes; mean F1 of scenes, searched on 20 validation "
        "scenes, second set 20 test scenes",
    )  # fmt: skip


# ---- one row ----------------------------------------------------------------------------------


class Kept:
    """What was judged before, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, made: Callable[[], Any]) -> Any:
        if key not in self.values:
            self.values[key] = made()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, json.dumps(self.values))
        return self.values[key]


def row(spec: str, work: Path, sensitivities: Path | None) -> dict[str, Any]:
    """The search, and the grid."""
    torch.set_num_threads(1)
    name, _, times = spec.partition(":")
    kept, about = Kept(work / f"{name}.json"), case(name)
    known = None
    if sensitivities is not None:
        known = found_before(sensitivities, name, len(about.batches))
    request = Request.of(
        None, "svd", about.skip, "size", None, "auto", known, about.loss, None, 0, True
    )
    data = Calibration.read(about.batches, about.model, 0.1)
    assert data is not None
    prospect = Prospect.of(about.model, request, data)
    grid = Judge(about.search, about.model)
    of_the_given = grid.calls

    def drop_at(share: float, judge: Judge) -> list[float]:
        found = judge.drop(prospect.truncated(prospect.plan(share)), f"a share of {share:g}")
        return [found.mean, found.bound]

    def searched(limit: float) -> dict[str, Any]:
        start = time.process_time()
        # The given model was judged already; that counts for the search as well.
        fresh = copy.copy(grid)
        fresh.calls = of_the_given
        search = Smallest(prospect, fresh, None, limit)
        plan, quality = search.planned()
        return {
            "max_drop": limit,
            "share": plan.keep_params,
            "kept": _kept(plan),
            "drop": quality.drop,
            "bound": quality.bound,
            "evaluations": quality.evaluations,
            "cpu_s": time.process_time() - start,
        }

    high = ladder()[0]
    limit = int(times) * kept.get(f"grid {high:.6g}", lambda: drop_at(high, grid))[1]
    found = kept.get(f"search {times}", lambda: searched(limit))
    points: list[dict[str, float]] = []
    shares = [high * (LEAST[name] / high) ** (k / (GRID - 1)) for k in range(GRID)]
    above = max(k for k, share in enumerate(shares) if share >= found["share"])
    for share in dict.fromkeys([high, *shares[above:]]):
        mean, bound = kept.get(f"grid {share:.6g}", lambda share=share: drop_at(share, grid))
        points.append({"share": share, "drop": mean, "bound": bound})
        print(f"{spec}: {share:.3f} drop {mean:.4g} at most {bound:.4g}", file=sys.stderr)
        if all(p["bound"] > 2 * limit for p in points[-HOPELESS:]):
            break
    judge = Judge(about.second, about.model)
    mean, bound = kept.get(f"second {found['share']:.6g}", lambda: drop_at(found["share"], judge))
    return {
        "model": name,
        "about": about.about,
        **found,
        "best": min(p["share"] for p in points if p["bound"] <= limit),
        "grid": points,
        "second_drop": mean,
        "second_bound": bound,
    }


def found_before(folder: Path, name: str, n_batches: int) -> tensorlrf.Sensitivity | None:
    """Of this model from as many batches, by the rule that "auto" takes."""
    path = folder / f"{name}-{RULES[name]}-{n_batches}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())["sensitivity"]
    return tensorlrf.Sensitivity.from_json(json.dumps(content))


def _kept(plan: Any) -> float:
    rows = [row for row in plan.layers if row.eligible]
    return sum(row.params_after for row in rows) / sum(row.params for row in rows)


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    """One line a model."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    lines = [
        "# max_drop",
        "",
        f"{about}. Other work ran beside: the seconds are of the processor, and no times to read.",
        "",
        *(__doc__ or "").split("\n\n")[-1].splitlines(),
        f"The grid: {GRID} shares by even parts from {ladder()[0]:g} to {LEAST['minilm']:g} (the "
        f"detector {LEAST['detector']:g}); the best is the least whose bound is within `max_drop`. "
        "The goal: "
        f"at most {GOAL:g} of the best, at most 8 evaluations, and the drop on the second set "
        "within `max_drop`. The seconds of a search are without those in which losses are measured "
        "where they were known (78 of EfficientNet's in allocation.md).",
        "",
        "| model | max_drop | share found | best of the grid | found / best | evaluations | drop "
        "[bound] | drop on the second set [bound] | held | search |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- | ---: |",
    ]
    for one in content["rows"].values():
        ratio = one["share"] / one["best"]
        held = "yes" if one["second_drop"] <= one["max_drop"] else "no"
        lines.append(
            f"| {one['model']} | {one['max_drop']:.4g} | {one['share']:.3f} | {one['best']:.3f} | "
            f"{ratio:.3f} | {one['evaluations']} | {one['drop']:.4g} [{one['bound']:.4g}] | "
            f"{one['second_drop']:.4g} [{one['second_bound']:.4g}] | {held} | "
            f"{one['cpu_s']:.0f} s |"
        )
    told = {one["model"]: one["about"] for one in content["rows"].values()}
    lines += ["", *(f"- {name}: {about}." for name, about in told.items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "demo-output/max_drop")
    parser.add_argument("--rows", nargs="*", default=[], choices=[*ROWS, []], metavar="ROW")
    parser.add_argument("--sensitivities", type=Path, help="of bench/allocation.py")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(row(given.measure, given.work, given.sensitivities)))
        return
    path = given.results / "max_drop.json"
    content: dict[str, Any] = {"machine": machine("cpu"), "rows": {}}
    if path.exists():
        content = json.loads(path.read_text())
    failed = 0
    for name in given.rows or ROWS:
        if name in content["rows"] and not given.rows:
            print(f"{name}: measured before")
            continue
        command = [sys.executable, __file__, "--measure", name, "--work", str(given.work)]
        if given.sensitivities is not None:
            command += ["--sensitivities", str(given.sensitivities)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{name}: failed", flush=True)
            failed = 1
            continue
        rows = content["rows"] | {name: json.loads(run.stdout.splitlines()[-1])}
        content["rows"] = {row: rows[row] for row in ROWS if row in rows}
        given.results.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, indent=1) + "\n")
        replace_text(path.with_suffix(".md"), markdown(content))
        print(f"{name}: { {k: v for k, v in rows[name].items() if k not in ('grid', 'about')} }")
    sys.exit(failed)


if __name__ == "__main__":
    main()
