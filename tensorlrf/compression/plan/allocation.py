"""`allocation=`: by which rule a budget is shared out over layers, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorlrf.errors import ArgumentError, unknown

LOSSES = ("fisher", "measured", "energy")
"""Rules that predict losses, of which a knapsack makes the ranks."""

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
        "uniform": the same share for all.
    least_share : float
        Of its parameters that a layer keeps at the least.
    multiple : int
        Of which ranks are multiples, above it; 16 suits tensor cores.
    together : tuple of str
        Globs; the layers that one of them matches within one parent module have one rank, as
        "*.self_attn.[qkv]_proj".
    weights : mapping of str to float
        Globs to factors by which the losses of layers are multiplied.

    Raises
    ------
    ArgumentError
        For a value that cannot be.

    References
    ----------
    Sinha & Zoltners 1979 (the knapsack).

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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
