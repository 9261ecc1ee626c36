"""What layers on each format do, told once: one file a format.

To have layers run on a format of your own, subclass `Form`, give the paths of the layers that it
has as stages, and `register_form` it.
"""

from tensorlrf.factors import (
    BandedLowRank,
    BlastFactors,
    BlockLowRank,
    BlockTerm,
    Composite,
    CPFactors,
    Dictionary,
    Grouped,
    KroneckerSum,
    LowRank,
    MonarchFactors,
    Quantized,
    Skeleton,
    SparseTensor,
    TRFactors,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tensorlrf.ops.forms._banded import BandedForm
from tensorlrf.ops.forms._blast import BlastForm
from tensorlrf.ops.forms._block_term import BlockTermForm
from tensorlrf.ops.forms._blr import BLRForm
from tensorlrf.ops.forms._cp import CPForm
from tensorlrf.ops.forms._form import Form, form_of, formats_with, register_form
from tensorlrf.ops.forms._grouped import GroupedForm
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms._kron import KroneckerForm
from tensorlrf.ops.forms._lowrank import LowRankForm
from tensorlrf.ops.forms._monarch import MonarchForm
from tensorlrf.ops.forms._tr import TRForm
from tensorlrf.ops.forms._tt import TTForm
from tensorlrf.ops.forms._tt_matrix import TTMatrixForm
from tensorlrf.ops.forms._tucker import TuckerForm
from tensorlrf.ops.forms.leaves._composite import CompositeForm
from tensorlrf.ops.forms.leaves._dictionary import DictionaryForm
from tensorlrf.ops.forms.leaves._quantized import QuantizedForm
from tensorlrf.ops.forms.leaves._skeleton import SkeletonForm
from tensorlrf.ops.forms.leaves._sparse import SparseForm
from tensorlrf.ops.forms.shared._slide import Conv, Depthwise, Groups, Pointwise, Taps
from tensorlrf.ops.forms.stages import (
    Concat,
    Einsum,
    Join,
    Library,
    Lookup,
    Matrix,
    Pad,
    Paths,
    Permute,
    Slice,
    Split,
    Stage,
    Stages,
    Sum,
    Times,
)

register_form(LowRank, LowRankForm())
register_form(CPFactors, CPForm())
register_form(TuckerFactors, TuckerForm())
register_form(BlockTerm, BlockTermForm())
register_form(KroneckerSum, KroneckerForm())
register_form(TTFactors, TTForm())
register_form(TTMatrix, TTMatrixForm())
register_form(TRFactors, TRForm())
register_form(BlockLowRank, BLRForm())
register_form(MonarchFactors, MonarchForm())
register_form(BlastFactors, BlastForm())
register_form(BandedLowRank, BandedForm())
register_form(Skeleton, SkeletonForm())
register_form(Grouped, GroupedForm())
register_form(SparseTensor, SparseForm())
register_form(Dictionary, DictionaryForm())
register_form(Quantized, QuantizedForm())
register_form(Composite, CompositeForm())

__all__ = [
    "Concat",
    "Conv",
    "Depthwise",
    "Einsum",
    "Form",
    "Groups",
    "Join",
    "Kernel",
    "Library",
    "Lookup",
    "Matrix",
    "Pad",
    "Paths",
    "Permute",
    "Pointwise",
    "Slice",
    "Split",
    "Stage",
    "Stages",
    "Sum",
    "Taps",
    "Times",
    "form_of",
    "formats_with",
    "register_form",
]
