"""Layers, models, plans, configurations and files on what cannot be: what is said, a line each."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import tensorlrf
from tensorlrf import Plan, io
from tensorlrf.compression.methods import config_of, words
from tensorlrf.ops import PathTable
from tests.golden.misuse import lines, ones, sample
from tests.golden.models import Net
from tests.golden.refusals import told
from tests.golden.samples import dense_layer, layers

# ---- layers ------------------------------------------------------------------------------------


def _layers() -> Iterator[str]:
    for format, kind, layer in layers():
        if kind not in ("linear", "conv", "embedding"):
            continue
        other = nn.Embedding(3, 3) if kind == "embedding" else nn.Linear(3, 3)
        cases: dict[str, Callable[[], Any]] = {
            "another path": lambda one=layer: setattr(
                one, "path_table", PathTable.single("unknown")
            ),
            "path fused": lambda one=layer: setattr(one, "path_table", PathTable.single("fused")),
            "another state": lambda one=layer: one.load_state_dict({}),
        }
        if format == "lowrank":
            cases |= {
                "like another": lambda one=layer, like=other: type(one).from_factors(
                    one.factors, like
                ),
                "like nothing": lambda one=layer: type(one).from_factors(one.factors, nn.ReLU()),
                "of a tensor": lambda one=layer, k=kind: type(one).from_factors(
                    one.weight, dense_layer(k, one.factors)
                ),
                "a path in words": lambda one=layer: setattr(one, "path_table", "chain"),
                "a weight": lambda one=layer: setattr(one, "weight", ones(3, 3)),
                "measured in words": lambda one=layer: one.set_measured("cpu", "chain"),
                "weight in place": lambda one=layer: one.weight.mul_(2),
                "weight.data in place": lambda one=layer: one.weight.data.zero_(),
            }
        yield from lines({f"{format}, {kind}, {name}": call for name, call in cases.items()})
    convolution = nn.Conv2d(4, 4, 3, groups=4)
    yield from lines(
        {
            "factorize by an unknown word": lambda: tensorlrf.nn.factorize(
                nn.Linear(4, 4), "unknown", 2
            ),
            "factorize a tensor": lambda: tensorlrf.nn.factorize(ones(4, 4), "svd", 2),  # type: ignore[call-overload]
            "factorize depthwise": lambda: tensorlrf.nn.factorize(convolution, "svd", 2),
            "factorize on meta": lambda: tensorlrf.nn.factorize(
                nn.Linear(4, 4, device="meta"), "svd", 2
            ),
            "factored_type of a norm": lambda: tensorlrf.nn.factored_type(nn.LayerNorm(3)),
            "factored_type of a linear layer": lambda: tensorlrf.nn.factored_type(nn.Linear(3, 3)),
            "register_plain of a number": lambda: tensorlrf.nn.register_plain(3, ones),  # type: ignore[arg-type]
            "register_plain of torch's own": lambda: tensorlrf.nn.register_plain(nn.Linear, ones),  # type: ignore[arg-type]
            "register_tensor of a tensor": lambda: tensorlrf.nn.register_tensor(Tensor, ones),
        }
    )


# ---- models ------------------------------------------------------------------------------------

PLANNED: dict[str, dict[str, Any]] = {
    "no budget": {},
    "two budgets": {"keep_params": 0.5, "error": 0.1},
    **{f"keep_params={v!r}": {"keep_params": v} for v in (0, -1, 2, "half", True, float("nan"))},
    **{f"error={v!r}": {"error": v} for v in (0, -1, 1, 2, "half", True, float("nan"))},
    "an unknown method": {"keep_params": 0.5, "method": "unknown"},
    "a method that is none": {"keep_params": 0.5, "method": 3},
    "a mapping of nothing": {"keep_params": 0.5, "method": {}},
    "a mapping to nothing": {"keep_params": 0.5, "method": {"none*": "svd"}},
    "skip that matches nothing": {"keep_params": 0.5, "skip": ["none*"]},
    "skip of a number": {"keep_params": 0.5, "skip": 3},
    "skip of all": {"keep_params": 0.5, "skip": "*"},
    "an unknown objective": {"keep_params": 0.5, "objective": "beauty"},
    "latency without an example": {"keep_params": 0.5, "objective": "latency"},
    "too little": {"keep_params": 1e-6, "skip": []},
    "a rank and a budget": {"keep_params": 0.5, "method": config_of("svd")(rank=2), "skip": []},
}
FITTED: dict[str, dict[str, Any]] = {
    "an unknown target": {"target": "beauty"},
    "prefix without calibration": {"target": "prefix"},
    "affine without calibration": {"affine": True},
    "calibration of nothing": {"calibration": []},
    "calibration of a number": {"calibration": 3},
    "calibration that does not fit": {"calibration": [ones(2, 3)]},
    "holdout=1": {"calibration": [ones(2, 12)], "holdout": 1.0},
    "holdout=-1": {"calibration": [ones(2, 12)], "holdout": -1.0},
    "memory_limit=0": {"calibration": [ones(2, 12)], "memory_limit": 0},
    "random_state of a word": {"random_state": "seed"},
}


class Stack(nn.Sequential):
    """Two layers that run."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))


def _models() -> Iterator[str]:
    net, stack = Net(), Stack()
    for name, given in PLANNED.items():
        yield f"plan, {name}: {told(tensorlrf.plan, net, **given)}"
        yield f"compress, {name}: {told(tensorlrf.compress, net, progress=False, **given)}"
    made = tensorlrf.plan(stack, keep_params=0.5, skip=[])
    for name, given in FITTED.items():
        yield f"apply, {name}: {told(tensorlrf.apply, stack, made, progress=False, **given)}"
    small = tensorlrf.nn.factorize(nn.Linear(12, 16), "svd", 2)
    yield from lines(
        {
            "plan of a tensor": lambda: tensorlrf.plan(ones(3, 3), keep_params=0.5),  # type: ignore[arg-type]
            "plan of nothing to factor": lambda: tensorlrf.plan(nn.ReLU(), keep_params=0.5),
            "apply of another plan": lambda: tensorlrf.apply(net, made, progress=False),
            "apply of a word": lambda: tensorlrf.apply(net, "svd", progress=False),  # type: ignore[arg-type]
            "apply on meta": lambda: tensorlrf.apply(Stack().to("meta"), made, progress=False),
            "compress_ of the layer itself": lambda: tensorlrf.compress_(
                nn.Linear(12, 16), keep_params=0.5, skip=[], progress=False
            ),
            "tune of nothing factored": lambda: tensorlrf.tune(stack, ones(2, 12), progress=False),
            "tune of another input": lambda: tensorlrf.tune(small, ones(2, 3), progress=False),
            "tune by an unknown objective": lambda: tensorlrf.tune(
                small, ones(2, 12), objective="beauty", progress=False
            ),
            "tune in no time": lambda: tensorlrf.tune(
                small, ones(2, 12), seconds=-1.0, progress=False
            ),
            "export of a tensor": lambda: tensorlrf.export(ones(3)),  # type: ignore[arg-type]
            "export for no rows": lambda: tensorlrf.export(small, rows=0),
            "export": lambda: tensorlrf.export(small),
            "densify of a tensor": lambda: tensorlrf.densify(ones(3)),  # type: ignore[arg-type]
            "densify": lambda: tensorlrf.densify(small),
        }
    )


OPTIONS: dict[str, tuple[Any, ...]] = {
    "rank": (0, -1, 1.5, True, "auto", "same", "much", (2, 2), ()),
    "error": (0, -0.1, 1.5, "small", True),
    "n_iter_max": (0, -1, 1.5, "many", True),
    "tol": (-1.0, 2.0, "small", float("nan")),
    "init": ("unknown", 3),
    "metric": ("unknown", 3),
    "solver": ("unknown", 3),
    "n_restarts": (0, 1.5),
    "n_samples": (0, 1.5),
    "n_power_iter": (-1, 1.5),
    "n_oversample": (-1, 1.5),
    "rank_shares": ((), (0.5,), (2.0, 1.0), 0.5),
    "shapes": (((3, 5), (7, 2)), (16, 12), "44"),
    "sizes": (((4, 5), (4, 3)), ((16,),), "44"),
    "row_sizes": ((), (0, 16), "44"),
    "column_sizes": ((), (0, 12), "44"),
    "order": (0, -1, 1.5),
    "block": (0, -4, 1.5, (4,)),
    "blocks": (0, -4, 1.5, (4,)),
    "dense_blocks": ("yes", 3),
    "leaf": (0, -4, 1.5),
    "admissible": ("unknown", 3),
    "candidates": ((), ("svd",), "svd", ("unknown",)),
}
SHAPES = {"linear": (16, 12), "conv": (8, 6, 3, 3), "conv1d": (8, 6, 3), "tiny": (1, 1)}


def _methods() -> Iterator[str]:
    for word, method in ((w, config_of(w)) for w in words()):
        plain = method()
        yield f"{word}: {plain!r}"
        for option, values in OPTIONS.items():
            for value in values if hasattr(plain, option) else ():
                yield f"{word}, {option}={value!r}: {told(method, **{option: value})}"
        yield f"{word}, both: {told(method, rank=0.5, error=0.1)}"
        yield f"{word}, odd=1: {told(method, odd=1)}"
        small = method(leaf=4) if word == "hierarchical" else plain
        for name, shape in SHAPES.items():
            for groups in (1, 2) if len(shape) > 2 else (1,):
                why = small.for_shape(shape).why_not(shape, groups)
                yield f"{word} of {name} in {groups}: {why or 'serves it'}"
                if not why:
                    rungs = small.for_shape(shape).ladder(shape, groups).rungs
                    yield from (f"    {rung!r}" for rung in rungs)


# ---- files -------------------------------------------------------------------------------------


def _files() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, _in(Path(folder)):
        io.save_factors(sample("cp"), "one.safetensors")
        io.save_factors_dict({"a": sample("cp")}, "named.safetensors")
        stack = Stack()
        small, _ = tensorlrf.compress(stack, keep_params=0.5, skip=[], progress=False)
        tensorlrf.save(small, "model.safetensors")
        for name in ("one", "model"):
            text = Path(f"{name}.safetensors").read_bytes()
            Path(f"{name}_cut.safetensors").write_bytes(text[: len(text) // 2])
            Path(f"{name}_flipped.safetensors").write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
            older = text.replace(b'\\"version\\":', b'\\"versiom\\":')
            Path(f"{name}_renamed.safetensors").write_bytes(older)
        Path("empty.safetensors").write_bytes(b"")
        Path("folder").mkdir()
        files = sorted(p.name for p in Path().iterdir())
        for file in ("none.safetensors", *files):
            yield f"load_factors, {file}: {told(io.load_factors, file)}"
            yield f"load_factors_dict, {file}: {told(io.load_factors_dict, file)}"
            yield f"load, {file}: {told(tensorlrf.load, file, stack)}"
            yield f"inspect, {file}: {told(tensorlrf.inspect, file)}"
            yield f"inspect and verify, {file}: {told(tensorlrf.inspect, file, verify=True)}"
        yield from lines(
            {
                "save_factors of a tensor": lambda: io.save_factors(ones(3), "new"),  # type: ignore[arg-type]
                "save_factors over a file": lambda: io.save_factors(
                    sample("cp"), "one.safetensors"
                ),
                "save_factors on meta": lambda: io.save_factors(
                    sample("cp").to(device="meta"), "new"
                ),
                "save_factors to no folder": lambda: io.save_factors(sample("cp"), "none/new"),
                "save_factors to a number": lambda: io.save_factors(sample("cp"), 3),  # type: ignore[arg-type]
                "save_factors_dict of nothing": lambda: io.save_factors_dict({}, "new"),
                "save_factors_dict without a name": lambda: io.save_factors_dict(
                    {"": sample("cp")}, "new"
                ),
                "save_factors_dict of a tensor": lambda: io.save_factors_dict(
                    {"a": ones(3)},  # type: ignore[dict-item]
                    "new",
                ),
                "save over a file": lambda: tensorlrf.save(small, "model.safetensors"),
                "save of a tensor": lambda: tensorlrf.save(ones(3), "new"),  # type: ignore[arg-type]
                "load into nothing": lambda: tensorlrf.load("model.safetensors"),
                "load into another": lambda: tensorlrf.load("model.safetensors", nn.Linear(3, 3)),
                "load onto an unknown device": lambda: tensorlrf.load(
                    "model.safetensors", stack, device="unknown"
                ),
            }
        )


def _plans() -> Iterator[str]:
    text = tensorlrf.plan(Stack(), keep_params=0.5, skip=[]).to_json()
    changes = {
        "no JSON": text[:-4],
        "a list": "[]",
        "another version": text.replace('"version": ', '"version": 9'),
        "no version": text.replace('"version"', '"versiom"'),
        "one key more": text.replace('"keep_params"', '"odd": 1, "keep_params"', 1),
        "an unknown method": text.replace('"svd"', '"unknown"'),
        "an unknown option": text.replace('"rank": 3', '"rank": 3, "oversample": 4'),
        "an option of another type": text.replace('"rank": 3', '"rank": 3, "n_oversample": "four"'),
        "a rank of 0": text.replace('"rank": 3', '"rank": 0'),
        "a rank beyond": text.replace('"rank": 3', '"rank": 300'),
    }
    stack = Stack()
    for name, changed in changes.items():
        yield f"{name}: {told(Plan.from_json, changed)}"
        if changed == text:
            raise AssertionError(name)
    beyond = told(lambda: tensorlrf.apply(stack, Plan.from_json(changes["a rank beyond"])))
    yield f"apply with a rank beyond: {beyond}"


def _without_sizes(line: str) -> str:
    """Without numbers of bytes, checksums and what a damaged header said."""
    line = re.sub(r"(a damaged header: it is).*", r"\1 ...", line)
    return re.sub(r"\d[\d,]*", "#", re.sub(r"\b[0-9a-f]{12,}\b", "HASH", line))


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


MISUSED_MODELS: dict[str, Callable[[], Iterator[str]]] = {
    "layers": _layers,
    "models": _models,
    "methods": _methods,
    "files": lambda: map(_without_sizes, _files()),
    "plans": _plans,
}
"""An area -> the lines of it."""
