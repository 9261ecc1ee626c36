"""What a user's own metric says of a compressed model, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quality:
    """The metric of `evaluate=`, of the given and of the compressed model.

    Parameters
    ----------
    dense, compressed : float
        What it says, of scores their mean.
    drop, bound : float
        By how much the second is below the first, and by no more than what with 95% confidence:
        where there are scores of examples by their paired differences, group by group; else by the
        noise alone, and the same as the drop where there is none.
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

    def lines(self) -> list[str]:
        """In words, as in the table of a report."""
        told = (
            f"metric: {self.dense:.4g} dense, {self.compressed:.4g} compressed, a drop of "
            f"{self.drop:.3g}"
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
                f"asked for a drop of at most {self.max_drop:.3g}, found in {self.evaluations} "
                f"evaluations; below {self.resolution or 0.0:.2g} none is told apart from none"
            )
        if self.confirmed_drop is not None and self.confirmed_bound is not None:
            lines.append(
                f"confirmed on other data: a drop of {self.confirmed_drop:.3g}, at most "
                f"{self.confirmed_bound:.3g}"
            )
        if self.noise:
            lines.append(
                "evaluate is not deterministic: two calls on one model differ by up to "
                f"{self.noise:.2g}"
            )
        return lines
