"""How the weight of a layer is to be factored, as a value: a method and all of its options.

A method that serves `compress` has such a class beside its `fit_` function, which says what sizes a
rank gives. Its fields are the options of the decomposition, with their defaults: `config` takes
them from the signature.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from itertools import count
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition.ladder import Ladder, LayerRank, Rung, matrix_ladder
from tensorlrf.decomposition.methods import configured, registered
from tensorlrf.decomposition.rank import Rank
from tensorlrf.decomposition.signatures import refuses_old_words, with_parameters
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import Factors

BUDGET = ("rank", "error")

SWEEPS = ("n_iter_max", "tol")

NO_OPTIONS = {
    *("gram", "mean", "counts", "random_state"),  # what `compress` brings itself
    *("callback", "differentiable"),  # of no use to a layer
    *("mask", "weights"),  # of a user's own tensor
    *("modes", "fixed_modes", "batch_dims"),  # what a layer fixes
}
"""Arguments of a decomposition that mean the same in all, and are no options of a config."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A decomposition with its options, as a value; `rank` and `error` are a layer's own budget.

    With neither, the budget of the whole model decides. The methods that serve `compress` are
    subclasses, each beside its decomposition.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.

    Raises
    ------
    ArgumentError, RankError
        For two budgets, and for an option or a rank that cannot be.

    Examples
    --------
    >>> method = tensorlrf.SVD(rank=64)
    >>> isinstance(method, tensorlrf.compression.Method), str(method), method.to_dict()["rank"]
    (True, 'svd', 64)
    """

    rank: Rank | None = None
    error: float | None = None

    word: ClassVar[str]
    by_share: ClassVar[bool] = False
    """Whether a plan gives a layer its share of the parameters, and the fit finds the rank."""
    in_metric: ClassVar[tuple[str, ...] | None] = None
    """The options that serve fits to inputs, where these are not all."""
    multiplies_moments: ClassVar[bool] = False
    """Whether products with second moments are all that it takes of them: they need be no matrix
    then."""
    of_layers: ClassVar[tuple[str, ...]] = ()
    """The options that the decomposition does not have."""
    of_tensors: ClassVar[tuple[str, ...]] = ()
    """Those of the decomposition that serve a user's own tensor alone, and no layer."""

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
        for f in fields(self):
            object.__setattr__(self, f.name, as_tuples(getattr(self, f.name)))
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
        self.check_options()

    # ---- what a method says of itself ------------------------------------------------------------

    def check_options(self) -> None:
        """Raise ArgumentError for an option that cannot be."""

    def params_at(self, rank: LayerRank, shape: tuple[int, ...]) -> int:
        """Parameters of the factors of a weight `(out, in, *kernel)` at a rank, rising with it."""
        raise NotImplementedError

    def bytes_at(self, rung: Rung, shape: tuple[int, ...], size: int) -> int:
        """Bytes of the factors at a rank, of a weight with elements of `size` bytes."""
        return size * rung.params

    def check_rank(self, rank: LayerRank, shape: tuple[int, ...]) -> None:
        """Raise RankError for a rank that cannot be."""
        if isinstance(rank, tuple):
            raise RankError(f"rank={rank} is a tuple; {self.word} takes one int")

    def ladder_of(self, shape: tuple[int, ...]) -> Ladder:
        """The ranks that a weight of this shape can be given."""
        return Ladder.up(math.prod(shape), lambda rank: self.params_at(rank, shape))

    def rank_without_gain(self, shape: tuple[int, ...]) -> LayerRank:
        """One at which the factors are larger than the weight."""
        return next(r for r in count(1) if self.params_at(r, shape) > math.prod(shape))

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        """Why a weight of this shape cannot have the format; empty where it can."""
        return ""

    def for_shape(self, shape: tuple[int, ...]) -> Method:
        """The method that serves a weight of this shape, where its form is that of another one."""
        return self

    def finds_rank(self, data_aware: bool) -> bool:
        """Whether the decomposition finds the least rank within an error better than by bisection.

        Bisection is over `ladder_of`; with inputs and without them.
        """
        return False

    def rank_of(self, factors: Factors) -> LayerRank:
        """The rank with which `rank=` gives such factors."""
        return factors.rank

    @staticmethod
    def sizes_of(factors: Any) -> dict[str, Any]:
        """The options with which other weights of the shape get factors of the same sizes.

        Empty where these follow from the rank. The groups of a convolution have them in common.
        """
        return {}

    @property
    def fits_inputs(self) -> bool:
        """Whether it is to be fitted to inputs."""
        return registered(self.word).takes("gram")

    @property
    def sweeps_without_inputs(self) -> bool:
        """Whether n_iter_max= and tol= are of a fit without inputs as well."""
        return not registered(self.word).sweeps_in_metric

    @property
    def takes_any_form(self) -> bool:
        """Whether gram= may be any quadratic form of what is left, not moments of inputs alone."""
        return False

    def gram_of(self, moments: Any, weight: Tensor) -> Any:
        """What gram= is of the inputs with these second moments, for a weight to be fitted."""
        return moments

    def any_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> Factors | None:
        """Factors at a rank of tensors that `values(*shape)` gives.

        Times do not depend on values. None where only a fit tells the sizes.
        """
        return None

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> Factors | None:
        """Factors for training from the start, of tensors that `values(*shape)` gives.

        The rank is as the decomposition takes it. Sizes that a fit would choose by the weight are
        those that cost least. None where the method has none to offer.
        """
        return None

    # ---- what all have in common -----------------------------------------------------------------

    @property
    def budgeted(self) -> bool:
        """Whether it brings a budget of its own."""
        return self.rank is not None or self.error is not None

    def options(self) -> dict[str, Any]:
        """What the decomposition is called with, beside rank, error and data."""
        others = (*BUDGET, *self.of_layers)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}

    def _read_options(self) -> dict[str, Any]:
        """Those of `options` that its solver reads."""
        return self.options()

    def ladder(self, shape: tuple[int, ...], groups: int) -> Ladder:
        """The ranks that the method can give a weight of this shape, in its `groups`."""
        return self.ladder_of((shape[0] // groups, *shape[1:])).times(groups)

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        """Parameters of the factors at a rank; None where only the fit can tell.

        Raises RankError for a rank that cannot be.
        """
        each = (shape[0] // groups, *shape[1:])
        self.check_rank(rank, each)
        return groups * self.params_at(rank, each)

    def decompose(self, weight: Tensor, gram: Any, random_state: Any) -> Factors:
        """Factors of a weight, in the metric of its inputs where they are known."""
        method = registered(self.word)
        options = self._read_options()
        if gram is not None and self.in_metric is not None:
            options = {name: options[name] for name in self.in_metric}
        if gram is None and not self.sweeps_without_inputs:
            options = {k: v for k, v in options.items() if k not in SWEEPS}
        if method.draws:
            options["random_state"] = random_state
        if method.takes("gram"):
            options["gram"] = gram
        fixed = method.on.get("conv" if weight.ndim > 2 else "linear", {})
        return method.for_layers(weight, self.rank, error=self.error, **{**fixed, **options})

    def with_budget(self, *, rank: Rank | None = None, error: float | None = None) -> Self:
        """The same with another budget."""
        return replace(self, rank=rank, error=error)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the word and every option, so that a plan does not depend on defaults."""
        return {"name": self.word, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}

    def __str__(self) -> str:
        """The word, and what differs from the defaults."""
        changed: list[str] = []
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if f.name not in BUDGET and value != default:
                changed.append(f"{f.name}={_plain(value)}")
        return f"{self.word}({', '.join(changed)})" if changed else self.word


@dataclass(frozen=True, kw_only=True)
class Structured(Method):
    """What the structured formats share.

    Their parameters are known when they are fitted: a plan gives a layer its share of them, and the
    fit finds sizes and ranks within it.

    Parameters
    ----------
    rank, error
        As of every `Method`.

    Examples
    --------
    >>> issubclass(tensorlrf.Kron, tensorlrf.compression.Structured)
    True
    """

    by_share: ClassVar[bool] = True

    def check_options(self) -> None:
        own: Any = self
        check_iteration(getattr(own, "n_iter_max", None), getattr(own, "tol", None))

    def least_params(self, shape: tuple[int, ...]) -> int:
        """Of the smallest form that a weight of this shape can have."""
        raise NotImplementedError

    def ladder_of(self, shape: tuple[int, ...]) -> Ladder:
        """A rung is a number of parameters, as of a low-rank matrix, from the least on."""
        whole, least = matrix_ladder(shape[0], math.prod(shape[1:])), self.least_params(shape)
        return Ladder(whole.dense, tuple(rung for rung in whole.rungs if rung.params >= least))

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return linear_only(self.word, shape)

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        return None


def linear_only(word: str, shape: tuple[int, ...]) -> str:
    """Why a convolution cannot have the format of a method that is not declared for any; empty for
    a matrix."""
    conv = len(shape) > 2 and "conv" not in registered(word).on
    return f"{word} serves linear layers only" if conv else ""


def for_matrix(method: Method) -> Method:
    """The SVD with the same budget, the one format of a matrix."""
    svd: type[Method] = registered("svd").config
    return svd(rank=method.rank, error=method.error)


M = TypeVar("M", bound=Method)


def config(name: str) -> Callable[[type[M]], type[M]]:
    """Declare the class below as the config of the method `name`, which serves `compress` then.

    As in::

        @config("cur")
        class Cur(Method):
            "Columns and rows of the weight; the options are those of `cur`."

            def params_at(self, rank, shape): ...

    It becomes a frozen dataclass with the options of the decomposition, as a layer is given to it:
    their names, order and defaults. What the class annotates itself has that annotation; an option
    of its own, with a default, is one of layers alone.

    Parameters
    ----------
    name : str
        Of a method that is declared.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ArgumentError
        For what is no `Method`, where the method has a config, and where an option has no default
        or a name that configs use.
    """

    def declare(kind: type[M]) -> type[M]:
        if not issubclass(kind, Method):
            raise ArgumentError(f"{kind.__name__} must be a subclass of Method")
        own = dict(inspect.get_annotations(kind))
        options: dict[str, Any] = {}
        _, *given = inspect.signature(registered(name).for_layers).parameters.values()
        for option in given:
            if option.name not in (*BUDGET, *NO_OPTIONS, *kind.of_tensors):
                if hasattr(Structured, option.name):
                    raise ArgumentError(
                        f"{option.name}= of {name!r} is a word of configs; rename it"
                    )
                if option.default is option.empty:
                    raise ArgumentError(
                        f"{option.name}= of {name!r} has no default, which a config needs; give it "
                        "one by name"
                    )
                options[option.name] = own.pop(option.name, option.annotation)
                setattr(kind, option.name, option.default)
        kind.of_layers = tuple(own)
        kind.__annotations__ = {**options, **own}
        kind.word = name
        decompose = inspect.unwrap(registered(name).for_layers)
        docs = (Method.__doc__, decompose.__doc__)
        kind.__doc__ = with_parameters(kind.__doc__, [*BUDGET, *options, *own], docs)
        made = dataclass(frozen=True, kw_only=True)(kind)
        setattr(made, "__init__", refuses_old_words(made.__init__))  # noqa: B010
        configured(name, made)
        return made

    return declare


def as_tuples(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
