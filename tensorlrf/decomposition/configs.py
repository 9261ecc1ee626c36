"""The configs of the methods that serve `compress`: SVD(metric="diagonal"), Kron(shapes=...)."""

from tensorlrf.decomposition.blocks._blast import Blast
from tensorlrf.decomposition.blocks._blr import BLR
from tensorlrf.decomposition.blocks._group_reduce import GroupReduce
from tensorlrf.decomposition.blocks._hierarchical import Hierarchical
from tensorlrf.decomposition.blocks._monarch import Monarch
from tensorlrf.decomposition.codes._dictionary import DictionaryLearning
from tensorlrf.decomposition.codes._lplr import LPLR
from tensorlrf.decomposition.config import Method, Structured
from tensorlrf.decomposition.cp._cp import CP
from tensorlrf.decomposition.kron._kron import Kron
from tensorlrf.decomposition.skeleton._cur import CUR
from tensorlrf.decomposition.skeleton._interpolative import Interpolative
from tensorlrf.decomposition.sums._low_rank_plus_sparse import LowRankPlusSparse
from tensorlrf.decomposition.svd._svd import SVD
from tensorlrf.decomposition.trains._tr import TR
from tensorlrf.decomposition.trains._tt_matrix import TT
from tensorlrf.decomposition.tucker._block_term import BlockTerms
from tensorlrf.decomposition.tucker._tucker import Tucker

__all__ = [
    "BLR",
    "CP",
    "CUR",
    "LPLR",
    "SVD",
    "TR",
    "TT",
    "Blast",
    "BlockTerms",
    "DictionaryLearning",
    "GroupReduce",
    "Hierarchical",
    "Interpolative",
    "Kron",
    "LowRankPlusSparse",
    "Method",
    "Monarch",
    "Structured",
    "Tucker",
]
