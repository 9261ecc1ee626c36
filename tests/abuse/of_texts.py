"""Readers of texts: plans, reports and tables as JSON, path tables, documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.cli._texts import read_texts
from tensorlrf.compression import (
    BatchNorms,
    ExpertPool,
    FoldedNorms,
    Frontier,
    Latency,
    Plan,
    Quality,
    RankTable,
    Recipe,
    Refinement,
    Report,
    Sensitivity,
    SharedBasis,
)
from tensorlrf.errors import FileError, TensorlrfError
from tensorlrf.ops import PathTable
from tensorlrf_kernels._tables import _read as read_launches
from tensorlrf_kernels.launches import LaunchConfig
from tests.abuse.reader import Reader, Wrong, of_model
from tests.compression.networks import set_weights
from tests.draws import seeded32

FILE = "f.json"


@cache
def net() -> nn.Module:
    return set_weights(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6)))


def batches() -> list[Tensor]:
    return [seeded32(64, 10, seed=k) for k in range(3)]


def written(text: Callable[[], str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / FILE).write_text(text(), encoding="utf-8")

    return make


# ---- what they are made of ---------------------------------------------------------------------


def plan() -> str:
    found = tensorlrf.plan(
        net(), calibration=batches(), keep_params=0.5, method="auto", skip=[], allocation="fisher",
    )  # fmt: skip
    return found.to_json()


def sensitivity() -> str:
    return tensorlrf.sensitivity(net(), batches(), rule="fisher", skip=[]).to_json()


def report() -> str:
    _, found = tensorlrf.compress(
        net(), calibration=batches(), keep_params=0.5, skip=[], progress=False
    )
    more: dict[str, Any] = {
        "latency": Latency(2.0, 1.0),
        "folded": FoldedNorms(("bn",), ("fc",), ("norm: no",)),
        "bases": (SharedBasis(("a", "b"), 3, (2, 2), 0.1, 0.2, True, True),),
        "pools": (ExpertPool("mlp", (3, 90), 4.0),),
        "quality": Quality(0.9, 0.8, 0.1, 0.2, 30, 3, 0.0, 2),
        "batch_norms": BatchNorms(2, True, 0.2, 0.1),
        "refinement": Refinement.from_json(refinement()),
        "model_error_interval": (0.1, 0.2),
    }
    return replace(found, **more).to_json()


def frontier() -> str:
    found = tensorlrf.frontier(net(), batches(), shares=(0.8, 0.4), skip=[], progress=False)
    return found.to_json()


@cache
def small() -> nn.Module:
    return tensorlrf.compress(net(), keep_params=0.5, skip=[], progress=False)[0]


def refinement() -> str:
    _, found = tensorlrf.refine(small(), net(), batches(), steps=4, progress=False)
    return found.to_json()


def ranks() -> str:
    return tensorlrf.rank_table(small(), batches(), model=net()).to_json()


def launches() -> str:
    config = LaunchConfig("kernel", {"m": 16, "n": 32}, 4, 2)
    return json.dumps({"launches": {"op.kernel": {"float32": {"m=1": config.to_json()}}}})


def text_of(folder: Path) -> str:
    """As the command line reads it."""
    path = folder / FILE
    if not path.is_file():
        raise FileError(f"{path} is not a file")
    return path.read_text(encoding="utf-8", errors="replace")


# ---- what they say -----------------------------------------------------------------------------


def again(kind: Any) -> Callable[[Path], str]:
    """The value prints itself, and is what its own JSON says."""

    def read(folder: Path) -> str:
        found = kind.from_json(text_of(folder))
        str(found)
        text: str = found.to_json()
        if kind.from_json(text) != found:
            raise Wrong("its own JSON is another one")
        return text

    return read


def planned(folder: Path) -> str:
    """A plan that is read is carried out or refused."""
    text = again(Plan)(folder)
    made, _ = tensorlrf.apply(net(), Plan.from_json(text), progress=False)
    if not all(bool(torch.isfinite(p).all()) for p in made.parameters()):
        raise Wrong("a number that is none")
    return of_model(made)


def shared_out(folder: Path) -> str:
    """A sensitivity that is read shares ranks out or is refused."""
    text = again(Sensitivity)(folder)
    known = Sensitivity.from_json(text)
    plan = tensorlrf.plan(net(), keep_params=0.5, skip=[], sensitivity=known)
    weights = [row for row in plan.layers if row.factored]
    if sum(row.params_after or 0 for row in weights) > sum(row.params for row in weights):
        raise Wrong("more than there was")
    return text


def path_table(folder: Path) -> str:
    table = PathTable.from_json(text_of(folder))
    return json.dumps(table.to_json())


RECIPE = """\
keep_params: 0.6  # of the weights
method:
  '0': {name: svd, metric: diagonal}
  "2": kron
skip: []
calibration: {text: news.txt, tokens: 96}
allocation:
  rule: energy
  weights: {'*': 2.5e-1}
"""


def recipe(folder: Path) -> str:
    """What is read is written and read as the same."""
    found = Recipe.read(folder / FILE)
    text = found.to_yaml()
    if Recipe.from_yaml(text) != found:
        raise Wrong("another recipe")
    return text


def launch_table(folder: Path) -> str:
    text_of(folder)
    return str(read_launches(folder / FILE))


READERS = (
    Reader("plan", written(plan), planned),
    Reader("sensitivity", written(sensitivity), shared_out),
    Reader("report", written(report), again(Report)),
    Reader("frontier", written(frontier), again(Frontier)),
    Reader("refinement", written(refinement), again(Refinement)),
    Reader("table of ranks", written(ranks), again(RankTable)),
    Reader("path table", written(lambda: '[[4, "chain"], [null, "dense"]]'), path_table),
    Reader("recipe", written(lambda: RECIPE), recipe),
    Reader(
        "documents",
        written(lambda: "One.\nTwo of it.\n\nThree: é\n"),
        lambda folder: json.dumps(read_texts([folder / FILE])),
    ),
    Reader(
        "table of launches",
        written(launches),
        launch_table,
        errors=(TensorlrfError, ValueError, OSError),  # the kernel core knows none of ours
    ),
)
