"""Who knows whom: circles, imports between families, private imports across packages."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache

from bench.house.trees import Count, module_of, package_of, trees, trees_of_bench


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
        where = [f"{pair.replace('tensorlrf.', '')} {n}" for pair, n in pairs.most_common()]
        yield f"private imports across packages, {kind}", Count(sum(pairs.values()), where)
