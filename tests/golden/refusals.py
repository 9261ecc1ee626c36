"""A decomposition on everything that it may refuse."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tensorlrf import decomposition, nn
from tensorlrf.decomposition import Fit
from tensorlrf.errors import TensorlrfError
from tensorlrf.factors import Factors
from tests.golden.samples import whole

SHAPE = (16, 12)
METHODS = (
    *("svd", "cp", "tucker", "tt", "tt_matrix", "tr", "kron"),
    *("blr", "hierarchical", "hodlr", "monarch", "blast"),
)
SWEPT = ("cp", "tr", "blast")
"""Those that sweep for long; two sweeps show as much here."""
BY_SHARE = ("blr", "hierarchical", "hodlr", "monarch", "blast")


def weight(*shape: int) -> Tensor:
    """Whole numbers, of full rank."""
    return whole(torch.empty(*(shape or SHAPE))) + 9 * torch.eye(*SHAPE).reshape(shape or SHAPE)


def spoiled(value: float) -> Tensor:
    """A weight with that number in one place."""
    tensor = weight()
    tensor[3, 4] = value
    return tensor


WEIGHTS: dict[str, Callable[[], Any]] = {
    "a list": lambda: [[1.0, 2.0]],
    "None": lambda: None,
    "int64": lambda: torch.ones(SHAPE, dtype=torch.int64),
    "complex": lambda: torch.ones(SHAPE, dtype=torch.complex64),
    "NaN": lambda: spoiled(float("nan")),
    "Inf": lambda: spoiled(float("inf")),
    "no mode": lambda: torch.ones(()),
    "one mode": lambda: torch.ones(4),
    "three modes": lambda: weight(4, 4, 12),
    "four modes": lambda: weight(4, 4, 4, 3),
    "empty": lambda: torch.ones(0, 4),
    "zeros": lambda: torch.zeros(SHAPE),
    "one entry": lambda: torch.ones(1, 1),
    "sparse": lambda: weight().to_sparse(),
    "on meta": lambda: torch.ones(SHAPE, device="meta"),
}
RANKS: dict[str, dict[str, Any]] = {
    **{
        f"rank={rank!r}": {"rank": rank}
        for rank in (
            *(0, -1, 1000, True, 1.5, -0.5, 0.0, "auto", "same", "much", [2], (), (2,), (2, 2)),
            *((0, 1), (2, 2.5), 1e-9, float("nan")),
        )
    },
    **{f"error={error!r}": {"error": error} for error in (0, -0.1, 1.5, "small", True, 2)},
    "neither": {},
    "both": {"rank": 2, "error": 0.1},
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "n_iter_max": (0, -1, 1.5, "many", True),
    "tol": (-1.0, 2.0, "small", float("nan")),
    "init": ("unknown", 3),
    "solver": ("unknown", 3),
    "n_restarts": (0, 1.5),
    "n_samples": (0, -3, 1.5),
    "n_power_iter": (-1, 1.5),
    "n_oversample": (-1, 1.5),
    "random_state": ("seed", 1.5, -1),
    "modes": ((), (0, 0), (2,), (-1,), "01"),
    "fixed_modes": ((2,), (-3,), (0, 1), "0"),
    "shapes": (((3, 5), (7, 2)), (16, 12), "44"),
    "sizes": (((4, 5), (4, 3)), ((16,),), "44"),
    "row_sizes": ((4, 5), (), (0, 16)),
    "column_sizes": ((4, 5), (), (0, 12)),
    "order": (0, -1, 1.5, 50),
    "block": (0, -4, 1.5, (4,), 1000),
    "blocks": (0, -4, 1.5, (4,), 1000),
    "leaf": (0, -4, 1.5),
    "admissible": ("unknown", 3),
    "batch_dims": (-1, 1.5, 3),
    "differentiable": ("yes",),
    "mask": (torch.ones(3, 3), "mask"),
    "callback": (3,),
}
GRAMS: dict[str, dict[str, Any]] = {
    "a list": {"gram": [1.0]},
    "of other inputs": {"gram": torch.eye(5)},
    "no matrix": {"gram": torch.ones(12)},
    "int64": {"gram": torch.eye(12, dtype=torch.int64)},
    "with NaN": {"gram": torch.full((12, 12), float("nan"))},
    "negative": {"gram": -torch.eye(12)},
    "not symmetric": {"gram": torch.eye(12).roll(1, 0)},
    "zeros": {"gram": torch.zeros(12, 12)},
    "and a mean of other inputs": {"gram": torch.eye(12), "mean": torch.zeros(5)},
    "and too large a mean": {"gram": torch.eye(12), "mean": torch.full((12,), 9.0)},
    "of a mean alone": {"mean": torch.zeros(12)},
    "and an error": {"gram": torch.eye(12), "error": 0.5, "rank": None},
    "and no sweeps": {"gram": torch.eye(12), "n_iter_max": 0},
    "and sweeps": {"gram": torch.eye(12), "n_iter_max": 3},
    "and a mask": {"gram": torch.eye(12), "mask": torch.ones(SHAPE)},
    "and a graph": {"gram": torch.eye(12), "differentiable": True},
}


def refusals(word: str) -> Iterator[str]:
    """What one method was given and what came of it, a line each."""
    short, fit = getattr(decomposition, word), getattr(decomposition, f"fit_{word}")
    quick = {"n_iter_max": 2} if word in SWEPT else {}
    budget = {"rank": 0.6 if word in BY_SHARE else 3, **quick}
    known = inspect.signature(short).parameters
    for name, make in WEIGHTS.items():
        yield f"weight {name}: {told(short, make(), **budget)}"
    for name, given in RANKS.items():
        yield f"{name}: {told(short, weight(), **quick, **given)}"
    for option, values in OPTIONS.items():
        for value in values if option in known else ():
            yield f"{option}={_named(value)}: {told(short, weight(), **{**budget, option: value})}"
    for name, given in GRAMS.items():
        if set(given) <= set(known):
            yield f"gram {name}: {told(short, weight(), **{**budget, **given})}"
    yield f"sweeps=3: {told(short, weight(), **budget, sweeps=3)}"
    yield f"fit_{word}: {', '.join(_differences(short, fit)) or 'takes the same'}"
    rank = 0.6 if word in BY_SHARE else 2
    layers = {
        "linear": torch.nn.Linear(12, 16),
        "convolution": torch.nn.Conv2d(8, 8, 3),
        "grouped": torch.nn.Conv2d(8, 8, 3, groups=2),
        "embedding": torch.nn.Embedding(16, 12),
        "normalisation": torch.nn.LayerNorm(4),
    }
    for name, layer in layers.items():
        yield f"factorize {name}: {told(nn.factorize, layer, word, rank)}"
        yield f"factorize {name}, odd=1: {told(nn.factorize, layer, word, rank, odd=1)}"


def told(function: Callable[..., Any], *given: Any, **named: Any) -> str:
    """What comes of a call: the type of the value, or the error and, where it is ours, what it
    says: what torch and Python say is theirs to change."""
    try:
        value = function(*given, **named)
    except TensorlrfError as error:
        return f"{type(error).__name__}: {_ours(str(error))}"
    except Exception as error:
        return type(error).__name__
    if isinstance(value, Fit):
        value = value.factors
    return (
        f"{type(value).__name__} of {value.shape}"
        if isinstance(value, Factors)
        else type(value).__name__
    )


def _ours(message: str) -> str:
    """Without what an error of torch says inside it."""
    return re.sub(r"(RuntimeError|Expected one of).*", r"\1 ...", message, flags=re.S)


def _differences(short: Callable[..., Any], fit: Callable[..., Any]) -> list[str]:
    """What one of the two takes and the other does not, or takes otherwise by default."""
    mine, other = inspect.signature(short).parameters, inspect.signature(fit).parameters
    names = [n for n in mine if n not in other] + [n for n in other if n not in mine]
    return names + [n for n in mine if n in other and mine[n].default != other[n].default]


def _named(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
