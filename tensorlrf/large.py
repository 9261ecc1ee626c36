"""Decompositions of tensors that do not fit into memory, or lie with several ranks.

f = tensorlrf.large.cp("tensor.npy", 16, memory_limit="512MB")     read in slabs
f = tensorlrf.large.tucker(dtensor, 8)                             one shard a rank
"""

from tensorlrf.decomposition import large as _behind
from tensorlrf.decomposition.large import *  # noqa: F403  # its list of names is this one

__all__ = _behind.__all__
