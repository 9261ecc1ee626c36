"""How a layer is to be factored, as a value: a method and all of its options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from tensorlrf.compression._ranks import (
    Ladder,
    LayerRank,
    Rung,
    cp_ladder,
    matrix_ladder,
    tucker_ladder,
)
from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition.cp._options import check_options
from tensorlrf.decomposition.linalg._rangefinder import check_sketch
from tensorlrf.decomposition.linalg._truncation import METHODS as SVD_METHODS
from tensorlrf.decomposition.rank import Rank
from tensorlrf.decomposition.tucker._tucker import METHODS as TUCKER_METHODS
from tensorlrf.errors import ArgumentError, RankError, shown, unknown

MOST_ENTRIES = 64
"""Of a list in the JSON of a method; a tensor has no more dimensions."""

MOST_STEPS = {
    **dict.fromkeys(("n_iter_max", "n_power_iter", "n_restarts"), 100_000),
    **dict.fromkeys(("n_samples", "n_oversample"), 1 << 30),
}
"""Of what costs time or memory for each."""

METRICS = ("full", "diagonal", "identity")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A decomposition with its options; `rank` and `error` are a layer's own budget.

    rank   an int; a tuple where the format has several; or a float, the share of the weight's
           parameters to keep at most. Of a convolution with groups: of each group
    error  largest relative error, of the outputs where there is calibration, else of the weight

    With neither, the budget of the whole model decides.
    """

    rank: Rank | None = None
    error: float | None = None

    word: ClassVar[str]
    by_share: ClassVar[bool] = False
    """Whether a plan gives a layer its share of the parameters, and the fit finds the rank."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.error is not None:
            raise ArgumentError(
                f"{type(self).__name__}(rank={self.rank!r}, error={self.error!r}) has two budgets; "
                "give one of them"
            )
        if self.error is not None:
            number = isinstance(self.error, (int, float)) and not isinstance(self.error, bool)
            if not number or not 0 < self.error < 1:
                raise ArgumentError(
                    f"error={self.error!r} must be a relative error in (0, 1), such as 0.05"
                )
        if isinstance(self.rank, list):
            object.__setattr__(self, "rank", tuple(self.rank))
        if isinstance(self.rank, float) and not 0 < self.rank <= 1:
            raise RankError(
                f"rank={self.rank!r} is a float, so a share of the parameters, which lies in "
                "(0, 1]; for a count pass an int"
            )
        if self.rank is not None and not isinstance(self.rank, float):
            ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,)
            if not all(isinstance(r, int) and not isinstance(r, bool) and r > 0 for r in ranks):
                raise RankError(
                    f"rank={self.rank!r} must be a positive int, a tuple of them, or a share in "
                    "(0, 1]"
                )

    @property
    def budgeted(self) -> bool:
        """Whether it brings a budget of its own."""
        return self.rank is not None or self.error is not None

    def options(self) -> dict[str, Any]:
        """What the decomposition is called with, beside rank, error and data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _BUDGET}

    def ladder(self, shape: tuple[int, ...], groups: int) -> Ladder:
        """The ranks that the method can give a weight of this shape, in its `groups`."""
        each = (shape[0] // groups, *shape[1:])
        return scaled(self._ladder(each), groups)

    def _ladder(self, shape: tuple[int, ...]) -> Ladder:
        raise NotImplementedError

    def for_shape(self, shape: tuple[int, ...]) -> Method:
        """The method that serves a weight of this shape: a matrix, which a kernel of one element is
        too, has one format, its SVD."""
        if math.prod(shape[2:]) > 1 or isinstance(self, (SVD, Auto)):
            return self
        return SVD(rank=self.rank, error=self.error)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        """Why a weight of this shape cannot have the format; empty where it can."""
        return ""

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        """Parameters of the factors at a rank; None where only the fit can tell. Raises RankError
        for a rank that cannot be."""
        return params_at(self, rank, shape, groups)

    def with_budget(self, *, rank: Rank | None = None, error: float | None = None) -> Self:
        """The same with another budget."""
        return replace(self, rank=rank, error=error)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the word and what differs from the defaults."""
        values: dict[str, Any] = {"name": self.word}
        for f in fields(self):
            value = getattr(self, f.name)
            factory = f.default_factory
            default = f.default if factory is MISSING else factory()
            if value != default:
                values[f.name] = _plain(value)
        return values

    def __str__(self) -> str:
        values = self.to_dict()
        inner = ", ".join(f"{k}={v}" for k, v in values.items() if k not in ("name", *_BUDGET))
        return f"{self.word}({inner})" if inner else self.word


_BUDGET = ("rank", "error")


@dataclass(frozen=True, kw_only=True)
class SVD(Method):
    """Truncated SVD; the options are those of `tensorlrf.svd`, which serve fits without inputs, and

    metric   with calibration: "full", the second moments of the inputs, so that the error of the
             outputs is least; "diagonal", columns scaled by the fourth root of their mean square,
             the activation-aware SVD (Yuan et al. 2023, "ASVD", with alpha = 1/2); "identity",
             the plain SVD
    """

    method: str = "auto"
    n_power_iter: int = 8
    n_oversample: int = 10
    metric: str = "full"

    word: ClassVar[str] = "svd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in SVD_METHODS:
            raise unknown("method", self.method, SVD_METHODS)
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        check_sketch(self.n_power_iter, self.n_oversample)

    def options(self) -> dict[str, Any]:
        values = super().options()
        del values["metric"]
        return values

    def _ladder(self, shape: tuple[int, ...]) -> Ladder:
        return matrix_ladder(shape[0], math.prod(shape[1:]))


@dataclass(frozen=True, kw_only=True)
class Tucker(Method):
    """Tucker-2 on the channels of a convolution (Kim et al. 2016); a matrix gets its SVD. The
    options are those of `tensorlrf.tucker`, of which only n_iter_max and tol serve fits to inputs,
    and

    rank_shares   relative sizes of r_out / O and r_in / I, where a share decides the ranks
    """

    method: str = "hooi"
    n_iter_max: int | None = None
    tol: float | None = None
    n_power_iter: int = 2
    n_oversample: int = 10
    rank_shares: tuple[float, float] = (0.7, 1.0)

    word: ClassVar[str] = "tucker"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in TUCKER_METHODS:
            raise unknown("method", self.method, TUCKER_METHODS)
        check_iteration(self.n_iter_max, self.tol)
        check_sketch(self.n_power_iter, self.n_oversample)
        if isinstance(self.rank_shares, list):
            object.__setattr__(self, "rank_shares", tuple(self.rank_shares))
        shares: Any = self.rank_shares
        pair = isinstance(shares, tuple) and len(shares) == 2
        if not pair or not all(isinstance(s, (int, float)) and 0 < s <= 1 for s in shares):
            raise ArgumentError(
                f"rank_shares={shares!r} must be two numbers in (0, 1], the relative sizes of "
                "r_out / O and r_in / I, such as (0.7, 1.0)"
            )

    def options(self) -> dict[str, Any]:
        values = super().options()
        del values["rank_shares"]
        return values

    def _ladder(self, shape: tuple[int, ...]) -> Ladder:
        return tucker_ladder(shape, self.rank_shares)


@dataclass(frozen=True, kw_only=True)
class CP(Method):
    """CP of a convolution (Lebedev et al. 2015); a matrix gets its SVD. The options are those of
    `tensorlrf.cp`, of which n_iter_max, tol, init and n_restarts serve fits to inputs."""

    n_iter_max: int | None = None
    init: str = "random"
    tol: float | None = None
    solver: str = "als"
    n_samples: int | None = None
    n_restarts: int = 1

    word: ClassVar[str] = "cp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.init, str):
            raise ArgumentError(
                f"init is a {type(self.init).__name__}; for many layers give a word, 'random' or "
                "'svd'"
            )
        options = self.options()
        given = {k: v for k, v in options.items() if v is not None or k == "n_samples"}
        fallback = {"n_iter_max": 1, "tol": 0.0}  # what None stands for depends on the inputs
        check_options((1, 1), None, **{**fallback, **given}, fixed_modes=(), callback=None)

    def _ladder(self, shape: tuple[int, ...]) -> Ladder:
        return cp_ladder(shape)


@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Of the candidates at one share, the one with the least error: of the outputs on held-out
    inputs, or on all inputs where none are held out, or of the weight without calibration."""

    candidates: tuple[Method, ...] = field(default_factory=lambda: (SVD(), Tucker(), CP()))

    word: ClassVar[str] = "auto"
    by_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        own = tuple(method_from_dict(c) if isinstance(c, Mapping) else c for c in self.candidates)
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

    def _ladder(self, shape: tuple[int, ...]) -> Ladder:
        """A rung is a number of parameters; its rank is that of a low-rank matrix."""
        return matrix_ladder(shape[0], math.prod(shape[1:]))


METHODS: dict[str, type[Method]] = {m.word: m for m in (SVD, Tucker, CP, Auto)}

MethodLike = str | Method
Given = MethodLike | Mapping[str, MethodLike | None]


def as_method(value: Any, argument: str = "method") -> Method:
    """A word or a config object as a config object. Raises ArgumentError."""
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        if value not in METHODS:
            raise unknown(argument, value, tuple(METHODS))
        return METHODS[value]()
    raise ArgumentError(
        f"{argument} is a {type(value).__name__}; pass a word ({', '.join(METHODS)}), a config "
        "such as tensorlrf.SVD(rank=64), or a mapping from globs to either"
    )


def method_from_dict(values: Any) -> Method:
    """Inverse of `Method.to_dict`. Raises ArgumentError that names what is unknown."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ArgumentError(f"method={values!r} must be an object with a 'name'")
    options = dict(values)
    name = options.pop("name")
    if name not in METHODS:
        raise unknown("method", name, tuple(METHODS))
    kind = METHODS[name]
    valid = [f.name for f in fields(kind)]
    for option in options:
        if option not in valid:
            raise ArgumentError(
                f"{option}= is no option of method {name!r}; its options are {', '.join(valid)}"
            )
    for option, value in options.items():
        _check_bounded(option, value)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return kind(**given)


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


def scaled(ladder: Ladder, groups: int) -> Ladder:
    """The ladder of `groups` weights that all take the same rung."""
    if groups == 1:
        return ladder
    rungs = tuple(Rung(rung.rank, rung.params * groups) for rung in ladder.rungs)
    return Ladder(ladder.dense * groups, rungs)


def params_at(method: Method, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int:
    """Parameters of the factors at a rank. Raises RankError for a rank that cannot be."""
    O, *rest = shape[0] // groups, *shape[1:]
    n = math.prod(rest)
    if isinstance(method, Tucker):
        r_out, r_in = _pair(rank)
        if r_out > O or r_in > rest[0]:
            raise RankError(
                f"rank={rank} is above the sizes ({O}, {rest[0]}) of the factored modes; use at "
                "most these"
            )
        return groups * (r_out * r_in * math.prod(rest[1:]) + O * r_out + rest[0] * r_in)
    if isinstance(rank, tuple):
        raise RankError(f"rank={rank} is a tuple; {method.word} takes one int")
    if isinstance(method, CP):
        highest = O * n // max(O, *rest)
        if rank > highest:
            raise RankError(
                f"rank={rank} is above {highest}, at which CP writes any {O} x "
                f"{' x '.join(map(str, rest))} tensor exactly; use at most {highest}"
            )
        return groups * rank * (O + sum(rest) + 1)
    limit = min(O, n)
    if rank > limit:
        raise RankError(
            f"rank={rank} is above min(m, n) = {limit} of the {O} x {n} matrix; use at most {limit}"
        )
    return groups * rank * (O + n)


def _pair(rank: LayerRank) -> tuple[int, int]:
    pair = rank if isinstance(rank, tuple) else (rank, rank)
    if len(pair) != 2:
        raise RankError(f"rank={rank} must be an int or two, (r_out, r_in), for Tucker-2")
    return pair


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
