"""What is written more than once."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

from bench.house.trees import (
    ROOT,
    Count,
    Function,
    called,
    code_lines,
    functions,
    functions_where,
    module_of,
    of_folder,
    own_nodes,
    package_of,
    trees,
)
from tensorlrf.decomposition.methods import names

FORMATS = ("Batch", "BlastFactors", "BlockLowRank", "CPFactors", "Grouped", "KroneckerSum",
           "LowRank", "MonarchFactors", "TRFactors", "TTFactors", "TTMatrix", "TuckerFactors",
           "HTFactors", "BlockTerm", "Sparse", "Quantized", "Dictionary", "Skeleton",
           "Composite")  # fmt: skip
FORMAT_WORDS = ("lowrank", "cp", "tucker", "kron", "tt", "tr", "blr", "monarch", "blast")
METHODS = names()
HELPERS = ("seeded", "moments", "output_error", "ieee_float32")
"""Functions that the tests should have once."""


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
                classes = node.args[1]  # type: ignore[attr-defined]
            elif isinstance(node, ast.Compare) and isinstance(
                node.ops[0], (ast.Is, ast.IsNot, ast.Eq, ast.In)
            ):
                classes = node.comparators[0]
            else:
                continue
            names = {n.id for n in ast.walk(classes) if isinstance(n, ast.Name)}
            if names & formats:
                found.append(f"{path}:{node.lineno}")
    files = by_file(found)
    return Count(len(found), [f"{len(files)} files", *files])


def by_file(lines: list[str]) -> list[str]:
    """Each file with how often."""
    return [f"{path} {n}" for path, n in Counter(line.partition(":")[0] for line in lines).items()]


def files_that_name() -> Iterator[tuple[str, Count]]:
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
        where = [f"{package.removeprefix('tensorlrf.')} {n}" for package, n in counts.most_common()]
        more = sum(pattern.search(text) is not None for text in beside)
        where.append(f"and {more} of tests, benchmarks, examples and docs")
        yield f"files that name {word}", Count(sum(counts.values()), where)
