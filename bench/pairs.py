"""Two checkouts in turn, old, new, new, old, each in a process of its own: the ratio pair by pair.

    python bench/pairs.py OLD NEW --json bench/results/cpu/pairs.json
    python bench/pairs.py OLD NEW --only layer

OLD and NEW are checkouts. A drift of the machine meets both alike, and a pair takes a fraction of a
second. Cases are told by public names alone, so that both know them: decompositions as their users
call them, layers of every format at one and at four rows, where the time is that of Python, and
layers of every format on a structure that is new to the process.
Over one, the new one is faster.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LEAST_S = 0.02
"""Of a measurement: what takes less is called several times."""

Call = Callable[[], Any]

LINEAR = "svd cp tucker tt tr kron blr hierarchical monarch blast"
CONV = "svd cp tucker tt kron"
EMBEDDING = "svd cp tucker tt"

FIRST = "first layer"
"""How the rows begin whose every call is on another structure, and how many calls these take."""
FIRST_CALLS = 3


# ---- cases, made in the process that times them ------------------------------------------------


def cases() -> Iterator[tuple[str, Callable[[], Call]]]:
    """(name, what makes the call), decompositions and then layers."""
    yield from decompositions()
    yield from layers()
    yield from first_layers()


def decompositions() -> Iterator[tuple[str, Callable[[], Call]]]:
    """The shapes of the suites of each decomposition, and small ones, whose time is overhead."""
    import tensorlrf

    plain: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("svd", (64, 64), {"rank": 16}),
        ("svd", (768, 768), {"rank": 192}),
        ("svd", (3072, 768), {"rank": 128}),
        ("svd", (2048, 2048), {"rank": 32}),
        ("svd", (768, 768), {"error": 0.5}),
        ("svd", (64, 64, 64), {"rank": 8, "batch_dims": 1}),
        ("cp", (16, 16, 3, 3), {"rank": 8, "random_state": 0}),
        ("cp", (256, 256, 3, 3), {"rank": 32, "n_iter_max": 20, "tol": 0, "random_state": 0}),
        ("cp", (100, 100, 100), {"rank": 16, "n_iter_max": 20, "tol": 0, "random_state": 0}),
        ("tucker", (16, 16, 3, 3), {"rank": (8, 8), "modes": (0, 1)}),
        ("tucker", (100, 100, 100), {"rank": (20, 20, 20)}),
        ("tucker", (256, 256, 3, 3), {"rank": (64, 64), "modes": (0, 1)}),
        ("tucker", (64, 64, 3, 3), {"error": 0.5, "modes": (0, 1)}),
        ("tt", (16, 3, 3, 16), {"rank": 8}),
        ("tt", (256, 3, 3, 256), {"rank": 64}),
        ("tt", (20, 20, 20, 20), {"error": 0.5}),
        ("tt_matrix", (256, 256), {"rank": 32}),
        ("tr", (12, 12, 12), {"rank": 4, "random_state": 0}),
        ("kron", (64, 64), {"rank": 4, "random_state": 0}),
        ("kron", (1024, 1024), {"rank": 4, "random_state": 0}),
        ("blr", (256, 256), {"rank": 0.5}),
        ("blr", (256, 256), {"error": 0.5}),
        ("hierarchical", (256, 256), {"rank": 0.5, "random_state": 0}),
        ("monarch", (256, 256), {"rank": 0.5}),
        ("blast", (128, 128), {"rank": 0.5, "random_state": 0}),
    ]
    for word, shape, options in plain:
        yield named(word, shape, options), one(getattr(tensorlrf, word), shape, options)
    seen: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("svd", (256, 256), {"rank": 64}),
        ("cp", (32, 32, 3, 3), {"rank": 16, "random_state": 0}),
        ("tucker", (64, 64, 3, 3), {"rank": (16, 16), "modes": (0, 1)}),
        ("tt", (256, 256), {"rank": 16}),
        ("kron", (128, 128), {"rank": 4, "random_state": 0}),
        ("blr", (256, 256), {"rank": 0.25}),
        ("monarch", (256, 256), {"rank": 0.25}),
    ]
    for word, shape, options in seen:
        decompose = getattr(tensorlrf, word)
        if "gram" in inspect.signature(decompose).parameters:
            yield f"{named(word, shape, options)}, gram", one(decompose, shape, options, gram=True)


def named(word: str, shape: tuple[int, ...], options: dict[str, Any]) -> str:
    """How a row is called."""
    told = (f"{k}={v}" for k, v in options.items() if k not in ("random_state", "tol"))
    return f"{word} {'x'.join(map(str, shape))} {' '.join(told)}".replace(", ", ",")


def one(
    decompose: Callable[..., Any],
    shape: tuple[int, ...],
    options: dict[str, Any],
    *,
    gram: bool = False,
) -> Callable[[], Call]:
    """A decomposition of a weight with decaying spectra in all modes and white noise."""

    def make() -> Call:
        import torch

        draws = torch.Generator().manual_seed(0)
        tensor = torch.randn(shape, generator=draws)
        for k, n in enumerate(shape):
            decay = torch.arange(1, n + 1).rsqrt()
            turn = torch.linalg.qr(torch.randn(n, n, generator=draws))[0]
            tensor = torch.tensordot(tensor, turn * decay, ([k], [1])).movedim(-1, k)
        tensor = tensor + 0.1 * tensor.std() * torch.randn(shape, generator=draws)
        given = dict(options)
        if gram:
            n = math.prod(shape[1:])
            x = torch.randn(n, 2 * n, generator=draws) * torch.arange(1, n + 1).rsqrt()[:, None]
            given["gram"] = x @ x.T / (2 * n)
        return lambda: decompose(tensor, **given)

    return make


def layers() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Layers of every format, on the path of their table and on the chain."""
    import torch
    from torch import nn

    kinds: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
        ("linear", lambda: nn.Linear(256, 256), LINEAR),
        ("conv", lambda: nn.Conv2d(64, 64, 3, padding=1), CONV),
    )
    for kind, dense, words in kinds:
        for word in words.split():
            for rows in (1, 4):
                size = (rows, 256) if kind == "linear" else (rows, 64, 7, 7)
                for path in ("table", "chain"):
                    name = f"layer {word} {kind} M={rows} {path}"
                    yield name, layer(word, dense, size, path, torch.float32)


def layer(
    word: str, dense: Callable[[], Any], size: tuple[int, ...], path: str, dtype: Any
) -> Callable[[], Call]:
    """A forward in eager mode."""

    def make() -> Call:
        import torch

        from tensorlrf import nn, ops

        torch.manual_seed(0)
        made = nn.factorize(dense().to(dtype), word, rank=0.25).eval()
        if path == "chain":
            made.path_table = ops.PathTable.single("chain")
        x = torch.randn(size, dtype=dtype)

        def call() -> Any:
            with torch.inference_mode():
                return made(x)

        return call

    return make


OF_FIRST_LAYERS: dict[str, dict[str, Any]] = {
    "cp": {"n_iter_max": 1},
    "hierarchical": {"leaf": 8},
}
"""What their decompositions are told: that of CP need not be good, small ones need small leaves."""

_SIZES: dict[tuple[str, str], Iterator[tuple[int, int]]] = {}
"""The sizes that no row of a kind of layer on a format has had."""


def first_layers() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Layers on a structure that the process meets for the first time: built, and built and run
    once on the path of their table."""
    from torch import nn

    kinds: tuple[tuple[str, Callable[[int, int], nn.Module], str], ...] = (
        ("linear", lambda m, n: nn.Linear(n, m), LINEAR),
        ("conv", lambda m, n: nn.Conv2d(n, m, 3, padding=1), CONV),
        ("embedding", lambda m, n: nn.Embedding(m, n), EMBEDDING),
    )
    for kind, dense, words in kinds:
        for word in words.split():
            for end in ("", " and run"):
                made = functools.partial(FirstLayer, kind, word, dense, run=bool(end))
                yield f"{FIRST} {word} {kind}{end}", made


class FirstLayer:
    """A call that builds a layer of sizes that no call before had, from factors that `prepare` has
    made: in another dtype, so that they tell the library nothing of the layer."""

    def __init__(
        self, kind: str, word: str, dense: Callable[[int, int], Any], *, run: bool
    ) -> None:
        import torch

        self.word, self.dense, self.run = word, dense, run
        self.options = OF_FIRST_LAYERS.get(word, {})
        self.x = {
            "linear": lambda n: torch.ones(1, n),
            "conv": lambda n: torch.ones(1, n, 7, 7),
            "embedding": lambda n: torch.zeros(1, dtype=torch.int64),
        }[kind]
        self.sizes = _SIZES.setdefault(
            (kind, word), ((8 * k, 8 * (s - k)) for s in range(5, 40) for k in range(2, s - 1))
        )
        self.waiting: list[Call] = []

    def prepare(self, count: int) -> None:
        """What so many calls take."""
        import torch

        from tensorlrf import nn

        while len(self.waiting) < count:
            m, n = next(self.sizes)
            like = self.dense(m, n)
            made: Any = nn.factorize(like.double(), self.word, rank=0.5, **self.options)
            factors, x = made.factors.map(torch.Tensor.detach).to(torch.float32), self.x(n)
            build = functools.partial(type(made).from_factors, factors, like.float())
            self.waiting.append(lambda b=build, x=x: b()(x) if self.run else b())

    def __call__(self) -> Any:
        return self.waiting.pop()()


# ---- the process of one checkout ---------------------------------------------------------------


def serve() -> None:
    """Lists its cases, then answers each "name" and "name count" with the seconds that it took."""
    known = dict(cases())
    made: dict[str, Call] = {}
    answer(sorted(known, key=list(known).index))
    for line in sys.stdin:
        name, count = json.loads(line)
        if name not in made:
            made.clear()
            made[name] = known[name]()
            ready(made[name], 1)
            made[name]()
        ready(made[name], count)
        start = time.perf_counter()
        for _ in range(count):
            made[name]()
        answer(time.perf_counter() - start)


def ready(call: Call, count: int) -> None:
    """What is not timed."""
    if isinstance(call, FirstLayer):
        call.prepare(count)


def answer(value: Any) -> None:
    """A line of JSON on what was standard output; what libraries print goes elsewhere."""
    os.write(int(os.environ["PAIRS_ANSWERS"]), (json.dumps(value) + "\n").encode())


class Checkout:
    """A process in which the packages are those of one checkout."""

    def __init__(self, root: Path) -> None:
        if not (root / "tensorlrf" / "__init__.py").is_file():
            raise SystemExit(f"{root} is no checkout: it has no tensorlrf/__init__.py")
        reader, writer = os.pipe()
        paths = os.pathsep.join([str(root), str(root / "kernels")])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            env={**os.environ, "PYTHONPATH": paths, "PAIRS_ANSWERS": str(writer)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(writer,),
            cwd=root,
            text=True,
        )
        os.close(writer)
        self.answers = os.fdopen(reader)
        self.names: list[str] = self.answered()

    def answered(self) -> Any:
        line = self.answers.readline()
        if not line:
            raise SystemExit(f"the process of a checkout ended with {self.process.wait()}")
        return json.loads(line)

    def seconds(self, name: str, count: int) -> float:
        """Of `count` calls."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, count]) + "\n")
        self.process.stdin.flush()
        return float(self.answered())

    def close(self) -> None:
        """The process ends when nothing more is asked of it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.answers.close()


# ---- the pairs -----------------------------------------------------------------------------------


def paired(old: Checkout, new: Checkout, name: str, rounds: int) -> dict[str, Any]:
    """A row: seconds of a call in each, and the median, least and largest ratio old / new."""
    first = max(side.seconds(name, 1) for side in (old, new))
    count = max(1, math.ceil(LEAST_S / max(first, 1e-6)))
    count = FIRST_CALLS if name.startswith(FIRST) else count
    taken: dict[Checkout, list[float]] = {old: [], new: []}
    for k in range(rounds):
        for side in (old, new)[:: 1 if k % 2 == 0 else -1]:
            taken[side].append(side.seconds(name, count) / count)
    ratios = [a / b for a, b in zip(taken[old], taken[new], strict=True)]
    return {
        "case": name,
        "calls": count,
        "old_s": statistics.median(taken[old]),
        "new_s": statistics.median(taken[new]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """In markdown, slowest first."""
    lines = ["| case | old ms | new ms | old / new | least | largest |", "| --- |" + " ---: |" * 5]
    lines += (
        f"| {row['case']} | {1e3 * row['old_s']:.3f} | {1e3 * row['new_s']:.3f} "
        f"| {row['ratio']:.2f} | {row['ratio_min']:.2f} | {row['ratio_max']:.2f} |"
        for row in sorted(rows, key=lambda row: float(row["ratio"]))
    )
    return "\n".join(lines)


def commit(root: Path) -> str:
    """Short, of a checkout."""
    told = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    if sys.argv[1:] == ["--serve"]:
        serve()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows here, and a table beside it")
    given = parser.parse_args()
    old, new = Checkout(given.old.resolve()), Checkout(given.new.resolve())
    known = [name for name in new.names if name in old.names and given.only in name]
    rows = []
    for name in known:
        rows.append(paired(old, new, name, given.rounds))
        print(f"{rows[-1]['ratio']:6.2f}  {name}", flush=True)
    old.close()
    new.close()
    text = table(rows)
    if given.json is not None:
        import torch

        head = {
            "old": commit(given.old),
            "new": commit(given.new),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": given.rounds,
        }
        given.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
        told = ", ".join(f"{key} {value}" for key, value in head.items())
        given.json.with_suffix(".md").write_text(f"# Old and new in turn\n\n{told}\n\n{text}\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
