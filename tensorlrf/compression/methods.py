"""What `method=` can be: a word, a config, globs of layers; and the choice among several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from tensorlrf.decomposition.configs import CP, SVD, Method, Tucker
from tensorlrf.decomposition.ladder import Ladder, Rung, matrix_ladder
from tensorlrf.decomposition.methods import declared_by, find, names, registered
from tensorlrf.decomposition.signatures import check_words
from tensorlrf.errors import ArgumentError, RankError, shown, unknown

MOST_ENTRIES = 64
"""Of a list in the JSON of a method; a tensor has no more dimensions."""

MOST_STEPS = {
    **dict.fromkeys(("n_iter_max", "n_power_iter", "n_restarts"), 100_000),
    **dict.fromkeys(("n_samples", "n_oversample"), 1 << 30),
}
"""Of what costs time or memory for each."""

AUTO = "auto"

MODULAR = "modular"
"""The word of `compress` that makes whole modules smaller, of which there is no plan of layers."""


@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Of the candidates at one share, the one with the least error.

    That is of the outputs on held-out inputs, or on all inputs where none are held out, or of the
    weight without calibration.

    Parameters
    ----------
    rank, error
        As of every `Method`.
    candidates : tuple of Method
        `SVD()`, `Tucker()` and `CP()` by default.

    Examples
    --------
    >>> auto = tensorlrf.Auto(candidates=(tensorlrf.SVD(), tensorlrf.TT()))
    >>> [candidate.word for candidate in auto.candidates]
    ['svd', 'tt']
    """

    candidates: tuple[Method, ...] = field(default_factory=lambda: (SVD(), Tucker(), CP()))

    word: ClassVar[str] = AUTO
    by_share: ClassVar[bool] = True

    def check_options(self) -> None:
        given: Any = self.candidates
        own = tuple(method_from_dict(c) if isinstance(c, Mapping) else c for c in given)
        object.__setattr__(self, "candidates", own)
        if not own or not all(isinstance(c, Method) and not isinstance(c, Auto) for c in own):
            raise ArgumentError(
                f"candidates={self.candidates!r} must be methods such as (SVD(), Tucker())"
            )
        if any(c.budgeted for c in own):
            raise ArgumentError("candidates have no budget of their own: give it to Auto(...)")
        if self.rank is not None and not isinstance(self.rank, float):
            raise RankError(
                f"rank={self.rank!r}: formats are compared at one share of the parameters, so give "
                "a float in (0, 1]"
            )

    def ladder_of(self, shape: tuple[int, ...]) -> Ladder:
        """A rung is a number of parameters; its rank is that of a low-rank matrix."""
        return matrix_ladder(shape[0], math.prod(shape[1:]))


MethodLike = str | Method
Given = MethodLike | Mapping[str, MethodLike | None]


def words() -> tuple[str, ...]:
    """The words of the methods: those of which a plan gives the rank, the choice among them, and
    those of which it gives the share."""
    served = [registered(name) for name in names("compress")]
    ranked = [m for m in served if not m.config.by_share]
    by_share = sorted((m for m in served if m.config.by_share), key=lambda m: m.order[1])
    return (*(m.name for m in ranked), AUTO, *(m.name for m in by_share))


def config_of(word: str) -> type[Method]:
    """The class of a method that is there: nothing is imported for it. Raises KeyError."""
    if word == AUTO:
        return Auto
    if word not in words():
        raise KeyError(word)
    found: type[Method] = registered(word).config
    return found


def as_method(value: Any, argument: str = "method") -> Method:
    """A word or a config object as a config object; a word that is not known is looked up among
    the methods of installed packages. Raises ArgumentError."""
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        if value not in words():
            find(value, "compress", argument=argument, others=words())
        return config_of(value)()
    raise ArgumentError(
        f"{argument} is a {type(value).__name__}; pass a word ({', '.join(words())}), a config "
        "such as tensorlrf.SVD(rank=64), or a mapping from globs to either"
    )


def at_rung(method: Method, rung: Rung) -> Method:
    """The method at a rung of its ladder; or the other one that has this form."""
    if rung.of is None:
        return method.with_budget(rank=rung.rank)
    return config_of(rung.of)(rank=rung.rank)


def method_from_dict(values: Any) -> Method:
    """Inverse of `Method.to_dict`; imports nothing. Raises ArgumentError that names what is
    unknown."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ArgumentError(f"method={values!r} must be an object with a 'name'")
    options = dict(values)
    name = options.pop("name")
    if name not in words():
        declared = declared_by(name)
        if declared is None:
            raise unknown("method", name, words())
        package, module = declared
        raise ArgumentError(
            f"method={name!r} is of the package {package!r}, which a plan or a file does not load; "
            f"import {module} first, where you trust it"
        )
    kind = config_of(name)
    valid = [f.name for f in fields(kind)]
    check_words(options, valid, f"method {name!r}")
    for option in options:
        if option not in valid:
            raise ArgumentError(
                f"{option}= is no option of method {name!r}; its options are {', '.join(valid)}"
            )
    for option, value in options.items():
        _check_bounded(option, value)
    return kind(**options)


def _check_bounded(option: str, value: Any) -> None:
    """Raise ArgumentError for numbers and lists so long that to reckon with them takes for ever."""
    entries: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = [(option, one) for one in value]
    if len(entries) > MOST_ENTRIES or (isinstance(value, int) and abs(value) >= 1 << 63):
        raise ArgumentError(
            f"{option}={shown(value)} must have at most {MOST_ENTRIES} entries, and numbers below "
            "2^63"
        )
    most = MOST_STEPS.get(option)
    if most is not None and isinstance(value, int) and value > most:
        raise ArgumentError(f"{option}={value} is more than a plan may ask for; use at most {most}")
    for key, entry in entries:
        _check_bounded(key, entry)
