"""What `compress` reaches of thirty architectures of transformers and ten of timm, and what stays
dense and why:
python bench/architectures.py --results bench/results/cpu

Nothing is timed and nothing is fitted: shares of parameters, of the small models of
`tests/architectures` and of large ones, which are built without values. Those of timm are there
after `make .venv/timm`; they have a process of their own, since transformers would use the
torchvision that timm imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP), str(TOP / "kernels")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tensorlrf import fold_batch_norms  # noqa: E402
from tensorlrf.compression._survey import INCLUDED, ROOT, Surveyed, survey, without_skipped  # noqa: E402
from tensorlrf.compression._survey import kind_of as name_of  # noqa: E402
from tensorlrf.compression._unpacked import unpacked_model  # noqa: E402
from tests.architectures import of_timm  # noqa: E402
from tests.architectures.inputs import Architecture  # noqa: E402

LIBRARIES = ("transformers", "timm")
GOAL = 0.9
TOLD = 0.005
"""Of the parameters: what holds less is not listed."""

HEAD = (
    "| architecture | of | parameters | reached by default | with `include` | and folded "
    "| of the large one | by default | with `include` | what stays dense, of the small one |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
ABOUT = """Shares of all parameters that lie in layers which are factored (their weights), by
default and with `include=["embeddings", "heads"], skip=[]`: first of a small random model of
`tests/architectures`, which the tests compress, save, load, export and compile, then of a large
one, built without values: of transformers the same class at the default size of its configuration,
of timm the named model of its registry. "And folded": with batch normalisations folded into the
layers before them (`fold_batch_norms=True`), where there are any. What stays is of the small model
with `include`, as it is, where it is at least half a percent."""
MISSING = f"there is no folder {of_timm.FOLDER.name} in the environment; `make .venv/timm` fills it"


@dataclass(frozen=True)
class Reached:
    """Of one model: its parameters, the shares that are reached, and what stays of them by kind."""

    params: int
    default: float
    whole: float
    stays: dict[str, float]


def reached(model: nn.Module) -> Reached:
    """By the survey that plans are made of; the model may be without values."""
    params = sum(p.numel() for p in model.parameters())
    unpacked = unpacked_model(model)
    found = survey(unpacked)
    default = without_skipped(found, unpacked, None)
    whole = without_skipped(found, unpacked, [], INCLUDED)
    rows = {one.name: one for one in whole}
    stays: Counter[str] = Counter()
    for name, parameter in unpacked.named_parameters():
        owner, _, own = name.rpartition(".")
        row = rows[owner or ROOT]
        if not row.eligible or own == "bias":
            stays["biases" if row.eligible else kind_of(row)] += parameter.numel()
    shares = {kind: n / params for kind, n in stays.most_common() if n / params >= TOLD}
    return Reached(params, weights(default) / params, weights(whole) / params, shares)


def weights(found: list[Surveyed]) -> int:
    """Of the layers that can be factored."""
    return sum(int(one.module.weight.numel()) for one in found if one.eligible)  # type: ignore[operator]


def kind_of(row: Surveyed) -> str:
    """In a few words what stays, and why."""
    kind = name_of(row.module)
    if "Norm" in kind:
        return "normalisations"
    if "depthwise" in row.reason:
        return "depthwise kernels, one input channel each"
    if kind == "ParametrizationList" or row.reason.startswith("parametrised"):
        return "parametrised layers"
    if kind.endswith("Embedding") and row.reason.startswith("subclass"):
        return f"{kind}, a lookup of its own"
    if row.reason.startswith("neither"):
        return f"parameters of {kind}, no layer"
    return f"{kind}: {row.reason}"


def at_default_size(model: nn.Module) -> nn.Module:
    """The class of a model of transformers as its configuration has it by default, on the meta
    device."""
    made: Any = model
    config = type(made.config)()
    if hasattr(config, "num_labels"):
        config.num_labels = made.config.num_labels
    with torch.device("meta"):
        large = type(made)(config).eval()
    return large.to("meta")  # type: ignore[no-any-return]


def measured(library: str) -> list[dict[str, Any]]:
    """A row for each architecture of a library."""
    if library == "timm":
        return [
            in_both_sizes(name, library, one, one.at_full_size())
            for name, one in of_timm.ARCHITECTURES.items()
        ]
    # Here, so that the process of timm does not import transformers.
    from tests.architectures.listed import ARCHITECTURES

    return [
        in_both_sizes(name, library, one, at_default_size(one.model()))
        for name, one in ARCHITECTURES.items()
    ]


def in_both_sizes(name: str, library: str, one: Architecture, large: nn.Module) -> dict[str, Any]:
    """What is reached of an architecture."""
    small = one.model()
    two = {"small": reached(small), "large": reached(large)}
    print(library, name, *(f"{of.whole:.3f}" for of in two.values()), file=sys.stderr, flush=True)
    shares = {size: asdict(of) for size, of in two.items()}
    return {
        "architecture": name, "library": library, **shares, "folded": once_folded(small, one),
    }  # fmt: skip


def once_folded(model: nn.Module, one: Architecture) -> float | None:
    """The share that is reached with batch normalisations folded first; None where none is."""
    folded, _ = fold_batch_norms(model, one.batches(1)[0])
    fewer = sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    return reached(folded).whole if fewer else None


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown, and how many of each library reach the goal."""
    lines = ["# Architectures", "", ABOUT, "", HEAD]
    for one in rows:
        small, large = one["small"], one["large"]
        folded = "-" if one["folded"] is None else f"{one['folded']:.1%}"
        stays = "; ".join(f"{share:.1%} {kind}" for kind, share in small["stays"].items())
        lines.append(
            f"| {one['architecture']} | {one['library']} | {small['params']:,} | "
            f"{small['default']:.1%} | {small['whole']:.1%} | {folded} | "
            f"{large['params'] / 1e6:,.0f} M | "
            f"{large['default']:.1%} | {large['whole']:.1%} | {stays or '-'} |"
        )
    for library in LIBRARIES:
        own = [one for one in rows if one["library"] == library]
        counts = [
            sum(one[size][share] >= GOAL for one in own)
            for size in ("small", "large")
            for share in ("default", "whole")
        ]
        told = (
            f"Of {library}, at least {GOAL:.0%} are reached on {counts[0]} of {len(own)} small "
            f"models by default and on {counts[1]} with `include`; of the large ones on "
            f"{counts[2]} and {counts[3]}."
        )
        lines += ["", told if own else f"Of {library} there are none: {MISSING}."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    rows = measured("transformers")
    if of_timm.FOLDER.is_dir():
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            rows += process.submit(measured, "timm").result()
        (own,) = metadata.distributions(name="timm", path=[str(of_timm.FOLDER)])
        versions["timm"] = own.version
    else:
        print(f"timm is left out: {MISSING}", file=sys.stderr)
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "architectures.json"
    path.write_text(json.dumps({"machine": versions, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()
