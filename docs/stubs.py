"""What type checkers see of the decompositions, from their signatures: `make generate`.

`factors_of` carries a signature over where a ParamSpec can. What takes `batch_dims=` gives a Batch
or not by that argument, which takes two overloads of `fit_` and of the short function: these stand
in `decomposition/__init__.pyi`, which takes the place of `__init__.py` for a type checker alone.
`config` gives a class the options of its method as fields when it runs: `decomposition/configs.pyi`
has them written out.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

from tensorlrf import decomposition
from tensorlrf.decomposition import configs
from tensorlrf.decomposition.config import Method
from tensorlrf.decomposition.methods import Registered, names, registered

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# Written by `make generate`, from the signatures of the decompositions.\n"
DECOMPOSITION = Path(decomposition.__file__).with_suffix(".pyi")
CONFIGS = Path(configs.__file__).with_suffix(".pyi")

Imports = dict[str, set[str]]
"""Module -> the names that are taken from it; none where the module itself is imported."""


class Source:
    """The module of a method as it is written: its signature, and where its names come from."""

    def __init__(self, found: Registered) -> None:
        self.module = found.fit.__module__
        self.tree = ast.parse(inspect.getsource(sys.modules[self.module]))
        name = found.fit.__name__
        (self.fit,) = (
            n for n in self.tree.body if isinstance(n, ast.FunctionDef) and n.name == name
        )

    @property
    def gives(self) -> list[str]:
        """The members of what `fit_` gives: Fit[LowRank], Fit[Batch]."""
        assert self.fit.returns is not None
        return ast.unparse(self.fit.returns).split(" | ")

    def arguments(self) -> Iterator[tuple[str, str, str]]:
        """(name, annotation, default or nothing), "*" for the mark before those by keyword."""
        given = self.fit.args
        missing = len(given.args) - len(given.defaults)
        for k, one in enumerate(given.args):
            default = written(given.defaults[k - missing]) if k >= missing else ""
            yield one.arg, written(one.annotation), default
        yield "*", "", ""
        for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
            if one.arg != "measure":
                yield one.arg, written(one.annotation), written(value)

    def imports(self, texts: list[str]) -> Imports:
        """Where the names in these come from."""
        used = {n.id for t in texts for n in ast.walk(ast.parse(t)) if isinstance(n, ast.Name)}
        found: Imports = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if alias.name in used:
                        found.setdefault(node.module, set()).add(alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in used:
                        found.setdefault(alias.name, set())
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name) and target.id in used:
                        found.setdefault(self.module, set()).add(target.id)
        return found


def written(node: ast.expr | None) -> str:
    """As source, strings in double quotes."""
    return "" if node is None else ast.unparse(node).replace("'", '"')


def stub(name: str, arguments: list[tuple[str, str, str]], gives: str) -> str:
    """A function without its body."""
    lines = ["@overload", f"def {name}("]
    for word, annotation, default in arguments:
        told = f": {annotation}" if annotation else ""
        lines.append(f"    {word}{told}{f' = {default}' if default else ''},")
    return "\n".join([*lines, f") -> {gives}: ...", ""])


def overloads(source: Source) -> str:
    """Of `fit_` and of the short function: with batch_dims=0, and with another."""
    single = [
        (word, "Literal[0]" if word == "batch_dims" else annotation, default)
        for word, annotation, default in source.arguments()
    ]
    batched = [
        (word, annotation, "" if word == "batch_dims" else default)
        for word, annotation, default in source.arguments()
    ]
    first, whole = source.gives[0], " | ".join(source.gives)
    fit, short = source.fit.name, source.fit.name.removeprefix("fit_")
    return "".join(
        stub(name, arguments, gives if name == fit else re.sub(r"Fit\[(\w+)\]", r"\1", gives))
        for name in (fit, short)
        for arguments, gives in ((single, first), (batched, whole))
    )


def rendered(imports: Imports) -> str:
    """In the order of ruff: modules first, then names, of the standard library before others."""
    groups: tuple[list[str], ...] = ([], [], [])
    for module in sorted(imports, key=lambda m: (bool(imports[m]), m)):
        taken = sorted(imports[module], key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        top = module.partition(".")[0]
        group = groups[2 if top == "tensorlrf" else 0 if top in sys.stdlib_module_names else 1]
        line = f"from {module} import {', '.join(taken)}" if taken else f"import {module}"
        if len(line) > 100:
            rows = "".join(f"    {name},\n" for name in taken)
            line = f"from {module} import (\n{rows})"
        group.append(line)
    return "\n\n".join("\n".join(group) for group in groups if group)


def of_decomposition() -> str:
    """`decomposition/__init__.py` with overloads in place of what takes batch_dims=."""
    tree = ast.parse(Path(decomposition.__file__).read_text())
    imports: Imports = {
        node.module: {alias.name for alias in node.names}
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    functions = []
    for name in names():
        found = registered(name)
        if not found.takes("batch_dims"):
            continue
        source = Source(found)
        imports[source.module] -= {source.fit.name, name}
        if not imports[source.module]:
            del imports[source.module]
        texts = [text for _, *rest in source.arguments() for text in rest if text]
        for module, taken in source.imports([*texts, *source.gives]).items():
            imports.setdefault(module, set()).update(taken)
        functions.append(overloads(source))
    imports.setdefault("typing", set()).update({"Literal", "overload"})
    exported = "".join(f'    "{name}",\n' for name in decomposition.__all__)
    return f"{HEAD}\n{rendered(imports)}\n\n{''.join(functions)}\n__all__ = [\n{exported}]\n"


def of_configs() -> str:
    """`decomposition/configs.py` with the fields of the classes: annotations and defaults."""
    tree = ast.parse(Path(configs.__file__).read_text())
    (given,) = (
        {alias.name for alias in node.names}
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "tensorlrf.decomposition.config"
    )
    imports: Imports = {"dataclasses": {"dataclass"}, "tensorlrf.decomposition.config": given}
    classes = []
    for name in names("compress"):
        kind = registered(name).config
        own = [f for f in fields(kind) if f.name not in {g.name for g in fields(Method)}]
        classes.append(
            "\n".join(
                [
                    "@dataclass(frozen=True, kw_only=True)",
                    f"class {kind.__name__}({kind.__base__.__name__}):",
                    indented(f'"""{kind.__doc__}\n"""\n'),
                    *(f"    {f.name}: {f.type} = {literal(f.default)}" for f in own),
                ]
            )
        )
    exported = "".join(f'    "{name}",\n' for name in configs.__all__)
    body = "\n\n".join(classes)
    return f"{HEAD}\n{rendered(imports)}\n\n{body}\n\n__all__ = [\n{exported}]\n"


def indented(text: str) -> str:
    """As the body of a class."""
    return textwrap.indent(text, "    ")


def literal(value: object) -> str:
    """As source."""
    assert value is not MISSING
    return repr(value).replace("'", '"')


GENERATED = {DECOMPOSITION: of_decomposition, CONFIGS: of_configs}
"""A file -> what it should hold."""


if __name__ == "__main__":
    for path, text in GENERATED.items():
        path.write_text(text())
