"""Formats: what travels between a decomposition and the op that runs it."""

from tensorlrf.factors._banded import BandedLowRank
from tensorlrf.factors._base import FORMATS, Factors
from tensorlrf.factors._batch import Batch
from tensorlrf.factors._blast import BlastFactors
from tensorlrf.factors._blocks import BlockLowRank
from tensorlrf.factors._cp import CPFactors
from tensorlrf.factors._grouped import Grouped
from tensorlrf.factors._kronecker import KroneckerSum
from tensorlrf.factors._lowrank import LowRank
from tensorlrf.factors._monarch import MonarchFactors
from tensorlrf.factors._tensorly import from_tensorly, to_tensorly
from tensorlrf.factors._tr import TRFactors
from tensorlrf.factors._tt import TTFactors, TTMatrix
from tensorlrf.factors._tucker import TuckerFactors
from tensorlrf.factors.leaves._composite import Composite
from tensorlrf.factors.leaves._dictionary import Dictionary
from tensorlrf.factors.leaves._quantized import Quantized
from tensorlrf.factors.leaves._skeleton import Skeleton
from tensorlrf.factors.leaves._sparse import SparseTensor
from tensorlrf.factors.tiling import Block
from tensorlrf.factors.trees._block_term import BlockTerm
from tensorlrf.factors.trees._ht import HTFactors
from tensorlrf.factors.trees._parafac2 import Parafac2Factors

__all__ = [
    "FORMATS",
    "BandedLowRank",
    "Batch",
    "BlastFactors",
    "Block",
    "BlockLowRank",
    "BlockTerm",
    "CPFactors",
    "Composite",
    "Dictionary",
    "Factors",
    "Grouped",
    "HTFactors",
    "KroneckerSum",
    "LowRank",
    "MonarchFactors",
    "Parafac2Factors",
    "Quantized",
    "Skeleton",
    "SparseTensor",
    "TRFactors",
    "TTFactors",
    "TTMatrix",
    "TuckerFactors",
    "from_tensorly",
    "to_tensorly",
]
