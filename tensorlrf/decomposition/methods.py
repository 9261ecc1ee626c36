"""Where a decomposition is declared: once, beside its `fit_` function, for all who ask for it by
name."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast, get_args

from torch import Tensor

from tensorlrf.decomposition._fit import Fit, short_name
from tensorlrf.decomposition._fit import factors_of as factors_of
from tensorlrf.decomposition.linalg.threads import entries, problem
from tensorlrf.decomposition.signatures import check_words, without_measure
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import Factors
from tensorlrf.factors.autocast import autocast_is_on, without_autocast

Kind = Literal["tensor", "linear", "conv", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYERS: tuple[Kind, ...] = KINDS[1:]
Use = Kind | Literal["scree", "compress"]

ENTRY_POINTS = "tensorlrf.methods"
"""The group of entry points in which a package declares methods of its own, each under its name;
what an entry point names is imported, and registers itself by `method`."""

Fitting = TypeVar("Fitting", bound=Callable[..., Fit[Any]])
Decomposition = Callable[..., Factors]
"""From a weight, a rank or an error, and options by keyword, to factors."""
D = TypeVar("D", bound=Decomposition)
Unfolded = Iterable[tuple[str, Sequence[tuple[Tensor, int]]]]
"""Unfoldings in sets whose singular values are truncated together: what a set is called, and its
tensors, each with the mode of its rows."""
U = TypeVar("U", bound=Callable[..., Unfolded])
P = TypeVar("P", bound=Callable[..., Any])

_LAST = sys.maxsize


@dataclass(frozen=True)
class Registered:
    """A decomposition as it was declared.

    name     its word
    fit      the function that reports: (tensor, rank, error=, **options) to a `Fit`
    gives    the formats of its factors
    on       what it serves -> the options that it is called with there, unless the user says
             otherwise; "tensor" is a tensor of the user's own, the others are weights of layers
    layer    how it is called for the weight of a layer, where that is not `function` itself
    truncates  the unfoldings whose singular values it cuts off, where it does that
    completes  how it is posed to entries of which some are not known, for others that sweep it
    config   the class of its options for `compress`, where it serves that; see `config.py`
    estimates   whether it takes rank="auto", an analytic estimate
    order    where it stands among the methods of tensors, and among those of layers
    sweeps_in_metric  whether n_iter_max= and tol= are of sweeps that it makes with gram= alone
    law      what always holds of its results, in words
    measured  where that is measured, see `method`
    """

    name: str
    fit: Callable[..., Fit[Any]]
    gives: tuple[type[Factors], ...]
    on: Mapping[Kind, Mapping[str, Any]]
    layer: Decomposition | None = None
    truncates: Callable[..., Unfolded] | None = None
    completes: Callable[..., Any] | None = None
    config: Any = None
    estimates: bool = False
    order: tuple[int, int] = field(default=(_LAST, _LAST))
    sweeps_in_metric: bool = False
    law: str = ""
    measured: str = ""

    @property
    def function(self) -> Decomposition:
        """The factors alone: what stands beside `fit` under its name without "fit_"."""
        beside = vars(sys.modules[self.fit.__module__]).get(short_name(self.fit))
        found: Decomposition = beside if callable(beside) else factors_of(self.fit)
        return found

    @property
    def for_layers(self) -> Decomposition:
        """What is called for the weight of a layer."""
        return self.layer or self.function

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers: it takes random_state=."""
        return self.takes("random_state")

    @property
    def with_modes(self) -> bool:
        """Whether it takes modes=."""
        return self.takes("modes")

    def serves(self, *uses: Use) -> bool:
        """Whether it is declared for any of these."""
        more = {"scree": self.truncates, "compress": self.config}
        return not {*self.on, *(use for use, served in more.items() if served)}.isdisjoint(uses)

    def takes(self, option: str) -> bool:
        """Whether `fit` has an option of that name."""
        return option in inspect.signature(self.fit).parameters


_METHODS: dict[str, Registered] = {}


def method(
    name: str,
    *,
    gives: type[Factors] | tuple[type[Factors], ...],
    on: Collection[Kind] | Mapping[Kind, Mapping[str, Any]],
    estimates: bool = False,
    order: tuple[int, int] = (_LAST, _LAST),
    sweeps_in_metric: bool = False,
    law: str = "",
    measured: str = "",
) -> Callable[[Fitting], Fitting]:
    """Declare the function below as the decomposition called `name`; the function stays as it is.

    As in::

        @method("cur", gives=Skeleton, on={"tensor", "linear", "conv"})
        def fit_cur(tensor, rank=None, *, error=None, random_state=None) -> Fit[Skeleton]: ...

    An argument `measure=` is for the short function alone, see `factors_of`: signatures are silent
    about it.

    Parameters
    ----------
    name : str
        Its word.
    gives : type or tuple of type
        The formats of its factors.
    on : set of str, or Mapping
        What it serves -> the options that it is called with there, unless the user says otherwise:
        "tensor" is a tensor of the user's own, "linear", "conv" and "embedding" are weights of
        layers.
    estimates : bool
        Whether it takes `rank="auto"`, an analytic estimate.
    order : pair of int
        Where it stands among the methods of tensors, and among those of layers; those without an
        order come last, as they register.
    sweeps_in_metric : bool
        Whether `n_iter_max=` and `tol=` are of sweeps that it makes with `gram=` alone.
    law : str
        What always holds of its results, in a few words for the table of methods.
    measured : str
        The name of a result file, "kron", or that and the beginning of a case in it, "nonnegative:
        NMF", from which the table takes its figure.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ArgumentError
        Where the name is taken, for what is not called `fit_...`, and for a kind that is none.
    """
    kinds = dict(on) if isinstance(on, Mapping) else {kind: {} for kind in on}
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("on", kind, KINDS)
    serves = {kind: MappingProxyType(dict(kinds[kind])) for kind in KINDS if kind in kinds}
    formats = gives if isinstance(gives, tuple) else (gives,)

    def declare(function: Fitting) -> Fitting:
        short_name(function)
        valid = frozenset(inspect.signature(function).parameters)

        @functools.wraps(function)
        def fit(*args: Any, **kwargs: Any) -> Fit[Any]:
            check_words(kwargs, valid, name)
            if autocast_is_on():
                with without_autocast():
                    return fit(*args, **kwargs)
            with problem(entries((*args, *kwargs.values()))):
                return function(*args, **kwargs)

        if name in _METHODS:
            raise ArgumentError(
                f"name={name!r} is registered already, for {_METHODS[name].fit.__qualname__}; "
                "choose another"
            )
        _METHODS[name] = Registered(
            name,
            fit,
            formats,
            MappingProxyType(serves),
            estimates=estimates,
            order=order,
            sweeps_in_metric=sweeps_in_metric,
            law=law,
            measured=measured,
        )
        vars(fit)["__signature__"] = without_measure(inspect.signature(function))
        return cast(Fitting, fit)

    return declare


def configured(name: str, config: type[Any]) -> None:
    """Declare that the method `name` serves `compress`, with options of that class."""
    _add(name, config=config)


def for_layers(name: str, options_of: Callable[..., Any] | None = None) -> Callable[[D], D]:
    """Declare that the weights of layers are given to the function below by the method `name`.

    Parameters
    ----------
    name : str
        Of a method that is declared.
    options_of : callable, optional
        The function whose options it hands on, where its own signature does not have them.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ArgumentError
        Where the method is not declared, or has such a function.
    """

    def declare(decompose: D) -> D:
        if options_of is not None:
            vars(decompose)["__wrapped__"] = options_of
        _add(name, layer=decompose)
        return decompose

    return declare


def truncates(name: str) -> Callable[[U], U]:
    """Declare that the method `name` truncates what the function below gives; `scree` shows it.

    The function takes the tensor, and options that `scree` has. It gives unfoldings in sets whose
    singular values are truncated together: what a set is called, and its tensors, each with the
    mode of its rows.

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
        Where the method is not declared, or has such a function.
    """

    def declare(unfoldings: U) -> U:
        _add(name, truncates=unfoldings)
        return unfoldings

    return declare


def completes(name: str) -> Callable[[P], P]:
    """Declare that the method `name` is posed to observed entries by the function below.

    It takes what is observed, a rank as the method does, and a generator, and gives a `Posed`.

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
        Where the method is not declared, or has such a function.
    """

    def declare(pose: P) -> P:
        _add(name, completes=pose)
        return pose

    return declare


def _add(name: str, **more: Any) -> None:
    """To what a method has declared of itself, once each."""
    (entry,) = more
    had = getattr(registered(name), entry)
    if had is not None:
        raise ArgumentError(
            f"name={name!r} has its {entry} already, {had.__qualname__}; a method has one"
        )
    _METHODS[name] = replace(_METHODS[name], **more)


def names(*uses: Use) -> tuple[str, ...]:
    """The words of the methods that serve any of these uses, of all without one."""
    of_layers = bool(uses) and set(LAYERS).issuperset(uses)
    served = [m for m in _METHODS.values() if not uses or m.serves(*uses)]
    return tuple(m.name for m in sorted(served, key=lambda m: m.order[of_layers]))


def find(
    name: str, *uses: Use, argument: str = "method", others: Collection[str] = ()
) -> Registered:
    """The method that a user asks for by name, one of those that serve any of `uses`.

    argument   where the user asks
    others     the words to list, where these are not the names of `uses`

    A word that is not known is looked up among the entry points of installed packages, and what
    stands there is imported. Words from files are looked up in `registered`.
    Raises ArgumentError that lists the names, UnsupportedError where an entry point has a fault.
    """
    if not isinstance(name, str):
        raise unknown(argument, name, others or names(*uses))
    if name not in _METHODS:
        _load(name)
    found = _METHODS.get(name)
    if found is None or (uses and not found.serves(*uses)):
        raise unknown(argument, name, (*(others or names(*uses)), *installed()))
    return found


def installed() -> tuple[str, ...]:
    """The words of installed packages that nobody has asked for, in the order of the alphabet."""
    return tuple(sorted({e.name for e in entry_points(group=ENTRY_POINTS)} - _METHODS.keys()))


def declared_by(name: str) -> tuple[str, str] | None:
    """The package and the module that an entry point of that name stands for, not imported; None
    where there is none."""
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return (point.dist.name if point.dist else point.module), point.module
    return None


def registered(name: str) -> Registered:
    """The method of that name among those that are there: nothing is imported for it. Raises
    ArgumentError that lists the names."""
    if name not in _METHODS:
        raise unknown("method", name, names())
    return _METHODS[name]


def _load(name: str) -> None:
    """Import what installed packages declare under that name."""
    points = {point.value: point for point in entry_points(group=ENTRY_POINTS, name=name)}
    if len(points) > 1:
        raise UnsupportedError(
            f"method {name!r} is declared by {len(points)} installed packages, in the modules "
            f"{', '.join(sorted(points))}; remove all but one of them"
        )
    for point in points.values():
        whose = f"method {name!r} of the entry point {point.value!r}"
        try:
            point.load()
        except Exception as error:
            # What a module declared before it failed would be in the way of the next try.
            for word in [w for w, m in _METHODS.items() if m.fit.__module__ not in sys.modules]:
                del _METHODS[word]
            raise UnsupportedError(f"{whose} cannot be loaded: {error}") from error
        if name not in _METHODS:
            raise UnsupportedError(
                f"{whose} is not there after its import; its module must declare it, "
                f"@method({name!r}, ...)"
            )
