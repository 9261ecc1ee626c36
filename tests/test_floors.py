"""The house stands: a file imports only from lower floors, and import stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tensorlrf.factors import FORMATS

ROOT = Path(__file__).resolve().parents[1]

# Where a module lives decides its floor; see "The house" in CONTRIBUTING.md.
FLOORS = {
    "tensorlrf.errors": -1,
    "tensorlrf.files": 0,
    "tensorlrf_kernels": 0,
    "tensorlrf.factors": 1,
    "tensorlrf.ops": 2,
    "tensorlrf.io": 2,
    "tensorlrf.decomposition": 3,
    "tensorlrf.large": 4,
    "tensorlrf.nn": 4,
    "tensorlrf.compression": 5,
    "tensorlrf.metrics": 6,
    "tensorlrf.adapters": 6,
    "tensorlrf.cli": 6,
    "tensorlrf.hf": 6,
    "tensorlrf.diffusers": 6,
    "tensorlrf.torchao": 6,
    "tensorlrf.vllm": 6,
    "tensorlrf": 7,
    "tensorlrf.__main__": 8,
}
MOST_FILES = 22  # of a folder; past that it becomes folders
HEAVY = (
    "triton",
    "tensorly",
    "transformers",
    "matplotlib",
    "torchao",
    "diffusers",
    "vllm",
    "torch._dynamo",
    "scipy",
    "skimage",
    "yaml",
)


def sources() -> list[Path]:
    return sorted([*ROOT.glob("tensorlrf/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def module_name(path: Path) -> str:
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Those of both packages and of bench/, by their dotted names."""
    return {module_name(path): path for path in [*sources(), *ROOT.glob("bench/**/*.py")]}


def floor_of(module: str) -> int:
    owners = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return FLOORS[max(owners, key=len)]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in the file, those inside functions and for types too."""
    package = module_name(path)
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            # `from tensorlrf import ops` names a module, `from tensorlrf.io import x` a name.
            inside = [f"{base}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in modules() else base) for name in inside]
    return found


def test_every_file_stands_on_a_floor() -> None:
    names = [module_name(path) for path in sources()]
    assert "tensorlrf.io" in names
    assert [n for n in names if n.startswith("tensorlrf.") and floor_of(n) == 7] == []


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_lower_floors(path: Path) -> None:
    own = module_name(path)
    package = max((n for n in FLOORS if own == n or own.startswith(n + ".")), key=len)
    wrong = []
    for line, module in imports(path):
        if module.split(".")[0] not in ("tensorlrf", "tensorlrf_kernels"):
            continue
        inside = module == package or module.startswith(package + ".")
        if package == "tensorlrf":
            inside = False
        if not inside and floor_of(module) >= floor_of(own):
            wrong.append(f"line {line} imports {module} (floor {floor_of(module)})")
    assert not wrong, f"{own} is on floor {floor_of(own)}: {'; '.join(wrong)}"


FAMILIES = ROOT / "tensorlrf" / "decomposition"
READ_THEM = ("analysis", "heads", "large")
"""What shows spectra of families, stacks matrices for them, or makes their sweeps over pieces of a
tensor, stands above them."""


def family_of(module: str) -> str:
    """Of a module of decomposition; empty for what all of them share."""
    family = module.removeprefix("tensorlrf.decomposition.").partition(".")[0]
    return family if family != "linalg" and (FAMILIES / family).is_dir() else ""


def test_families_do_not_import_from_each_other() -> None:
    wrong = []
    for path in FAMILIES.glob("*/*.py"):
        own = path.parent.name
        for line, module in imports(path):
            other = family_of(module) if module.startswith("tensorlrf.decomposition.") else ""
            if other and other != own and own not in READ_THEM:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, wrong


def test_what_a_package_keeps_to_itself_no_other_imports() -> None:
    """A file or a name with an underscore is its package's own. What a package offers to higher
    floors stands in its files without one; what it offers to users is what its `__init__` lists,
    which is less."""
    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None or node.level:
                continue
            if node.module.split(".")[0] not in ("tensorlrf", "tensorlrf_kernels"):
                continue
            if owner_of(node.module) != owner_of(module_name(path)):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                wrong += [f"{path.relative_to(ROOT)} imports {n}" for n in names if is_own(n)]
    assert not wrong, wrong


def owner_of(module: str) -> str:
    """The package of a module, as the floors list it."""
    return max((n for n in FLOORS if module == n or module.startswith(n + ".")), key=len)


def is_own(name: str) -> bool:
    parts = name.removeprefix("tensorlrf.").split(".")
    return any(part.startswith("_") and not part.startswith("__") for part in parts)


def test_no_two_files_import_each_other() -> None:
    """Neither directly nor through others: what both need stands below both."""
    graph = {
        name: {module for _, module in imports(path) if module in modules() and module != name}
        for name, path in modules().items()
    }
    assert "tensorlrf.factors" in graph["tensorlrf.ops._functional"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def format_checks(path: Path) -> list[str]:
    """Where a file asks whether a value is of one format: `isinstance`, `issubclass`, and types
    that are compared. A format is a class that it takes from tensorlrf.factors."""
    tree = ast.parse(path.read_text())
    formats = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorlrf.factors")
        for alias in node.names
        if alias.name in {cls.__name__ for cls in FORMATS.values()}
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) == 2:
            asks = ast.unparse(node.func) in ("isinstance", "issubclass")
            values = node.args[1:] if asks else []
        else:
            values = node.comparators if isinstance(node, ast.Compare) else []
        names = {n.id for value in values for n in ast.walk(value) if isinstance(n, ast.Name)}
        if names & formats:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_formats_are_told_apart_by_their_own_files_alone() -> None:
    """What differs from format to format stands in its factors and in its form."""
    own = (ROOT / "tensorlrf" / "factors", ROOT / "tensorlrf" / "ops" / "forms")
    paths = [path for path in sources() if not any(path.is_relative_to(folder) for folder in own)]
    assert [place for path in paths for place in format_checks(path)] == []
    assert format_checks(ROOT / "tensorlrf" / "factors" / "kinds.py")  # it does see them


def test_a_folder_holds_no_more_files_than_a_page() -> None:
    files = [*sources(), *ROOT.glob("tests/**/*.py")]
    counts = Counter(path.parent.relative_to(ROOT) for path in files)
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES} == {}


CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault",
           "update"}  # fmt: skip
Closure = ast.FunctionDef | ast.Lambda


def closures(tree: ast.AST) -> Iterator[Closure]:
    """Functions inside functions."""
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef):
            inside = (n for n in ast.walk(outer) if n is not outer)
            yield from (n for n in inside if isinstance(n, Closure))


def owner(node: ast.AST) -> str:
    """x of x.y[z]; empty where it is no name."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def changed(closure: Closure) -> Iterator[str]:
    """What a closure changes of the variables around it, by assignment or by a method of lists,
    dicts and sets."""
    names = (n.id for n in ast.walk(closure) if isinstance(n, ast.Name) and not_read(n))
    own = {a.arg for a in ast.walk(closure.args) if isinstance(a, ast.arg)} | set(names)
    for n in ast.walk(closure):
        if isinstance(n, ast.Nonlocal):
            yield from n.names
        elif isinstance(n, (ast.Attribute, ast.Subscript)) and not_read(n):
            yield from {owner(n)} - own - {""}
        elif isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute):
            yield from {owner(n.func.value)} - own - {""} if n.func.attr in CHANGES else ()


def not_read(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return not isinstance(node.ctx, ast.Load)


@pytest.mark.parametrize("package", ["compression", "cli", "nn", "files"])
def test_no_closure_changes_what_is_around_it(package: str) -> None:
    """State has an object, whose methods change it."""
    wrong = [
        f"{path.relative_to(ROOT)}:{closure.lineno} changes {name}"
        for path in ROOT.glob(f"tensorlrf/{package}/**/*.py")
        for closure in closures(ast.parse(path.read_text()))
        for name in changed(closure)
    ]
    assert not wrong, wrong


def test_the_kernel_core_knows_nothing_of_tensorlrf() -> None:
    for path in ROOT.glob("kernels/**/*.py"):
        assert not [m for _, m in imports(path) if m.split(".")[0] == "tensorlrf"], path


def test_kernels_is_a_folder_and_not_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_import_touches_no_gpu_and_nothing_heavy() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import tensorlrf; "
        "new = set(sys.modules) - before; "
        f"print([m for m in {HEAVY!r} if m in new], torch.cuda.is_initialized())"
    )
    paths = f"{ROOT}:{ROOT / 'kernels'}"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": paths, "PATH": ""},
        cwd=ROOT,
    )
    assert run.stdout.strip() == "[] False"


def test_torch_alone_imports_and_runs_the_library() -> None:
    """A GPU machine as it is checks and times kernels: nothing but torch and numpy is there."""
    others = ("safetensors", "rich", "opt_einsum", "typer", "triton", "tensorly", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others!r})); import torch, tensorlrf; "
        "layer = torch.nn.Linear(8, 6); small = tensorlrf.nn.factorize(layer, 'svd', 2); "
        "print(tuple(small(torch.ones(3, 8)).shape))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": ""},
        cwd=ROOT,
    )
    assert run.stdout.strip() == "(3, 6)"
