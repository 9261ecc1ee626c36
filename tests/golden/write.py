"""Writes the golden files that are not there yet, and the frozen texts anew: `make golden`.

A file under files/ is what a past version wrote and stays for good: it is loaded by every later
one. Delete it where its format was never released. The texts follow the code; their diff is read
by whoever commits them.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

import tensorlrf
from tensorlrf import Plan, io
from tensorlrf.compression._methods import METHODS
from tensorlrf.factors import Batch
from tensorlrf.nn import factorize
from tensorlrf.nn._factorize import EMBEDDING_METHODS
from tests.golden.frozen import TEXTS
from tests.golden.samples import (
    Net,
    digest,
    digest_of_numbers,
    methods,
    net_input,
    plan_of,
    samples,
    tables,
    whole,
)

HERE = Path(__file__).parent
FILES = HERE / "files"


def main() -> None:
    """Everything."""
    write_factors()
    write_models()
    write_plans()
    for name, render in TEXTS.items():
        path = HERE / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render())


def write_factors() -> None:
    """A file of each format, of all layers that it serves and of other dtypes."""
    found: dict[str, dict[str, Any]] = {}
    for format, kind, factors in samples():
        found.setdefault(format, {})[kind] = factors
        if kind == "linear":
            for dtype in (torch.bfloat16, torch.float16, torch.float64):
                name = str(dtype).removeprefix("torch.")
                found[format][f"linear {name}"] = factors.to(dtype)
    for format, factors in tables():
        found[format]["embedding"] = factors
    matrix = found["lowrank"]["linear"]
    found["batch"] = {"linear": Batch.stack([matrix, matrix.map(lambda t: whole(t, 3))])}
    for format, named in found.items():
        path = FILES / f"factors/{format}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            io.save_factors_dict(named, path)
            _tell(path, {name: told_factors(f) for name, f in named.items()})


def write_models() -> None:
    """A saved network of each method."""
    for word in METHODS:
        path = FILES / f"models/{word}.safetensors"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        model = Net()
        if word in EMBEDDING_METHODS:
            model.embedding = factorize(model.embedding, word, 3)
        method = METHODS[word](leaf=4) if word == "hierarchical" else word
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a budget that linear layers alone do not meet
            small, _ = tensorlrf.compress(
                model, keep_params=0.7, method=method, skip=[], progress=False
            )
        for turn, tensor in enumerate(small.parameters()):
            tensor.data = whole(tensor, turn)
        tensorlrf.save(small, path)
        _tell(path, told_model(small))


def write_plans() -> None:
    """A plan of each method, with every option that it has."""
    for word, method in methods().items():
        path = FILES / f"plans/{word}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = plan_of(method)
            path.write_text(made.to_json() + "\n")
            _tell(path, told_plan(made))


def told_factors(factors: Any) -> dict[str, Any]:
    """What there is to compare of factors."""
    return {
        "format": factors.format,
        "shape": list(factors.shape),
        "rank": factors.rank if isinstance(factors.rank, int) else list(factors.rank),
        "tensors": {name: digest(tensor) for name, tensor in factors.tensors().items()},
        "dense": digest_of_numbers(factors.to_dense()),
    }


def told_model(model: Any) -> dict[str, Any]:
    """What there is to compare of a network: tensors to the bit, and what its layers compute."""
    model = model.eval()
    told: dict[str, Any] = {
        "state": {name: digest(tensor) for name, tensor in model.state_dict().items()},
        "layers": {},
    }
    wide = model.double()
    for name, layer in wide.named_children():
        if name != "norm":
            output = layer(net_input(name))
            told["layers"][name] = [type(layer).__name__, digest_of_numbers(output)]
    return told


def told_plan(plan: Plan) -> dict[str, Any]:
    """What there is to compare of a plan; the methods by all of their options."""
    return {
        "keep_params": plan.keep_params,
        "error": plan.error,
        "layers": {
            row.name: [row.kind, list(row.shape), row.groups, row.params, row.eligible,
                       repr(row.method), row.reason]
            for row in plan.layers
        },
    }  # fmt: skip


def told_file(path: Path) -> Path:
    """Where it is written down what a file holds."""
    return path.with_suffix(".told.json")


def _tell(path: Path, told: dict[str, Any]) -> None:
    told_file(path).write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
