"""Writes the golden files that are not there yet, and the frozen texts anew: `make golden`.

A file under files/ is what a past version wrote and stays for good: it is loaded by every later
one. Delete it where its format was never released. The texts follow the code; their diff is read
by whoever commits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tensorlrf
from tensorlrf import Plan, io
from tensorlrf.compression import write_checkpoint
from tensorlrf.compression.checkpoint.named_tensors import named_tensors
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable
from tests.golden.difference import as_lines
from tests.golden.frozen import TEXTS, render
from tests.golden.models import (
    Net,
    checkpoint,
    compressed,
    gpt2,
    layers_of,
    methods,
    net_input,
    odd,
    plain_plans,
    plan_of,
)
from tests.golden.samples import (
    ALL_FORMATS,
    digest,
    digest_of_numbers,
    factors_by_format,
    input_of,
)

HERE = Path(__file__).parent
FILES = HERE / "files"


def main() -> None:
    """Everything."""
    for format, named in factors_by_format().items():
        _write(f"factors/{format}.safetensors", lambda p, n=named: io.save_factors_dict(n, p))
    one = factors_by_format()["cp"]["linear"]
    _write("factors/one.safetensors", lambda p: io.save_factors(one, p))
    for format in ALL_FORMATS:
        _write(f"layers/{format}.safetensors", lambda p, f=format: tensorlrf.save(layers_of(f), p))
    for word in methods():
        _write(f"models/{word}.safetensors", lambda p, w=word: tensorlrf.save(compressed(w), p))
    _write("odd.safetensors", lambda p: tensorlrf.save(odd(), p))
    _write("checkpoint.safetensors", _write_checkpoint)
    _write("gpt2", lambda p: tensorlrf.save(gpt2(), p))
    plans = {**{word: plan_of(method) for word, method in methods().items()}, **plain_plans()}
    for word, plan in plans.items():
        _write(f"plans/{word}.json", lambda p, made=plan: _write_text(p, made.to_json()))
    for name in TEXTS:
        _write_text(HERE / f"{name}.txt", render(name))


def _write(name: str, save: Callable[[Path], Any]) -> None:
    """A file that is not there yet, and beside it what it holds as it is read now."""
    path = FILES / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        _write_text(told_file(path), told(path))


def _write_checkpoint(path: Path) -> None:
    tensors, factors, recipes = checkpoint()
    write_checkpoint(path, tensors, factors, plan=recipes)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def told_file(path: Path) -> Path:
    """Where it is written down what a file holds."""
    return path.with_suffix(".told.txt")


def told(path: Path) -> str:
    """What there is to compare of a file, or of the folder of a model, once it is read."""
    kind = path.relative_to(FILES).parts[0]
    if kind == "factors":
        found = io.read(path)
        values = {name or "(no name)": told_factors(f) for name, f in found.factors.items()}
        return as_lines({"sealed": found.sealed, **values})
    if kind == "plans":
        return as_lines(told_plan(Plan.from_json(path.read_text())))
    return as_lines(TOLD[kind.partition(".")[0]](path))


def told_factors(factors: Any) -> dict[str, Any]:
    """What there is to compare of factors."""
    return {
        "is": repr(factors),
        "rank": factors.rank,
        "tensors": {name: digest(tensor) for name, tensor in factors.tensors().items()},
        "dense": digest_of_numbers(factors.to_dense()),
    }


def _told_layers(path: Path) -> dict[str, Any]:
    """Of every layer its tensors and tables, and what it computes by each of its paths."""
    model: Any = tensorlrf.load(path, layers_of(path.stem, dense=True))
    told: dict[str, Any] = {}
    for kind, layer in model.items():
        told[kind] = {**_of_layer(layer), **told_factors(layer.factors)}
        wide = layer.double()
        for taken in layer.paths:
            layer.path_table = PathTable.single(taken)
            told[kind][f"by {taken}"] = digest_of_numbers(wide(_wide(input_of(kind, layer))))
    return told


def _told_net(path: Path) -> dict[str, Any]:
    """Of a network its tensors, and what its layers compute by each of their paths."""
    with torch.device("meta"):
        blank = Net()
    model = tensorlrf.load(path, blank).eval()
    told: dict[str, Any] = {"state": _state(model)}
    for name, layer in model.double().named_children():
        if name == "norm":
            continue
        told[name] = _of_layer(layer)
        for taken in layer.paths if isinstance(layer, FactoredLayer) else ("its own",):
            if isinstance(layer, FactoredLayer):
                layer.path_table = PathTable.single(taken)
            told[name][f"by {taken}"] = digest_of_numbers(layer(net_input(name)))
    return told


def _told_odd(path: Path) -> dict[str, Any]:
    """Of a network its tensors and where each is, what is shared, and what modules say."""
    model: Any = tensorlrf.load(path, odd(dense=True))
    found = list(named_tensors(model))
    return {
        "tensors": {p.name: [p.role, digest(p.tensor)] for p in found},
        "shared": {
            p.name: [q.name for q in found if q.tensor is p.tensor and q.name != p.name]
            for p in found
        },
        "memory": {
            p.name: [q.name for q in found if _overlap(p.tensor, q.tensor) and q is not p]
            for p in found
        },
        "one layer": model.first is model.second,
        "said": model.said,
        "inspected": _inspected(path),
    }


def _inspected(path: Path) -> dict[str, Any]:
    """What is said of a file without its model, but for where it lies."""
    values = asdict(tensorlrf.inspect(path, verify=True))
    return {name: value for name, value in values.items() if name != "path"}


def _told_checkpoint(path: Path) -> dict[str, Any]:
    """Of a file without its model what is loaded into one."""
    model = tensorlrf.load(path, checkpoint_model())
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactoredLayer)}
    told = {name: _of_layer(layer) for name, layer in layers.items()}
    return {"state": _state(model), **told, "inspected": _inspected(path)}


def checkpoint_model() -> nn.Module:
    """The one whose tensors the checkpoint holds."""
    return nn.ModuleDict({"conv": nn.Conv2d(4, 5, 3), "norm": nn.BatchNorm2d(5),
                          "head": nn.Linear(4, 5)})  # fmt: skip


def _told_folder(path: Path) -> dict[str, Any]:
    """Of a model of transformers, loaded without being told what it is."""
    model: Any = tensorlrf.load(path)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactoredLayer)}
    return {
        "is": type(model).__name__,
        "state": _state(model),
        "tied": model.lm_head.weight is model.transformer.wte.weight,
        "eos_token_id": model.generation_config.eos_token_id,
        **{name: _of_layer(layer) for name, layer in layers.items()},
    }


TOLD: dict[str, Callable[[Path], dict[str, Any]]] = {
    "layers": _told_layers,
    "models": _told_net,
    "odd": _told_odd,
    "checkpoint": _told_checkpoint,
    "gpt2": _told_folder,
}


def told_plan(plan: Plan) -> dict[str, Any]:
    """What there is to compare of a plan; the methods by all of their options."""
    return {
        "keep_params": plan.keep_params,
        "error": plan.error,
        **{
            row.name: [row.kind, list(row.shape), row.groups, row.params, row.eligible,
                       repr(row.method), row.reason]
            for row in plan.layers
        },
    }  # fmt: skip


def _of_layer(layer: Any) -> dict[str, Any]:
    if not isinstance(layer, FactoredLayer):
        return {"is": type(layer).__name__}
    return {
        "is": type(layer).__name__,
        "stands for": layer.stands_for,
        "recipe": layer.recipe,
        "measured": {key: str(table) for key, table in layer.measured.items()},
        "trains": [name for name, p in layer.named_parameters() if p.requires_grad],
    }


def _state(model: nn.Module) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in model.state_dict().items()}


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


if __name__ == "__main__":
    main()
