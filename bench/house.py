"""How the house stands: what is written more than once, who knows whom, how far a call goes.

    python -m bench.house                    the table of this checkout
    python -m bench.house --json house.json  and as JSON
    python -m bench.house --beside old.json  two columns

Everything but the hops is read from the syntax trees, by the rule that stands in each docstring.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from tensorlrf.decomposition.methods import names

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tensorlrf", "kernels/tensorlrf_kernels")
FORMATS = ("Batch", "BlastFactors", "BlockLowRank", "CPFactors", "Grouped", "KroneckerSum",
           "LowRank", "MonarchFactors", "TRFactors", "TTFactors", "TTMatrix", "TuckerFactors",
           "HTFactors", "BlockTerm", "Sparse", "Quantized", "Dictionary", "Skeleton",
           "Composite")  # fmt: skip
METHODS = names()
FORMAT_WORDS = ("lowrank", "cp", "tucker", "kron", "tt", "tr", "blr", "monarch", "blast")
COMPARED = (ast.Is, ast.IsNot, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
MOST_FILES = 22
MOST_LINES = 400
HELPERS = ("seeded", "moments", "output_error", "ieee_float32")
"""Functions that the tests should have once."""


@dataclass(frozen=True)
class Count:
    """A row: how many, lines of code where these are counted, and where."""

    number: int
    where: list[str] = field(default_factory=list)
    lines: int | None = None


@cache
def trees() -> dict[str, ast.Module]:
    """Path from the root -> the tree of every file of both packages."""
    paths = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in paths}


@cache
def trees_of_bench() -> dict[str, ast.Module]:
    """Likewise, of bench/."""
    paths = sorted((ROOT / "bench").rglob("*.py"))
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in paths}


def of_folder(folder: str) -> dict[str, ast.Module]:
    """Those below it."""
    return {path: tree for path, tree in trees().items() if path.startswith(f"{folder}/")}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, function), methods and inner ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{inside}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, inside)


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Its nodes, without those of functions inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)


def code_lines(node: ast.AST) -> int:
    """Lines with code: no blank ones, comments and docstrings."""
    numbers = {n.lineno for n in ast.walk(node) if isinstance(n, (ast.stmt, ast.expr, ast.arg))}
    for n in ast.walk(node):
        body = getattr(n, "body", None)
        if isinstance(body, list):
            for statement in body:
                text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if text and isinstance(statement.value.value, str):  # type: ignore[attr-defined]
                    numbers.discard(statement.lineno)
    return len(numbers)


def functions_where(rule: Callable[[Function], bool], folder: str) -> Count:
    """The functions of a folder that the rule holds for."""
    found = [
        (f"{path}:{name}", code_lines(function))
        for path, tree in of_folder(folder).items()
        for name, function in functions(tree)
        if rule(function)
    ]
    return Count(len(found), [name for name, _ in found], sum(lines for _, lines in found))


def called(node: ast.AST) -> str:
    """The last name of what is called; empty for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return ast.unparse(node.func).rpartition(".")[2]


# ---- written more than once --------------------------------------------------------------------


def descent_loops() -> Count:
    """Functions of decomposition/ with a loop that writes down an error each time round (appends to
    a list called errors, history or trace) and can leave it early."""

    def rule(function: Function) -> bool:
        return any(_descends(n) for n in own_nodes(function) if isinstance(n, (ast.For, ast.While)))

    return functions_where(rule, "tensorlrf/decomposition")


def _descends(loop: ast.For | ast.While) -> bool:
    body = [n for statement in loop.body for n in ast.walk(statement)]
    noted = any(
        called(n) == "append" and re.search(r"\b(errors|history|trace)\b", ast.unparse(n.func))  # type: ignore[attr-defined]
        for n in body
    )
    return noted and any(isinstance(n, (ast.Break, ast.Return)) for n in body)


def rank_searches() -> Count:
    """Functions of decomposition/ with a while loop that halves an interval, (a + b) // 2, and
    compares something with `error` or `within` in it."""

    def rule(function: Function) -> bool:
        return any(_halves(n) for n in own_nodes(function) if isinstance(n, ast.While))

    return functions_where(rule, "tensorlrf/decomposition")


def _halves(loop: ast.While) -> bool:
    body = [n for statement in loop.body for n in ast.walk(statement)]
    halved = any(
        isinstance(n, ast.BinOp)
        and isinstance(n.op, ast.FloorDiv)
        and isinstance(n.left, ast.BinOp)
        and isinstance(n.left.op, ast.Add)
        for n in body
    )
    compared = any(
        isinstance(n, ast.Compare) and re.search(r"<=? (error|within)\b", ast.unparse(n))
        for n in body
    )
    return halved and compared


def error_budgets() -> Count:
    """Classes of decomposition/ that share an error out over truncations: called ...Budget(s). (A
    `Ladder` was one while blocks had theirs of that name; that of today knows sizes, no errors.)"""
    found = [
        (f"{path}:{node.name}", code_lines(node))
        for path, tree in of_folder("tensorlrf/decomposition").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and re.fullmatch(r"\w*Budgets?", node.name)
    ]
    return Count(len(found), [name for name, _ in found], sum(n for _, n in found))


def metric_setups() -> Count:
    """Functions of decomposition/ that make a metric of what the user gave as gram= and mean=: that
    call what checks and shrinks moments, `second_moments` (`input_metric` before). A method that
    hands both to `Target.of` sets up nothing.
    """
    return functions_where(
        lambda function: any(
            called(n) in ("input_metric", "second_moments") for n in own_nodes(function)
        ),
        "tensorlrf/decomposition",
    )


def metric_classes() -> Count:
    """Classes of decomposition/ called ...Metric or Target, or that derive from a `Quadratic`; and
    those that are given moments of their own: a parameter of `__init__` called gram or moments."""

    def holds(node: ast.ClassDef) -> bool:
        if re.fullmatch(r"\w*(Metric|Target)", node.name):
            return True
        if any(ast.unparse(base) == "Quadratic" for base in node.bases):
            return True
        makers = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return any(a.arg in ("gram", "moments") for m in makers for a in m.args.args)

    found = [
        (f"{path}:{node.name}", code_lines(node))
        for path, tree in of_folder("tensorlrf/decomposition").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and holds(node)
    ]
    return Count(len(found), [name for name, _ in found], sum(n for _, n in found))


def functions_called(name: str) -> Count:
    """Functions of that name, with an underscore before it or without, of both packages."""
    found = [
        f"{path}:{qualified}"
        for path, tree in trees().items()
        for qualified, function in functions(tree)
        if function.name.removeprefix("_") == name
    ]
    return Count(len(found), found)


def signatures() -> Count:
    """Signatures of the decompositions that are written by hand: every `def word` and
    `def fit_word` of decomposition/ and nn/, overloads too, with their lines. (Stubs are written by
    `make generate`.)"""
    found: list[tuple[str, int]] = []
    for path, tree in trees().items():
        if not path.startswith(("tensorlrf/decomposition/", "tensorlrf/nn/_methods")):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(
                rf"(fit_)?({'|'.join(METHODS)})(_layer)?", node.name
            ):
                lines = (node.body[0].lineno - node.lineno) or 1
                found.append((f"{path}:{node.name}", lines))
    return Count(len(found), [name for name, _ in found], sum(lines for _, lines in found))


def helpers_of_tests() -> Iterator[tuple[str, Count]]:
    """Definitions of the helpers that many tests have each for themselves."""
    texts = {p: p.read_text() for p in sorted((ROOT / "tests").rglob("*.py"))}
    for name in HELPERS:
        found = [
            str(path.relative_to(ROOT))
            for path, text in texts.items()
            for _ in re.findall(rf"^ *def {name}\(", text, flags=re.M)
        ]
        yield f"definitions of `{name}` in tests", Count(len(found), found)


def stacklevels() -> Count:
    """Warnings that count how deep they are: a `stacklevel=` in a call."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and any(k.arg == "stacklevel" for k in node.keywords)
    ]
    return Count(len(found), found)


# ---- who knows whom ----------------------------------------------------------------------------


def format_checks() -> Count:
    """Outside factors/ and ops/forms/: `isinstance(x, F)` and `issubclass(x, F)` where F is or
    holds a format, and comparisons of a type with one (`type(x) is F`, `self._format is F`). A
    format is what the file takes from tensorlrf.factors: calibration has a Batch of its own."""
    found: list[str] = []
    for path, tree in trees().items():
        if path.startswith(("tensorlrf/factors/", "tensorlrf/ops/forms/")):
            continue
        formats = set(FORMATS) & {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("tensorlrf.factors")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if called(node) in ("isinstance", "issubclass") and len(node.args) == 2:  # type: ignore[attr-defined]
                asked = node.args[1]  # type: ignore[attr-defined]
            elif isinstance(node, ast.Compare) and isinstance(
                node.ops[0], (ast.Is, ast.IsNot, ast.Eq, ast.In)
            ):
                asked = node.comparators[0]
            else:
                continue
            names = {n.id for n in ast.walk(asked) if isinstance(n, ast.Name)}
            if names & formats:
                found.append(f"{path}:{node.lineno}")
    files = by_file(found)
    return Count(len(found), [f"{len(files)} files", *files])


def by_file(places: list[str]) -> list[str]:
    """Each file with how often."""
    return [f"{path} {n}" for path, n in Counter(p.partition(":")[0] for p in places).items()]


def module_of(path: str) -> str:
    """Dotted name."""
    parts = Path(path.removeprefix("kernels/")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(types: bool = False, bench: bool = False) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, in functions too, for types alone only where
    `types` says so; of the packages, or of bench/."""
    known = trees_of_bench() if bench else trees()
    modules = {module_of(path) for path in known}
    edges: dict[str, set[str]] = {}
    for path, tree in known.items():
        own = module_of(path)
        edges[own] = set()
        for node in _imports(tree, types):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                base = node.module or ""
                inside = [f"{base}.{alias.name}" for alias in node.names]
                names = [name if name in modules else base for name in inside]
            edges[own] |= {name for name in names if name in modules and name != own}
    return edges


def _imports(tree: ast.AST, types: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif types or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imports(node, types)


def circles(types: bool = False, bench: bool = False) -> Count:
    """Groups of modules of one package that reach each other by imports, in functions too; what a
    package's `__init__` shows its users is no import of its files."""
    found = imported(types, bench)
    edges = {m: {n for n in to if package_of(n) == package_of(m)} for m, to in found.items()}
    known = trees_of_bench() if bench else trees()
    packages = {module_of(path) for path in known if path.endswith("__init__.py")}
    for module in packages:
        edges[module] = set()
    groups = [sorted(group) for group in _components(edges) if len(group) > 1]
    return Count(len(groups), [f"{len(group)}: {', '.join(_short(group))}" for group in groups])


def _short(modules: list[str]) -> list[str]:
    return [m.removeprefix("tensorlrf.") for m in modules]


def _components(edges: dict[str, set[str]]) -> list[set[str]]:
    """Those that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen, pending = set(), [start]
        while pending:
            for module in edges.get(pending.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    pending.append(module)
        reached[start] = seen
    groups: list[set[str]] = []
    for module in edges:
        if not any(module in group for group in groups):
            groups.append({module, *(o for o in reached[module] if module in reached[o])})
    return groups


def package_of(module: str) -> str:
    """The part of the house that it belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tensorlrf" else parts[0]


def family_of(module: str) -> str | None:
    """Of a decomposition: its folder; None for what all share, at the top or in linalg/."""
    parts = module.split(".")
    if parts[:2] != ["tensorlrf", "decomposition"] or len(parts) < 4 or parts[2] == "linalg":
        return None
    return parts[2]


def between_families() -> Count:
    """Imports of a module of one family of decompositions by one of another."""
    found = [
        f"{own} imports {other}"
        for own, others in imported().items()
        for other in sorted(others)
        if family_of(own) and family_of(other) and family_of(own) != family_of(other)
    ]
    return Count(len(found), [line.replace("tensorlrf.decomposition.", "") for line in found])


def private_across() -> Iterator[tuple[str, Count]]:
    """Imports of a module with an underscore, or of a name with one, from another package; those of
    the kernel core apart."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        own = module_of(path)
        for node in _imports(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            other = package_of(node.module)
            if other.split(".")[0] not in ("tensorlrf", "tensorlrf_kernels"):
                continue
            inside = (
                node.module.removeprefix(f"{other}.").split(".") if node.module != other else []
            )
            private = any(part.startswith("_") for part in inside) or any(
                alias.name.startswith("_") and not alias.name.startswith("__")
                for alias in node.names
            )
            if other == package_of(own) or not private:
                continue
            kind = "of the kernel core" if other == "tensorlrf_kernels" else "others"
            found[kind].append(f"{package_of(own)} -> {other}")
    for kind in ("others", "of the kernel core"):
        pairs = Counter(found[kind])
        told = [f"{pair.replace('tensorlrf.', '')} {n}" for pair, n in pairs.most_common()]
        yield f"private imports across packages, {kind}", Count(sum(pairs.values()), told)


# ---- sizes -------------------------------------------------------------------------------------


def folders() -> Count:
    """Folders of the packages with more than 22 files."""
    counts = Counter(str(Path(path).parent) for path in trees())
    over = [f"{folder} {n}" for folder, n in counts.most_common() if n > MOST_FILES]
    return Count(len(over), over or [f"most: {counts.most_common(1)[0]}"])


def folders_of_tests() -> Count:
    """Folders of tests with more than 22 files."""
    counts = Counter(str(p.parent.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py"))
    over = [f"{folder} {n}" for folder, n in counts.most_common() if n > MOST_FILES]
    return Count(len(over), over)


def long_files() -> Count:
    """Files of the packages with more than 400 lines."""
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in trees()}
    over = [f"{path} {n}" for path, n in lines.items() if n > MOST_LINES]
    return Count(len(over), over)


def code() -> Iterator[tuple[str, Count]]:
    """Files, and lines with code, of each package; no goal."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for path, tree in trees().items():
        sizes[package_of(module_of(path))].append(code_lines(tree))
    for package, lines in sizes.items():
        yield f"files of {package}", Count(len(lines), [], sum(lines))
    of_tests = [
        code_lines(ast.parse(p.read_text())) for p in sorted((ROOT / "tests").rglob("*.py"))
    ]
    yield "files of tests", Count(len(of_tests), [], sum(of_tests))


def told_by() -> Iterator[tuple[str, Count]]:
    """Files of the packages that name a format or a method: the word between characters that are no
    letters, in code, comments and texts; case does not count."""
    texts = {path: (ROOT / path).read_text().lower() for path in trees()}
    paths = [
        p for folder in ("tests", "bench", "docs", "examples") for p in (ROOT / folder).rglob("*")
    ]
    paths = [p for p in paths if p.suffix in (".py", ".md") and "results" not in p.parts]
    beside = [p.read_text().lower() for p in (*paths, *ROOT.glob("*.md"), ROOT / "Makefile")]
    for word in dict.fromkeys((*FORMAT_WORDS, *METHODS)):
        pattern = re.compile(rf"(?<![a-z]){word}(?![a-z])")
        counts = Counter(package_of(module_of(p)) for p, t in texts.items() if pattern.search(t))
        told = [f"{package.removeprefix('tensorlrf.')} {n}" for package, n in counts.most_common()]
        more = sum(pattern.search(text) is not None for text in beside)
        told.append(f"and {more} of tests, benchmarks, examples and docs")
        yield f"files that name {word}", Count(sum(counts.values()), told)


# ---- hops --------------------------------------------------------------------------------------


def hops() -> Iterator[tuple[str, Count]]:
    """Files of ours that a call goes through until the work is done: those on the way (in which a
    function is still running then), each once; and all that were entered by then."""
    import torch

    import tensorlrf

    def decompose() -> None:
        tensorlrf.cp(torch.randn(6, 5, 4, dtype=torch.float64), 2, n_iter_max=3, random_state=0)

    draws = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(4, 6, 3)
    layer.weight.data = torch.randn(layer.weight.shape, generator=draws)
    x = torch.randn(1, 4, 8, 8, generator=draws)
    yield from _both("from `tensorlrf.cp` to the sweep", _way(decompose, _is_sweep))
    for word in ("cp", "tucker", "svd", "tt", "kron"):
        small = tensorlrf.nn.factorize(layer, word, 3)
        small.path_table = tensorlrf.ops.PathTable.single("chain")
        with torch.no_grad():
            small(x)
            way = _way(lambda run=small: run(x), _is_convolution)  # type: ignore[misc]
        yield from _both(f"from `FactoredConv2d.forward` ({word}) to the library call", way)


def _is_sweep(frame: FrameType, event: str, argument: Any) -> bool:
    """The function that makes a sweep of CP: it is called so, or MTTKRP is taken in it."""
    name = frame.f_code.co_name
    return event == "call" and ("sweep" in name.lower() or "mttkrp" in name.lower())


def _is_convolution(frame: FrameType, event: str, argument: Any) -> bool:
    return event == "c_call" and getattr(argument, "__name__", "").startswith("conv")


Way = tuple[list[str], list[str]]


def _way(call: Callable[[], Any], arrived: Callable[[FrameType, str, Any], bool]) -> Way:
    """(files on the way, files entered) from a call until `arrived` says so."""
    entered: dict[str, None] = {}
    way: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if way or event not in ("call", "c_call"):
            return
        path = _ours(frame)
        if path:
            entered[path] = None
        if path and arrived(frame, event, argument):
            above: FrameType | None = frame
            while above is not None:
                if _ours(above):
                    way.insert(0, _ours(above))
                above = above.f_back

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(before)
    if not way:
        raise RuntimeError("the call never came to what it is watched for; see the rule")
    return list(dict.fromkeys(way)), list(entered)


def _ours(frame: FrameType) -> str:
    if frame.f_code.co_filename.startswith("<lowered"):
        return "<lowered>"  # the straight code of a form, which is in no file
    path = Path(frame.f_code.co_filename)
    inside = any(path.is_relative_to(ROOT / package) for package in PACKAGES)
    return str(path.relative_to(ROOT)) if inside else ""


def _both(name: str, way: Way) -> Iterator[tuple[str, Count]]:
    on, entered = way
    yield f"files {name}", Count(len(on), on)
    yield f"files entered {name}", Count(len(entered))


# ---- the table ---------------------------------------------------------------------------------


def rows() -> Iterator[tuple[str, Count]]:
    """All counts."""
    yield "descent loops", descent_loops()
    yield "rank searches", rank_searches()
    yield "error budgets", error_budgets()
    yield "metric set-ups", metric_setups()
    yield "classes of metrics", metric_classes()
    yield "functions called fit_in_metric", functions_called("fit_in_metric")
    yield "signatures written by hand", signatures()
    yield from helpers_of_tests()
    yield "warnings with a counted stacklevel", stacklevels()
    yield "checks of formats outside factors/ and ops/forms/", format_checks()
    yield "circles inside a package", circles()
    yield "circles inside a package, imports for types too", circles(types=True)
    yield "circles inside bench", circles(types=True, bench=True)
    yield "imports between families", between_families()
    yield from private_across()
    yield f"folders of more than {MOST_FILES} files", folders()
    yield f"folders of tests of more than {MOST_FILES} files", folders_of_tests()
    yield f"files of more than {MOST_LINES} lines", long_files()
    yield from hops()
    yield from told_by()
    yield from code()


def table(found: dict[str, Count], old: dict[str, Count] | None) -> str:
    """As Markdown; what is counted stands below."""
    head = "| what | now | lines |" if old is None else "| what | before | now | lines |"
    lines = [head, "| --- |" + " ---: |" * (head.count("|") - 2)]
    for name, count in found.items():
        before = [] if old is None else [_number(old.get(name))]
        size = [_sizes(count, None if old is None else old.get(name))]
        lines.append(f"| {name} | {' | '.join([*before, _number(count), *size])} |")
    lines.append("")
    for name, count in found.items():
        if count.where:
            lines.append(f"- {name}: {'; '.join(count.where)}")
    return "\n".join(lines)


def _number(count: Count | None) -> str:
    return "" if count is None else str(count.number)


def _sizes(count: Count, before: Count | None) -> str:
    now = "" if count.lines is None else f"{count.lines:,}"
    return now if before is None or before.lines is None else f"{before.lines:,} -> {now}"


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write it there, too")
    parser.add_argument("--beside", type=Path, help="what --json wrote of another checkout")
    given = parser.parse_args()
    found = dict(rows())
    old = None
    if given.beside is not None:
        old = {name: Count(**v) for name, v in json.loads(given.beside.read_text()).items()}
    if given.json is not None:
        values = {name: vars(count) for name, count in found.items()}
        given.json.write_text(json.dumps(values, indent=1) + "\n")
    print(table(found, old))
    return 0


if __name__ == "__main__":
    sys.exit(main())
