"""What `compress` reaches of thirty architectures of transformers, and what stays dense and why:
python bench/architectures.py --results bench/results/cpu

Nothing is timed and nothing is fitted: shares of parameters, of the small models of
`tests/architectures` and of the same classes at the sizes that their configurations have by
default, which are built without values.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402

from tensorlrf.compression._survey import INCLUDED, ROOT, Surveyed, survey, without_skipped  # noqa: E402
from tensorlrf.compression._survey import kind_of as name_of  # noqa: E402
from tensorlrf.compression._unpacked import unpacked_model  # noqa: E402
from tests.architectures.listed import ARCHITECTURES  # noqa: E402

GOAL = 0.9
TOLD = 0.005
"""Of the parameters: what holds less is not listed."""

HEAD = (
    "| architecture | parameters | reached by default | with `include` | of the default size "
    "| by default | with `include` | what stays dense, of the small one |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)
ABOUT = """Shares of all parameters that lie in layers which are factored (their weights), by
default and with `include=["embeddings", "heads"], skip=[]`: first of a small random model of
`tests/architectures`, which the tests compress, save, load, export and compile, then of the same
class at the default size of its configuration, built without values. What stays is of the small
model with `include`, where it is at least half a percent."""


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
    """The class of a model as its configuration has it by default, on the meta device."""
    made: Any = model
    config = type(made.config)()
    if hasattr(config, "num_labels"):
        config.num_labels = made.config.num_labels
    with torch.device("meta"):
        large = type(made)(config).eval()
    return large.to("meta")  # type: ignore[no-any-return]


def measured(names: list[str]) -> list[dict[str, Any]]:
    """A row for each architecture."""
    rows = []
    for name in names:
        model = ARCHITECTURES[name].model()
        small, large = reached(model), reached(at_default_size(model))
        rows.append({"architecture": name, "small": asdict(small), "large": asdict(large)})
        print(name, f"{small.whole:.3f} {large.whole:.3f}", file=sys.stderr, flush=True)
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = ["# Thirty architectures", "", ABOUT, "", HEAD]
    for row in rows:
        small, large = row["small"], row["large"]
        stays = "; ".join(f"{share:.1%} {kind}" for kind, share in small["stays"].items())
        lines.append(
            f"| {row['architecture']} | {small['params']:,} | {small['default']:.1%} | "
            f"{small['whole']:.1%} | {large['params'] / 1e6:,.0f} M | {large['default']:.1%} | "
            f"{large['whole']:.1%} | {stays or '-'} |"
        )
    counts = [
        sum(row[size][share] >= GOAL for row in rows)
        for size in ("small", "large")
        for share in ("default", "whole")
    ]
    lines += [
        "",
        f"At least {GOAL:.0%} are reached on {counts[0]} of {len(rows)} small models by default and"
        f" on {counts[1]} with `include`; at the default sizes on {counts[2]} and {counts[3]}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of architectures; all by default")
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    rows = measured(given.names or list(ARCHITECTURES))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "architectures.json"
    path.write_text(json.dumps({"machine": versions, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()
