"""Formats: what travels between a decomposition and the op that runs it."""

from tensorlrf.factors._base import FORMATS, Factors
from tensorlrf.factors._cp import CPFactors
from tensorlrf.factors._grouped import Grouped
from tensorlrf.factors._lowrank import LowRank
from tensorlrf.factors._tensorly import from_tensorly, to_tensorly
from tensorlrf.factors._tucker import TuckerFactors

__all__ = [
    "FORMATS",
    "CPFactors",
    "Factors",
    "Grouped",
    "LowRank",
    "TuckerFactors",
    "from_tensorly",
    "to_tensorly",
]
