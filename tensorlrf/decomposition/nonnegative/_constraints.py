"""What constraints of a factor mean together, and which of them cannot be met at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tensorlrf.decomposition.nonnegative import _prox
from tensorlrf.decomposition.nonnegative._prox import Project, Prox
from tensorlrf.errors import ArgumentError, RankError, unknown

SHAPES: Mapping[str, Project] = {
    "monotone": _prox.rising,
    "decreasing": _prox.falling,
    "unimodal": _prox.unimodal,
}
PENALTIES: Mapping[str, tuple[Prox, Callable[[Tensor], float]]] = {
    "l1": (_prox.soft, _prox.absolute_sum),
    "smooth": (_prox.smooth, _prox.roughness),
}
"""Words with a strength."""

WORDS = ("nonnegative", "simplex", *SHAPES, "orthogonal", *PENALTIES)

_NO_OTHER = "orthonormal columns are found by a Procrustes step, which leaves nothing to choose"
_NO_COMMON = "the nearest point of both is in no closed form; take nonnegative, or simplex alone"
CONTRADICT: Mapping[frozenset[str], str] = {
    frozenset(pair): why
    for why, pairs in {
        "columns on the simplex have an absolute sum of one, whatever they are": [
            ("simplex", "l1")
        ],
        "only columns that are constant rise and fall": [("monotone", "decreasing")],
        "a monotone column is unimodal; name that one alone": [
            ("monotone", "unimodal"),
            ("decreasing", "unimodal"),
        ],
        _NO_COMMON: [("simplex", shape) for shape in SHAPES],
        _NO_OTHER: [("orthogonal", word) for word in WORDS if word != "orthogonal"],
    }.items()
    for pair in pairs
}
"""Pairs of words -> why there is nothing, or nothing more, that meets both."""


@dataclass(frozen=True)
class Penalty:
    """strength * value(U), and its proximal operator."""

    word: str
    strength: float
    prox: Prox
    value: Callable[[Tensor], float]

    def of(self, u: Tensor) -> float:
        return self.strength * self.value(u)

    def scaled(self, v: Tensor, step: float) -> Tensor:
        """The operator of the whole."""
        return self.prox(v, step * self.strength)


@dataclass(frozen=True)
class Factor:
    """What a factor has to be.

    project    onto what its columns are confined to; None for no such set
    penalties  that are added to the loss
    words      as they were given
    """

    project: Project | None
    penalties: tuple[Penalty, ...]
    words: frozenset[str]

    @property
    def orthogonal(self) -> bool:
        return "orthogonal" in self.words

    @property
    def fixes_scale(self) -> bool:
        """Whether columns have a size that they cannot leave."""
        return self.orthogonal or "simplex" in self.words

    @property
    def non_negative(self) -> bool:
        return not self.words.isdisjoint({"nonnegative", "simplex"})

    def in_ball(self) -> Factor:
        """The same, of columns of length one at the most: these sets are cones, of which the
        nearest point in the ball is that of the cone, shortened."""
        cone = self.project

        def project(v: Tensor) -> Tensor:
            return _prox.unit_ball(v if cone is None else cone(v))

        return Factor(project, self.penalties, self.words)


def factors_of(constraints: Any, shape: Sequence[int], rank: int | None) -> list[Factor]:
    """One for each mode.

    Where a factor whose scale is free has a penalty, those of all others whose scale is free too,
    and that have none, are confined to the unit ball: or else they would grow and it would shrink,
    to the same model at no penalty.

    Raises ArgumentError, or RankError where orthonormal columns have no room.
    """
    found = [_factor(entry, k) for k, entry in enumerate(_by_mode(constraints, len(shape)))]
    for k, (factor, n) in enumerate(zip(found, shape, strict=True)):
        if factor.orthogonal and rank is not None and rank > n:
            raise RankError(
                f"rank={rank} is above {n}, the size of mode {k}, which has no more orthonormal "
                f"columns; use at most {n}, or leave 'orthogonal' out there"
            )
    if any(f.penalties and not f.fixes_scale for f in found):
        return [f if f.penalties or f.fixes_scale else f.in_ball() for f in found]
    return found


def _by_mode(constraints: Any, order: int) -> list[Any]:
    if constraints is None or isinstance(constraints, str) or _is_pair(constraints):
        return [constraints] * order
    if isinstance(constraints, Mapping):
        for k in constraints:
            if isinstance(k, bool) or not isinstance(k, int) or not -order <= k < order:
                raise ArgumentError(
                    f"constraints= names mode {k!r}; the modes of this tensor are 0 to {order - 1}"
                )
        by_mode = {k % order: entry for k, entry in constraints.items()}
        if len(by_mode) < len(constraints):
            raise ArgumentError(f"constraints={constraints!r} names a mode twice; name each once")
        return [by_mode.get(k) for k in range(order)]
    if not isinstance(constraints, Sequence):
        raise ArgumentError(
            f"constraints is a {type(constraints).__name__}; give a word for all modes, a list "
            "with an entry for each, or a mapping from modes"
        )
    if len(constraints) != order:
        raise ArgumentError(
            f"constraints has {len(constraints)} entries for {order} modes; give one for each "
            "(None for none), a single word for all, or a mapping from modes"
        )
    return list(constraints)


def _is_pair(entry: Any) -> bool:
    """A word and its strength."""
    return (
        isinstance(entry, Sequence)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], (int, float))
    )


def _factor(entry: Any, mode: int) -> Factor:
    name = f"constraints[{mode}]"
    given = [] if entry is None else [entry] if isinstance(entry, str) or _is_pair(entry) else entry
    if not isinstance(given, Sequence):
        raise ArgumentError(
            f"{name}={entry!r} must be a word, (word, strength), or a list of these"
        )
    strengths: dict[str, float | None] = {}
    for one in given:
        word, strength = one if _is_pair(one) else (one, None)
        if word not in WORDS:
            raise unknown(name, word, WORDS)
        if word in strengths:
            raise ArgumentError(f"{name} has {word!r} twice; name it once")
        strengths[word] = _strength(name, word, strength)
    for pair, why in CONTRADICT.items():
        if pair <= strengths.keys():
            first, second = sorted(pair, key=WORDS.index)
            raise ArgumentError(f"{name} has {first!r} and {second!r}: {why}")
    return _made(strengths)


def _strength(name: str, word: str, strength: Any) -> float | None:
    if word not in PENALTIES:
        if strength is not None:
            raise ArgumentError(f"{name}=({word!r}, {strength!r}): {word!r} has no strength")
        return None
    if strength is None or isinstance(strength, bool) or not 0 < strength < math.inf:
        raise ArgumentError(
            f"{name} has {word!r} with strength {strength!r}; give a number above 0, as in "
            f"({word!r}, 0.1)"
        )
    return float(strength)


def _made(strengths: Mapping[str, float | None]) -> Factor:
    words = frozenset(strengths)
    shape = next((word for word in SHAPES if word in words), None)
    positive = "nonnegative" in words
    project: Project | None = None if shape is None else SHAPES[shape]
    if "simplex" in words:
        project = _prox.simplex
    elif shape == "unimodal" and positive:
        project = partial(_prox.unimodal, least=0.0)
    elif positive:
        # The nearest rising non-negative column is the nearest rising one, clamped.
        project = _clamped(project)
    penalties = tuple(
        Penalty(word, strength, *PENALTIES[word])
        for word, strength in strengths.items()
        if strength is not None
    )
    return Factor(project, penalties, words)


def _clamped(project: Project | None) -> Project:
    if project is None:
        return _prox.non_negative
    return lambda v: project(v).clamp_min(0.0)
