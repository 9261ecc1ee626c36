"""How much a mean difference may be, by the differences that were seen.

Examples of one group (crops of a picture, sentences of a document) are not independent: groups are
what counts. Student's t on the residuals of groups (Liang & Zeger 1986) is right where most of them
differ. Where few do, as with answers that are right or wrong, the variance that was seen tells too
little, and of none nothing at all: then the bound is that on how many more could have differed
(Clopper & Pearson 1934), each by as much as those that did.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def excess(differences: Floats, groups: Ints, level: float, size: float) -> float:
    """By how much the expected difference may be above the mean that was seen, at this one-sided
    confidence; infinite where one group is all there is.

    differences  (n,)
    groups       (n,), the number of the group of each, from 0 on
    size         how much a group may differ, for when none does
    """
    sums, counts = np.bincount(groups, weights=differences), np.bincount(groups)
    n, clusters = len(differences), len(counts)
    if clusters < 2:
        return math.inf
    error = clustered_error(deviations(np.asarray(sums, np.float64), counts))
    differing = np.bincount(groups, weights=differences != 0) > 0
    k = int(differing.sum())
    if k:
        scaled = sums[differing] * clusters / n
        size = math.sqrt(float(scaled @ scaled) / k)
    unseen = most_events(k, clusters, level) - k / clusters
    return max(student(level, clusters - 1) * error, size * unseen)


def deviations(sums: Floats, counts: Floats | Ints) -> Floats:
    """By how much each group moves the mean of all, sum(sums) / sum(counts); 0 where nothing is
    counted.

    sums    (groups,)
    counts  (groups,), by which the sums are divided: examples, or what weighs them
    """
    total = float(counts.sum())
    if not total:
        return np.zeros(len(sums))
    return np.asarray((sums - counts * (float(sums.sum()) / total)) / total, np.float64)


def clustered_error(moved: Floats) -> float:
    """The standard error of a mean, by the `deviations` of two groups or more (Liang & Zeger
    1986)."""
    n = len(moved)
    return math.sqrt(n / (n - 1) * float(moved @ moved))


def most_events(k: int, n: int, level: float) -> float:
    """The highest probability of an event of which k were seen in n, at this confidence."""
    if k >= n:
        return 1.0
    at = np.arange(1, k + 1)
    logs = np.concatenate([[0.0], np.log((n - at + 1) / at).cumsum()])  # of C(n, j)
    j = np.arange(k + 1)
    low, high = k / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        if p >= 1:
            break
        below = np.exp(logs + j * math.log(p) + (n - j) * math.log1p(-p)).sum()
        low, high = (p, high) if below > 1 - level else (low, p)
    return high


def student(level: float, freedom: int) -> float:
    """The quantile of Student's t: exact for one and two degrees of freedom, else by its expansion
    about the normal one (Abramowitz & Stegun 26.7.5), to a thousandth."""
    if freedom == 1:
        return math.tan(math.pi * (level - 0.5))
    if freedom == 2:
        return (2 * level - 1) * math.sqrt(2 / (4 * level * (1 - level)))
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    powers = [float(freedom) ** -(k + 1) for k in range(len(terms))]
    return z + sum(t * power for t, power in zip(terms, powers, strict=True))
