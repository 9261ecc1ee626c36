"""A recipe: what `compress` is to be called with, as a value and as a text."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tensorlrf.compression._compress import compress
from tensorlrf.compression._survey import INCLUDED
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.recipe._schema import schema_of
from tensorlrf.compression.recipe._values import (
    NAME,
    built,
    check_keys,
    check_method_words,
    plain,
    read,
)
from tensorlrf.compression.recipe._yaml import LARGEST, Node, read_yaml, write_yaml
from tensorlrf.compression.recipe.keys import (
    OUTPUT,
    READ_BY_COMMAND,
    check,
    keys,
    keys_of_fits,
    not_in_text,
)
from tensorlrf.compression.report._report import Report
from tensorlrf.errors import ArgumentError, FileFormatError, MissingFileError
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.replace import replacing


@dataclass(frozen=True)
class Recipe:
    """What `tensorlrf.compress` is to be called with, as a value that people write down.

    Its keys are the arguments of `compress` that a text can say, with three that the command line
    follows: `calibration`, a mapping with `text`, `tokens`, `batch_size` and `max_batches`,
    `groups`, and `output`. A method or an allocation is its word, or a mapping of its options:
    ``{name: svd, rank: 64}``, ``{rule: energy, multiple: 16}``; `method` may be a mapping from
    globs to these. A recipe has no code run and nothing imported: what is code (`evaluate`,
    `readout`, `example`) is given beside it.

    Parameters
    ----------
    values : mapping
        Key -> value, as `compress` takes it or as a text says it; what stands at its default of
        None is left out.

    Raises
    ------
    ArgumentError, RankError
        Naming the key, for one that there is not, a value that cannot be, two budgets.
    MissingExtraError
        Of what reads or writes a text, where PyYAML is not installed, the extra `recipe`.

    Examples
    --------
    >>> recipe = tensorlrf.Recipe({"keep_params": 0.5, "method": tensorlrf.SVD(metric="diagonal")})
    >>> print(recipe.to_yaml(), end="")
    keep_params: 0.5
    method:
      name: svd
      metric: diagonal
    >>> tensorlrf.Recipe.from_yaml(recipe.to_yaml()) == recipe
    True
    >>> small, report = recipe.compress(torch.nn.Sequential(torch.nn.Linear(64, 64)))
    >>> report.keep_params
    0.5
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        given: Any = self.values
        if not isinstance(given, Mapping):
            raise ArgumentError(
                f"values is a {type(given).__name__}; pass a mapping from keys to values"
            )
        object.__setattr__(self, "values", _read(Node.of(plain(dict(given)))))

    @classmethod
    def read(cls, path: PathLike) -> Recipe:
        """The recipe in a file.

        Parameters
        ----------
        path : str or PathLike
            A text in UTF-8, of at most a megabyte.

        Returns
        -------
        Recipe

        Raises
        ------
        MissingFileError, FileError
            Where there is no such file, or it cannot be read.
        FileFormatError
            As `from_yaml`.
        """
        file = as_path(path)
        if not file.is_file():
            raise MissingFileError(f"path={str(file)!r} is no file; give one with a recipe")
        with open(file, "rb") as stream:
            found = stream.read(LARGEST + 1)
        try:
            text = found.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = found.count(b"\n", 0, error.start) + 1
            raise FileFormatError(f"{file}, line {line}: this is no UTF-8 text") from None
        return cls.from_yaml(text, str(file))

    @classmethod
    def from_yaml(cls, text: str, file: str = "recipe") -> Recipe:
        """The recipe that a text is.

        Parameters
        ----------
        text : str
        file : str
            What it is called in errors.

        Returns
        -------
        Recipe

        Raises
        ------
        FileFormatError
            Naming the line and the key, for what is no YAML, a key that there is not or that stands
            twice, a value of another type or that cannot be, two budgets, an alias or a tag.
        """
        values = _read(read_yaml(text, file))
        made = object.__new__(cls)
        object.__setattr__(made, "values", values)
        return made

    @classmethod
    def of_plan(cls, plan: Plan, values: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe that makes the same of a model as a plan of it: a rank for each layer.

        Whether a plan is of this model is known of the plan alone, and so are its budget and how
        its ranks came about. Where it was made by time, `apply` has paths tuned; tune what the
        recipe makes.

        Parameters
        ----------
        plan : Plan
        values : mapping, optional
            Further keys, on how it is fitted: those that are arguments of `apply`, and `output`.

        Returns
        -------
        Recipe

        Raises
        ------
        ArgumentError
            For a plan that factors nothing, and a key that is not of a fit.

        Examples
        --------
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> plan = tensorlrf.plan(model, keep_params=0.5, skip=["2"])
        >>> recipe = tensorlrf.Recipe.of_plan(plan)
        >>> str(recipe.values["method"]["0"]), recipe.values["method"]["*"]
        ('svd', None)
        """
        if not isinstance(plan, Plan):
            raise ArgumentError(
                f"plan is a {type(plan).__name__}; make one with tensorlrf.plan(model, ...)"
            )
        if not plan.factored:
            raise ArgumentError("plan factors no layer, so that no recipe says the same")
        more = {} if values is None else dict(values)
        check_keys(Node.of(dict.fromkeys(more)), dict.fromkeys(keys_of_fits()))
        folds = {} if plan.folded is None else {"fold_batch_norms": True}
        layers = {_glob_of(row.name): row.method for row in plan.factored}
        # Layers that stay for their kind are left by the last glob instead.
        chosen = {"method": {**layers, "*": None}, "skip": [], "include": list(INCLUDED)}
        return cls({**chosen, **folds, **more})

    @property
    def arguments(self) -> dict[str, Any]:
        """What `compress` is called with.

        That is `values` without what the command line alone can follow, and with a `sensitivity`
        read from its file.
        """
        found = {k: v for k, v in self.values.items() if k not in READ_BY_COMMAND}
        if "sensitivity" in found:
            file = as_path(found["sensitivity"], "sensitivity")
            if not file.is_file():
                raise MissingFileError(f"sensitivity={str(file)!r} is no file")
            found["sensitivity"] = Sensitivity.from_json(file.read_text(encoding="utf-8"))
        return found

    def compress(self, model: nn.Module, **given: Any) -> tuple[nn.Module, Report]:
        """`tensorlrf.compress` by this recipe.

        Parameters
        ----------
        model : Module
        **given
            Further arguments of `compress`, in place of keys of the recipe that have the same
            word. Of a recipe with `calibration` or `groups` these are among them: batches, which
            the command line makes of text; None to do without. `output` is the command's.

        Returns
        -------
        model : Module
        report : Report

        Raises
        ------
        ArgumentError, RankError, FileError, FileFormatError
            As `compress`, and where the recipe names texts and no `calibration` is given.
        """
        for key in READ_BY_COMMAND:
            if key in self.values and key not in given and key != OUTPUT:
                raise ArgumentError(
                    f"{key}={plain(self.values[key])!r} is made of files by the command line, "
                    f"`tensorlrf compress --recipe`; give {key}= here"
                )
        return compress(model, **{**self.arguments, **given})

    def to_yaml(self) -> str:
        """As text, which `from_yaml` reads as the same recipe."""
        return write_yaml(plain(self.values))

    def write(self, path: PathLike, *, overwrite: bool = False) -> None:
        """`to_yaml` to a file, whole or not at all.

        Parameters
        ----------
        path : str or PathLike
        overwrite : bool
            Whether to replace a file that is there.

        Raises
        ------
        FileError
            Where it is there, or cannot be written.
        """
        text = self.to_yaml()
        with replacing(path, overwrite=overwrite) as part:
            Path(part).write_text(text, encoding="utf-8")

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON schema of recipes, by which editors complete and check them."""
        return schema_of()

    def __str__(self) -> str:
        return self.to_yaml()


def _glob_of(name: str) -> str:
    """That matches this name alone, and is no key of a method."""
    return f"[{name[0]}]{name[1:]}" if name == NAME else glob.escape(name)


def _read(node: Node) -> Mapping[str, Any]:
    """The values of a whole recipe. Raises what is wrong with it."""
    if node.value is None:
        raise node.wrong("there is nothing in it; write keys such as keep_params: 0.5")
    if not isinstance(node.value, dict):
        raise node.wrong("it must be a mapping of keys to values, such as keep_params: 0.5")
    known = keys()
    for key, inner in node.value.items():
        if key in not_in_text():
            raise inner.wrong(
                "this is code or a tensor, which no recipe has; give it to Recipe.compress, or to "
                "the command line where that has an option for it"
            )
    check_keys(node, known)
    entries: dict[str, tuple[Node, Any]] = {}
    for key, inner in node.value.items():
        value = read(known[key].hint, inner)
        if value is not None or known[key].default is not None:
            entries[key] = inner, value
    if "method" in entries:
        inner, value = entries["method"]
        check_method_words(value, inner)
    built(check, node, entries)
    return {key: value for key, (_, value) in entries.items()}
