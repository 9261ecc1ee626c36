"""`allocation=`: by which rule a budget is shared out over layers, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorlrf.errors import ArgumentError, unknown

PUBLISHED = ("effective_rank", "spectrum_shape", "block_influence")
"""Rules of others, for comparison."""

LOSSES = ("fisher", "measured", "energy", *PUBLISHED)
"""Rules that predict losses, of which a knapsack makes the ranks."""

RULES_ON_INPUTS = ("fisher", "measured", "block_influence")
"""Of these the ones that look at inputs; the weights alone can serve the others."""

AUTO, UNIFORM = "auto", "uniform"

RULES = (AUTO, *LOSSES, UNIFORM)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How one budget becomes ranks of layers: a rule, and what the ranks must respect.

    Parameters
    ----------
    rule : str
        "auto": by predicted losses where there is calibration, kept only where the loss of the
        whole model on inputs held out is lower than with uniform ranks; uniform without. "fisher":
        losses from gradients of the outputs, one backward pass a batch. "measured": from the
        outputs of the model with one layer cut at a time. "energy": from the spectra alone.
        "effective_rank", "spectrum_shape", "block_influence": as published, for comparison (see
        `tensorlrf.sensitivity`). "uniform": the same share for all.
    least_share : float
        Of its parameters that a layer keeps at the least.
    multiple : int
        Of which ranks are multiples, above it; 16 suits tensor cores.
    together : tuple of str
        Globs; the layers that one of them matches within one parent module have one rank, as
        ``"*.self_attn.[qkv]_proj"``.
    weights : mapping of str to float
        Globs to factors by which the losses of layers are multiplied; "uniform" predicts none.

    Raises
    ------
    ArgumentError
        For a value that cannot be.

    References
    ----------
    Sinha & Zoltners 1979 (the knapsack); Mi et al. 2025 (D-Rank, effective rank); Jaiswal et al.
    2024 (WeLore, shapes of spectra); Lin et al. 2025 (MoDeGPT, influence of blocks).

    Examples
    --------
    >>> allocation = tensorlrf.Allocation(rule="energy", least_share=0.1)
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> plan = tensorlrf.plan(model, keep_params=0.5, skip=[], allocation=allocation)
    >>> all(layer.params_after >= 0.1 * layer.params for layer in plan.layers)
    True
    """

    rule: str = AUTO
    least_share: float = 0.0
    multiple: int = 8
    together: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("allocation", self.rule, RULES)
        if not _is_number(self.least_share) or not 0 <= self.least_share < 1:
            raise ArgumentError(f"least_share={self.least_share!r} must be a share in [0, 1)")
        whole = isinstance(self.multiple, int) and not isinstance(self.multiple, bool)
        if not whole or self.multiple < 1:
            raise ArgumentError(f"multiple={self.multiple!r} must be a positive int such as 8")
        globs = (self.together,) if isinstance(self.together, str) else tuple(self.together)
        if not all(isinstance(glob, str) for glob in globs):
            raise ArgumentError(
                f"together={self.together!r} must be globs such as ('*.[qkv]_proj',)"
            )
        object.__setattr__(self, "together", globs)
        if self.weights and self.rule == UNIFORM:
            raise ArgumentError(
                f"weights={dict(self.weights)!r} are factors of predicted losses, of which "
                f"rule='uniform' has none; choose one of {', '.join((AUTO, *LOSSES))}"
            )
        for glob, weight in self.weights.items():
            if not isinstance(glob, str) or not _is_number(weight) or not weight > 0:
                raise ArgumentError(
                    f"weights={dict(self.weights)!r} must map globs to factors above 0"
                )

    @classmethod
    def of(cls, value: Any) -> Allocation:
        """A word, or what it is already. Raises ArgumentError."""
        if isinstance(value, Allocation):
            return value
        if isinstance(value, str):
            return cls(rule=value)
        raise ArgumentError(
            f"allocation is a {type(value).__name__}; pass one of {', '.join(RULES)}, or a "
            "tensorlrf.Allocation"
        )


@dataclass(frozen=True)
class Candidate:
    """Ranks that were judged on inputs held out.

    Parameters
    ----------
    rule : str
        By which they were shared out.
    loss : float or None
        Of the whole model with its layers cut to them; None where that gives NaN or Inf.
    """

    rule: str
    loss: float | None


@dataclass(frozen=True)
class Allotment:
    """How the ranks of a plan came about, and what is expected of them.

    Parameters
    ----------
    rule : str
        By which the budget was shared out over layers: never "auto", but what that chose.
    unit : str
        Of the losses; empty where none were predicted.
    predicted_loss : float or None
        The sum over layers; None where nothing predicts it, and after an edit.
    candidates : tuple of Candidate
        Of "auto": the allocations that were judged on inputs held out.
    dense_cost, cost : float or None
        What the eligible layers cost when dense and as planned, in bytes or FLOPs, where the budget
        is of these. Of time: seconds of a pass of the whole model, dense and on factors of any
        values, measured in turn.
    promised_cost : float or None
        Of time: seconds of the pass by what the layers save, each alone.
    corrections : int
        How often ranks were chosen anew since the whole model did not keep what layers promised.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> plan = tensorlrf.plan(model, keep_bytes=0.5, skip=[], allocation="energy")
    >>> allotment = plan.allotment
    >>> allotment.rule, allotment.unit, allotment.dense_cost
    ('energy', 'squared relative error of the weight', 32768.0)
    >>> allotment.cost <= 0.5 * allotment.dense_cost
    True
    """

    rule: str = UNIFORM
    unit: str = ""
    predicted_loss: float | None = None
    candidates: tuple[Candidate, ...] = ()
    dense_cost: float | None = None
    cost: float | None = None
    promised_cost: float | None = field(default=None, metadata={"later": True})
    corrections: int = field(default=0, metadata={"later": True})

    def edited(self) -> Allotment:
        """Of a plan whose ranks are no longer those: the numbers are not known any more."""
        return Allotment(self.rule, self.unit)

    @property
    def words(self) -> list[str]:
        """On what is known beyond uniform ranks, and on the time of the whole model."""
        lines = []
        if self.rule != UNIFORM or self.candidates:
            told = [f"ranks by {self.rule}"]
            if self.predicted_loss is not None:
                told.append(f"predicted loss {self.predicted_loss:.3g} {self.unit}")
            if self.candidates:
                judged = (
                    f"{c.rule} {'NaN or Inf' if c.loss is None else f'{c.loss:.3g}'}"
                    for c in self.candidates
                )
                told.append(f"on inputs held out {' and '.join(judged)}")
            lines.append(", ".join(told))
        if self.promised_cost is not None and self.dense_cost and self.cost is not None:
            part = self.cost / self.dense_cost
            rounds = f", after {self.corrections} corrections" if self.corrections else ""
            lines.append(
                f"time of the whole model, on factors of any values: {_ms(self.dense_cost)} to "
                f"{_ms(self.cost)} ({part:.1%}), its layers alone promised "
                f"{_ms(self.promised_cost)}{rounds}"
            )
        return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
