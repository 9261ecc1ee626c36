"""`--recipe`: a file says what options would."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from tensorlrf.cli._outcome import guard
from tensorlrf.compression import Plan, Recipe
from tensorlrf.compression.recipe.keys import TEXTS, Texts, keys_of_fits
from tensorlrf.errors import ArgumentError

OPTIONS = {"random_state": "seed"}
"""Key -> the word of its option, where that is another one."""

NOT_GIVEN = ("DEFAULT", "DEFAULT_MAP")


def read_recipe(context: typer.Context, path: Any) -> Recipe | None:
    """The recipe of `--recipe`. What it says becomes the default of the options, so that what is
    given for one takes the place of its key."""
    if path is None:
        return None
    with guard(debug=False):
        recipe = Recipe.read(path)
        options = _options(context)
        defaults = {}
        for key, value in _flat(recipe).items():
            if key in options and value != []:
                _check(key, value)
                defaults[options[key].name] = _for_option(options[key], value)
        if recipe.values.get("skip") == []:
            defaults["skip"] = [""]
        context.default_map = defaults
    return recipe


Given = Annotated[
    Any,
    typer.Option(
        "--recipe",
        metavar="FILE",
        parser=Path,
        callback=read_recipe,
        is_eager=True,
        help="YAML that says what options would, and more; options given beside it take the place "
        "of its keys. Needs the extra recipe.",
    ),
]


def beyond_options(recipe: Recipe | None, context: typer.Context, batches: Any) -> dict[str, Any]:
    """What a recipe says that no option does, as arguments; for `objective` the first batch is the
    example."""
    if recipe is None:
        return {}
    options = _options(context)
    found = {key: value for key, value in _flat(recipe).items() if key not in options}
    return found | ({"example": batches[0]} if "objective" in found and batches else {})


def taken_by(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function has."""
    known = inspect.signature(function).parameters
    return {key: value for key, value in arguments.items() if key in known}


def tell_replaced(recipe: Recipe | None, context: typer.Context) -> None:
    """Say on stderr which keys of a recipe options take the place of."""
    if recipe is None:
        return
    options = _options(context)
    for key in _flat(recipe):
        if key in options and _is_given(context, options[key]):
            option = max(options[key].opts, key=len)
            typer.echo(f"{option} takes the place of {key}: in the recipe", err=True)


def as_recipe(made: Plan, recipe: Recipe | None, context: typer.Context, *, whole: bool) -> Recipe:
    """A plan with what else was given on how to fit it; `whole` where it is of a model, not of the
    weights of a file."""
    options, fits = _options(context), keys_of_fits()
    values = {} if recipe is None else {k: v for k, v in recipe.values.items() if k in fits}
    texts = dict(vars(values.pop(TEXTS, Texts())))
    for key in (*texts, *fits):
        if key in options and _is_given(context, options[key]):
            given = _plain(context.params[options[key].name])
            (texts if key in texts else values)[key] = given
    if texts["text"]:
        values[TEXTS] = Texts(**texts)
    found = Recipe.of_plan(made, values)
    return Recipe({k: v for k, v in found.values.items() if whole or k != "include"})


def _plain(value: Any) -> Any:
    """Paths as their names."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def _options(context: typer.Context) -> dict[str, Any]:
    """The options of a command, by the key that says the same."""
    words = {word: key for key, word in OPTIONS.items()}
    found = {}
    for option in context.command.params:
        word = max(option.opts, key=len).removeprefix("--").replace("-", "_")
        if option.param_type_name == "option":
            found[words.get(word, word)] = option
    return found


def _is_given(context: typer.Context, option: Any) -> bool:
    source = context.get_parameter_source(option.name)
    return source is not None and source.name not in NOT_GIVEN


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Its values, those on texts by their own words."""
    values = dict(recipe.values)
    texts = vars(values.pop(TEXTS, Texts()))
    return values | {key: value for key, value in texts.items() if value not in (None, ())}


def _check(key: str, value: Any) -> None:
    if value is None:
        raise ArgumentError(
            f"{key}: null is for Recipe.compress; the command line takes a value for it"
        )


def _for_option(option: Any, value: Any) -> Any:
    """As the parser takes it: a list for what may be given again."""
    if not option.multiple:
        return value
    return [value] if isinstance(value, str) else list(value)
