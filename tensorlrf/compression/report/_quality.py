"""What a user's own metric says of a compressed model, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Judged:
    """By what, which way, and on what `evaluate=` judged models.

    Parameters
    ----------
    metric : str or None
        The name of one of `tensorlrf.metrics`; None of a function of the user's own.
    larger_is_better : bool
        Which way is better.
    on_calibration : bool
        Whether it was on the very data that the models were fitted to. Of a user's own function
        that is not known, and False.

    Examples
    --------
    >>> tensorlrf.compression.Judged("perplexity", larger_is_better=False).drop
    'rise'
    """

    metric: str | None = None
    larger_is_better: bool = True
    on_calibration: bool = False

    @property
    def name(self) -> str:
        """Of the metric, for a table."""
        return self.metric or "metric"

    @property
    def drop(self) -> str:
        """What a change for the worse is called."""
        return "drop" if self.larger_is_better else "rise"

    @property
    def falls(self) -> str:
        """What it does then."""
        return "falls" if self.larger_is_better else "rises"

    def lines(self) -> list[str]:
        """A warning, where there is one."""
        if not self.on_calibration:
            return []
        return [
            f"{self.name} is of the calibration data, which the model is fitted to and so does too "
            "well on: give evaluate= data of its own"
        ]


@dataclass(frozen=True)
class Quality:
    """The metric of `evaluate=`, of the given and of the compressed model.

    Parameters
    ----------
    dense, compressed : float
        What it says, of scores their mean.
    drop, bound : float
        By how much the second is worse than the first, and by no more than what with 95%
        confidence: where there are scores of examples by their paired differences, group by group;
        else by the noise alone, and the same as the drop where there is none.
    examples, groups : int
        Scores, and the groups that they are of; 0 where there is one number for all.
    noise : float
        A difference of two numbers that it gives of one model is no larger, with 95% confidence;
        0 where it gives the same twice.
    evaluations : int
        How often it was called.
    max_drop, resolution : float or None
        The drop that was allowed, and the least one that is told apart from none.
    confirmed_drop, confirmed_bound : float or None
        The drop and its bound on data that the search has not seen.
    judged : Judged
        By what, and which way is better.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> x = torch.rand(32, 64)
    >>> def same(small):
    ...     return (small(x) > 0).eq(model(x) > 0).float().mean(dim=1)
    >>> small, report = tensorlrf.compress(model, keep_params=0.5, evaluate=same)
    >>> report.quality.dense, report.quality.examples
    (1.0, 32)
    """

    dense: float
    compressed: float
    drop: float
    bound: float
    examples: int
    groups: int
    noise: float
    evaluations: int
    max_drop: float | None = None
    resolution: float | None = None
    confirmed_drop: float | None = None
    confirmed_bound: float | None = None
    judged: Judged = field(default_factory=Judged, metadata={"later": True})

    def lines(self) -> list[str]:
        """In words, as in the table of a report."""
        told = (
            f"{self.judged.name}: {self.dense:.4g} dense, {self.compressed:.4g} compressed, a "
            f"{self.judged.drop} of {self.drop:.3g}"
        )
        if self.examples:
            told += (
                f", at most {self.bound:.3g} with 95% confidence by {self.examples:,} examples in "
                f"{self.groups:,} groups"
            )
        elif self.noise:
            told += f", at most {self.bound:.3g} with 95% confidence by its noise alone"
        lines = [told]
        if self.max_drop is not None:
            lines.append(
                f"asked for a {self.judged.drop} of at most {self.max_drop:.3g}, found in "
                f"{self.evaluations} evaluations; below {self.resolution or 0.0:.2g} none is told "
                "apart from none"
            )
        if self.confirmed_drop is not None and self.confirmed_bound is not None:
            lines.append(
                f"confirmed on other data: a {self.judged.drop} of {self.confirmed_drop:.3g}, at "
                f"most {self.confirmed_bound:.3g}"
            )
        if self.noise:
            lines.append(
                "evaluate is not deterministic: two calls on one model differ by up to "
                f"{self.noise:.2g}"
            )
        return lines + self.judged.lines()
