"""What every decomposition makes of a fixed set of inputs: residuals, ranks, sizes, norms.

    PYTHONPATH=OLD:OLD/kernels OMP_NUM_THREADS=1 python bench/before_after.py run old.json
    PYTHONPATH=NEW:NEW/kernels OMP_NUM_THREADS=1 python bench/before_after.py run new.json
    python bench/before_after.py compare old.json new.json

The checkout is the one that PYTHONPATH names: this file is a script and looks at public names
alone. `compare` says which cases are equal to rounding, which are better and which are worse: less
error at as many parameters, or fewer parameters within the error that was asked for. Residuals are
taken here, in float64, of what the factors stand for as they were returned; with gram= of the
outputs, in the G that was given. It returns 1 where something is worse.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROUNDINGS = 64.0
"""Roundings of the dtype by which a relative residual may differ and still be equal."""


class Case(NamedTuple):
    """A call and what to judge it by.

    word     of the decomposition
    name     of the case, unique for the word
    tensor   what is decomposed, batches in front
    options  rank=, error= and all else
    """

    word: str
    name: str
    tensor: Tensor
    options: dict[str, Any]


# ---- inputs ------------------------------------------------------------------------------------


def draws(seed: int) -> torch.Generator:
    """Of its own."""
    return torch.Generator().manual_seed(seed)


def randn(*size: int, seed: int = 0) -> Tensor:
    """Normal, float64."""
    return torch.randn(size, generator=draws(seed), dtype=torch.float64)


def with_spectrum(m: int, n: int, values: Callable[[Tensor], Tensor], seed: int = 0) -> Tensor:
    """A matrix (m, n) with singular values values(1), values(2), ..."""
    k = min(m, n)
    left, right = (
        torch.linalg.qr(randn(size, k, seed=seed + j))[0] for j, size in enumerate((m, n))
    )
    return left * values(torch.arange(1.0, k + 1, dtype=torch.float64)) @ right.T


def noisy(tensor: Tensor, share: float, seed: int = 9) -> Tensor:
    """With white noise of that relative norm."""
    noise = randn(*tensor.shape, seed=seed)
    return tensor + noise * (share * tensor.norm() / noise.norm())


def sum_of_outer(sizes: tuple[int, ...], rank: int, collinear: float = 0.0) -> Tensor:
    """A CP tensor whose columns have that much in common."""
    factors = []
    for k, n in enumerate(sizes):
        one = randn(n, rank, seed=k) + collinear * randn(n, 1, seed=50 + k)
        factors.append(one / one.norm(dim=0))
    letters = "abcdef"[: len(sizes)]
    return torch.einsum(",".join(f"{c}z" for c in letters) + f"->{letters}", *factors)


def matrices() -> dict[str, Tensor]:
    """Name -> a matrix, float64."""
    kron = sum(torch.kron(randn(8, 6, seed=k), randn(6, 8, seed=k + 5)) for k in range(2))
    assert isinstance(kron, Tensor)
    distance = (torch.arange(48.0).double()[:, None] - torch.arange(48.0).double() - 0.5).abs()
    return {
        "slow": with_spectrum(48, 40, lambda k: 1 / k),
        "fast": with_spectrum(48, 40, lambda k: 0.6**k),
        "white": randn(48, 36),
        "planted": noisy(with_spectrum(48, 48, lambda k: (k <= 5) * 1.0), 0.1),
        "kronecker": noisy(kron, 0.1),
        "kernel": 1 / distance,
        "odd sizes": randn(37, 29),
        "tall": with_spectrum(120, 6, lambda k: 1 / k),
        "wide": with_spectrum(6, 120, lambda k: 1 / k),
    }


def degenerate() -> dict[str, Tensor]:
    """Name -> a matrix on which something vanishes."""
    exact = with_spectrum(40, 32, lambda k: (k <= 3) * 1.0)
    equal = torch.eye(32, dtype=torch.float64)
    gaps = randn(40, 32)
    gaps[::2] = 0
    gaps[:, 5] = gaps[:, 6]
    return {
        "zeros": torch.zeros(32, 24, dtype=torch.float64),
        "constant": torch.ones(32, 24, dtype=torch.float64),
        "exact rank": exact,
        "identity": equal,
        "empty rows, equal columns": gaps,
        "tiny": 1e-30 * exact,
        "huge": 1e30 * exact,
    }


def tensors() -> dict[str, Tensor]:
    """Name -> a tensor of three or more modes, float64."""
    return {
        "three modes": noisy(sum_of_outer((12, 10, 8), 3), 0.1),
        "collinear": noisy(sum_of_outer((12, 10, 8), 3, 3.0), 0.05),
        "white": randn(10, 9, 8),
        "kernel": noisy(sum_of_outer((16, 12, 3, 3), 4), 0.2),
        "kernel of one axis": noisy(sum_of_outer((16, 12, 5), 4), 0.2),
        "exact": sum_of_outer((9, 8, 7), 2),
        "zeros": torch.zeros(6, 5, 4, dtype=torch.float64),
    }


def grams(n: int) -> dict[str, dict[str, Tensor]]:
    """Name -> gram= and mean= of n inputs."""
    mix = with_spectrum(n, n, lambda k: 1 / k.sqrt(), seed=7)
    shift = randn(n, seed=8)
    found = {}
    for name, count, mean in (
        ("G", 4 * n, False),
        ("few samples", n // 2, False),
        ("mean", 4 * n, True),
    ):
        x = randn(count, n, seed=3) @ mix + (shift if mean else 0)
        found[name] = {"gram": x.T @ x / count, **({"mean": x.mean(0)} if mean else {})}
    return found


# ---- cases -------------------------------------------------------------------------------------

OF_MATRICES: dict[str, tuple[dict[str, Any], ...]] = {
    "svd": ({"rank": 4}, {"rank": 0.5}, {"error": 0.3}, {"rank": "auto"}),
    "cp": ({"rank": 3},),
    "tucker": ({"rank": (5, 4)}, {"error": 0.3}),
    "tt": ({"rank": 4}, {"error": 0.3}),
    "tt_matrix": ({"rank": 4}, {"error": 0.3}, {"rank": 0.5, "order": 3}),
    "tr": ({"rank": 2}, {"rank": 0.5}, {"error": 0.4}),
    "kron": ({"rank": 2}, {"rank": 0.5}, {"error": 0.3}),
    "blr": ({"rank": 0.5}, {"error": 0.3}, {"rank": 2, "block": 12},
            {"rank": 0.5, "block": 12, "dense_blocks": False}),
    "hierarchical": ({"rank": 0.6, "leaf": 8}, {"error": 0.3, "leaf": 8},
                     {"rank": 0.9, "leaf": 8, "admissible": "strong"}),
    "hodlr": ({"rank": 0.6, "leaf": 8}, {"error": 0.3, "leaf": 8}),
    "monarch": ({"rank": 1}, {"rank": 0.5}, {"error": 0.4}, {"rank": 2, "blocks": 4}),
    "blast": ({"rank": 4}, {"error": 0.4, "blocks": 4, "n_iter_max": 20}),
}  # fmt: skip
"""A word -> what is asked of every matrix."""
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "svd": tuple({"rank": 4, "method": m} for m in ("exact", "eigh", "randomized")),
    "cp": ({"rank": 4, "init": "svd"}, {"rank": 4, "n_restarts": 3}, {"rank": 12},
           {"rank": 4, "tol": 1e-9, "n_iter_max": 300}, {"rank": 4, "solver": "cprand"},
           {"rank": 4, "solver": "leverage"}, {"rank": 4, "n_iter_max": 1}),
    "tucker": ({"rank": (3, 3, 3), "method": "hosvd"}, {"rank": (3, 3, 3), "method": "st_hosvd"},
               {"rank": (3, 3), "modes": (0, 1)}, {"rank": 0.5}, {"error": 0.2, "modes": (0, 1)},
               {"rank": "auto"}),
    "tt": ({"rank": 0.5}, {"rank": (3, 2), "modes": (2, 0, 1)}),
    "tr": ({"rank": 2, "init": "random"}, {"rank": (2, 3, 2)}),
    "kron": ({"rank": 2, "shapes": ((8, 6), (6, 8))}, {"rank": 2, "method": "randomized"}),
}  # fmt: skip
"""A word -> other options, asked of one input each."""


def cases() -> Iterator[Case]:
    """All of them."""
    for word, asked in OF_MATRICES.items():
        for name, matrix in {**matrices(), **degenerate()}.items():
            for options in asked:
                yield Case(word, f"{name}, {shown(options)}", matrix.float(), options)
        for dtype in (torch.float64, torch.bfloat16):
            options = asked[0]
            told = str(dtype).removeprefix("torch.")
            for name in ("slow", "fast"):
                yield Case(
                    word, f"{name}, {told}, {shown(options)}", matrices()[name].to(dtype), options
                )
        for name in ("slow", "planted", "odd sizes", "white"):
            matrix = matrices()[name].float()
            for gram, given in grams(matrix.shape[1]).items():
                if gram != "G" and name in ("planted", "odd sizes"):
                    continue
                yield Case(
                    word, f"{name}, {gram}, {shown(asked[0])}", matrix, {**asked[0], **given}
                )
            given = grams(matrix.shape[1])["G"]
            for share in [o for o in asked[1:] if isinstance(o.get("rank"), float)][:1]:
                yield Case(word, f"{name}, G, {shown(share)}", matrix, {**share, **given})
            within = {**asked[0], "rank": None, "error": 0.3, **given}
            if word == "blast":
                within["n_iter_max"] = 10  # of each of its many fits
            yield Case(word, f"{name}, G, within .3", matrix, within)
    yield from _of_tensors()
    yield from _variants()
    yield from _batches()


def _of_tensors() -> Iterator[Case]:
    for plain, tensor in tensors().items():
        order = tensor.ndim
        name = f"{order} modes, {plain}"
        asked: dict[str, tuple[dict[str, Any], ...]] = {
            "svd": ({"rank": 3}, {"error": 0.3}),
            "cp": ({"rank": 3}, {"rank": 4, "init": "svd"}, {"error": 0.4}),
            "tucker": ({"rank": 3}, {"error": 0.3}),
            "tt": ({"rank": 3}, {"error": 0.3}),
            "tr": ({"rank": 2},),
        }
        if "kernel" in name:
            asked |= {"kron": ({"rank": 2}, {"error": 0.3})}
        for word, several in asked.items():
            for options in several:
                if word == "tucker" and "rank" in options:
                    options = {"rank": (3,) * min(3, order) + (2,) * (order - 3)}
                yield Case(word, f"{name}, {shown(options)}", tensor.float(), options)
        if "kernel" in name:
            columns = math.prod(tensor.shape[1:])
            for gram, given in grams(columns).items():
                train = (0, *range(order - 1, 0, -1))
                yield Case("svd", f"{name}, {gram}", tensor.float(), {"rank": 3, **given})
                yield Case("cp", f"{name}, {gram}", tensor.float(), {"rank": 3, **given})
                yield Case("kron", f"{name}, {gram}", tensor.float(), {"rank": 2, **given})
                yield Case(
                    "tt", f"{name}, {gram}", tensor.float(), {"rank": 3, "modes": train, **given}
                )
                yield Case("tucker", f"{name}, {gram}", tensor.float(),
                           {"rank": (4, 4), "modes": (0, 1), **given})  # fmt: skip


def _variants() -> Iterator[Case]:
    for word, several in VARIANTS.items():
        for options in several:
            tensor = tensors()["three modes"].float()
            if word in ("svd", "kron"):
                tensor = matrices()["kronecker"].float()
            yield Case(word, f"variant, {shown(options)}", tensor, options)


def _batches() -> Iterator[Case]:
    stack = torch.stack([matrices()["planted"], matrices()["kronecker"], randn(48, 48)]).float()
    cube = torch.stack([sum_of_outer((8, 7, 6), 3), randn(8, 7, 6)]).float()
    shapes = ((8, 6), (6, 8))
    for word, tensor, options in (
        ("svd", stack, {"rank": 4}),
        ("svd", stack, {"error": 0.3}),
        ("svd", stack, {"rank": 4, "gram": grams(48)["G"]["gram"]}),
        ("kron", stack, {"rank": 2, "shapes": shapes}),
        ("kron", stack, {"error": 0.5, "shapes": shapes}),
        ("blr", stack, {"rank": 0.5, "block": 12}),
        ("blr", stack, {"error": 0.3, "block": 12}),
        ("tt", cube, {"rank": 3}),
        ("tt", cube, {"error": 0.3}),
        ("tucker", cube, {"rank": 3, "method": "hosvd"}),
        ("tucker", cube, {"rank": 3, "method": "st_hosvd"}),
    ):
        metric = ", G" if "gram" in options else ""
        name = f"batch{metric}, {shown(options)}"
        yield Case(word, name, tensor, {**options, "batch_dims": 1})


def shown(options: dict[str, Any]) -> str:
    """As a name."""
    return ", ".join(f"{k}={v!r}" for k, v in options.items() if not isinstance(v, Tensor))


# ---- one case ----------------------------------------------------------------------------------


def judged(case: Case) -> dict[str, Any]:
    """What came of it."""
    import tensorlrf.decomposition as d

    fit = getattr(d, f"fit_{case.word}")
    options = spelled(fit, case.options)
    if "random_state" in inspect.signature(fit).parameters:
        options["random_state"] = 0
    told: dict[str, Any] = {"dtype": str(case.tensor.dtype).removeprefix("torch.")}
    if "error" in case.options:
        told["asked"] = case.options["error"]
    start = time.process_time()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            found = fit(case.tensor, **options)
        except Exception as error:
            return {**told, "raised": type(error).__name__}
    told["seconds"] = round(time.process_time() - start, 3)
    told["warned"] = sorted({w.category.__name__ for w in seen})
    factors = found.factors
    told |= {
        "residual": residual(case, factors.to_dense()),
        "error": found.error,
        "converged": found.converged,
        "evaluations": len(found.errors),
        "rank": str(factors.rank),
        "n_params": factors.n_params,
        "norms": {name: float(t.double().norm()) for name, t in factors.tensors().items()},
    }
    return told


def spelled(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options by the names that this checkout has for them: `method` became `solver`."""
    known = inspect.signature(function).parameters
    if "method" in options and "method" not in known and "solver" in known:
        options = {("solver" if k == "method" else k): v for k, v in options.items()}
    return dict(options)


def residual(case: Case, dense: Tensor) -> float:
    """Relative, of the tensor, or of the outputs where there is a G."""
    tensor = case.tensor.double()
    scale = tensor.abs().max()
    tensor, lost = tensor / (scale or 1), (tensor - dense.double()) / (scale or 1)
    gram = case.options.get("gram")
    if gram is None:
        whole = float(tensor.norm())
        return float(lost.norm()) / whole if whole else float(lost.norm())
    batch = case.options.get("batch_dims", 0)
    tensor, lost = tensor.flatten(batch + 1), lost.flatten(batch + 1)
    mean = case.options.get("mean")
    if mean is not None:  # what a bias does not make good
        gram = gram - torch.outer(mean, mean)
    energies = [float(((w @ gram) * w).sum()) for w in (lost, tensor)]
    return math.sqrt(max(energies[0], 0.0) / energies[1])


# ---- beside the decompositions -----------------------------------------------------------------


def others() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, values) of what else is public: numbers that should stay."""
    import tensorlrf
    import tensorlrf.decomposition as d

    matrix, cube = matrices()["planted"].float(), tensors()["three modes"].float()
    train = d.tt(cube, 4)
    for rank in (2, 3):
        rounded = d.fit_tt_round(train, rank)
        yield f"tt_round to {rank}", {"numbers": [rounded.error], "rank": str(rounded.factors.rank)}
    yield "tt_add", {"numbers": [float(d.tt_add(train, train).to_dense().norm())]}
    yield "tt_inner", {"numbers": [float(d.tt_inner(train, train))]}
    crossed = d.fit_tt_cross(
        lambda i: 1 / (1.0 + i.double().sum(-1)), (9, 8, 7), error=1e-6, random_state=0
    )
    yield "tt_cross", {"numbers": [crossed.error], "rank": str(crossed.factors.rank)}
    yield "evbmf_rank", {"rank": str(d.evbmf_rank(matrix))}
    for word, options in (("svd", {}), ("tucker", {}), ("tt", {}), ("blr", {"block": 12})):
        seen = d.scree(matrix, word, **options)
        values = [value for s in seen.spectra for value in s.values[:5]]
        yield f"scree of {word}", {"numbers": values}
    sampled = d.sampled_fit(cube, d.cp(cube, 3, random_state=0), random_state=0)
    yield "sampled_fit", {"numbers": [sampled.value]}
    mean = randn(48, seed=4).float()
    bias = d.bias_correction(matrix, d.svd(matrix, 4), mean)
    yield "bias_correction", {"numbers": [float(bias.double().norm())]}
    for word, rank in (("svd", 3), ("cp", 3), ("tucker", (3, 3, 3))):
        given = cube.double().requires_grad_()
        options = {"random_state": 0} if word == "cp" else {}
        dense = getattr(d, word)(given, rank, differentiable=True, **options).to_dense()
        dense.square().sum().backward()
        yield f"gradient of {word}", {"numbers": [float(given.grad.norm())], "dtype": "float64"}  # type: ignore[union-attr]
    yield from _layers(tensorlrf)
    yield from _models(tensorlrf)


def _layers(tensorlrf: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    def filled(layer: nn.Module) -> nn.Module:
        for k, p in enumerate(layer.parameters()):
            p.data = randn(*p.shape, seed=k).float()
        return layer

    made = {
        "linear": filled(nn.Linear(24, 32)),
        "conv1d": filled(nn.Conv1d(12, 16, 3)),
        "conv2d": filled(nn.Conv2d(12, 16, 3)),
        "conv3d": filled(nn.Conv3d(6, 8, 3)),
        "grouped": filled(nn.Conv2d(12, 16, 3, groups=2)),
        "embedding": filled(nn.Embedding(40, 24)),
    }
    words = ("svd", "cp", "tucker", "kron", "tt", "tr", "blr", "hierarchical", "monarch", "blast")
    for kind, layer in made.items():
        for word in words:
            fit = getattr(tensorlrf.decomposition, f"fit_{word}")
            options: dict[str, Any] = {"leaf": 8} if word == "hierarchical" else {}
            if "random_state" in inspect.signature(fit).parameters:
                options["random_state"] = 0
            try:
                small = tensorlrf.nn.factorize(layer, word, 0.5, **options)
            except tensorlrf.errors.TensorlrfError as error:
                yield f"factorize {kind}, {word}", {"raised": type(error).__name__}
                continue
            factors = small.factors
            weight = layer.weight.detach()
            told = {"numbers": [factors.rel_error(weight)], "rank": str(factors.rank)}
            yield f"factorize {kind}, {word}", told


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.hidden = nn.Linear(12, 32)
        self.out = nn.Linear(32, 16)
        for k, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=k).float() / math.sqrt(p.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w) to (batch, 16)."""
        return self.out(torch.relu(self.hidden(torch.relu(self.conv(x)).mean((2, 3)))))  # type: ignore[no-any-return]


def _models(tensorlrf: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    batches = [randn(16, 3, 8, 8, seed=k).float() for k in range(3)]
    words = ("svd", "tucker", "cp", "auto", "kron", "tt", "tr", "blr", "monarch", "blast")
    for word in words:
        for calibration, given in (
            ("plain", {}),
            ("fitted", {"calibration": batches}),
            ("affine", {"calibration": batches, "affine": True}),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                small, _ = tensorlrf.compress(
                    Net(), keep_params=0.6, method=word, skip=[], progress=False, **given
                )
            with torch.no_grad():
                whole = Net()(batches[0]).double()
                lost = small(batches[0]).double() - whole
            told = {
                "residual": float(lost.norm() / whole.norm()),
                "n_params": sum(p.numel() for p in small.parameters()),
                "rank": "; ".join(f"{n}: {m.factors.rank}" for n, m in small.named_children()
                                  if hasattr(m, "factors")),
            }  # fmt: skip
            yield f"compress by {word}, {calibration}", told


# ---- running and comparing ---------------------------------------------------------------------


def run(path: Path) -> None:
    """All cases of the checkout at hand, into a JSON file."""
    import tensorlrf

    results: dict[str, dict[str, Any]] = {}
    for case in cases():
        name = f"{case.word}: {case.name}"
        assert name not in results, name
        results[name] = judged(case)
    for name, values in others():
        results[f"{name.partition(' ')[0]}: {name}"] = {"dtype": "float32", **values}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(v)}" for name, v in results.items())
    path.write_text(f"{{\n{rows}\n}}\n")
    print(f"{len(results)} cases of {Path(tensorlrf.__file__).parent} in {path}")


def verdict(old: dict[str, Any], new: dict[str, Any]) -> str:
    """ "equal", "better", "worse", or "other" where neither can be said."""
    if "raised" in old or "raised" in new:
        return "equal" if old.get("raised") == new.get("raised") else "other"
    tolerance = ROUNDINGS * torch.finfo(getattr(torch, old["dtype"])).eps
    if "numbers" in old:
        near = all(
            math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
            for a, b in zip(old["numbers"], new["numbers"], strict=True)
        )
        return "equal" if near and old.get("rank") == new.get("rank") else "other"
    if "residual" not in old:
        return "equal" if old == new else "other"
    change = new["residual"] - old["residual"]
    fewer = old["n_params"] - new["n_params"]
    asked = old.get("asked")
    if asked is not None and fewer:  # within an error, the size is what counts
        within = new["residual"] <= max(asked, old["residual"]) + tolerance
        return "better" if fewer > 0 and within else "worse"
    if fewer and asked is None:
        both = (fewer >= 0) - (fewer <= 0), (change <= tolerance) - (change >= -tolerance)
        return {(1, 1): "better", (1, 0): "better", (-1, -1): "worse", (-1, 0): "worse"}.get(
            both, "other"
        )
    if abs(change) <= tolerance:
        return "equal"
    if asked is not None and max(old["residual"], new["residual"]) <= asked:
        return "equal"  # as many parameters, and both within what was asked for
    return "better" if change < 0 else "worse"


def compare(old_path: Path, new_path: Path) -> int:
    """A table by word, and every case that is not equal."""
    old, new = (json.loads(path.read_text()) for path in (old_path, new_path))
    table: dict[str, Counter[str]] = defaultdict(Counter)
    lines: list[str] = []
    for name, was in old.items():
        word, now = name.partition(":")[0], new.get(name)
        found = "missing" if now is None else verdict(was, now)
        table[word][found] += 1
        if found != "equal" and now is not None:
            lines.append(f"{found:7} {name}: {_told(was)} -> {_told(now)}")
        elif found == "missing":
            lines.append(f"missing {name}")
    kinds = ("equal", "better", "worse", "other", "missing")
    print("| | " + " | ".join(kinds) + " | CPU s |\n| --- |" + " ---: |" * (len(kinds) + 1))
    for word, counts in table.items():
        spent = [
            sum(v.get("seconds", 0) for n, v in rows.items() if n.partition(":")[0] == word)
            for rows in (old, new)
        ]
        cells = " | ".join(str(counts[kind] or "") for kind in kinds)
        print(f"| {word} | {cells} | {spent[0]:.1f} -> {spent[1]:.1f} |")
    print("\n".join(lines))
    exact = sum(old[n] | {"seconds": 0} == new.get(n, {}) | {"seconds": 0} for n in old)
    print(f"{exact} of {len(old)} the same in every number; {len(set(new) - set(old))} new")
    return int(any(counts["worse"] + counts["missing"] for counts in table.values()))


def _told(values: dict[str, Any]) -> str:
    if "raised" in values:
        return str(values["raised"])
    if "numbers" in values:
        return f"{[float(f'{v:.8g}') for v in values['numbers']]} rank {values.get('rank')}"
    return f"{values['residual']:.8g} at {values['n_params']} ({values['rank']})"


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    if given.what == "run":
        run(*given.files)
        return 0
    return compare(*given.files)


if __name__ == "__main__":
    sys.exit(main())
