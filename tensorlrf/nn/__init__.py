"""Layers that own factors as parameters and stand in for those of torch: linear ones, also the
transposed one of transformers, convolutions and transposed ones in one, two and three axes, with
groups, and embeddings; layers between tensors; and heads that look at few of their words closely.
"""

from types import ModuleType

from tensorlrf.nn._conv import FactoredConv1d, FactoredConv2d, FactoredConv3d
from tensorlrf.nn._embedding import FactoredEmbedding
from tensorlrf.nn._factorize import factored_type, factorize
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.attention._nystrom import nystrom_attention
from tensorlrf.nn.attention._use import use_nystrom_attention
from tensorlrf.nn.convolutions._transposed import (
    FactoredConvTranspose1d,
    FactoredConvTranspose2d,
    FactoredConvTranspose3d,
)
from tensorlrf.nn.heads._svd_softmax import HeadReport, SVDSoftmaxHead
from tensorlrf.nn.packed import _flat_experts, _zero_experts  # noqa: F401  which declare themselves
from tensorlrf.nn.packed._attention import FactoredMultiheadAttention
from tensorlrf.nn.packed._cells import FactoredGRUCell, FactoredLSTMCell, FactoredRNNCell
from tensorlrf.nn.packed._experts import FactoredExperts, FactoredStack
from tensorlrf.nn.packed.recurrent import FactoredGRU, FactoredLSTM, FactoredRNN
from tensorlrf.nn.packed.unpacked import Unpacked
from tensorlrf.nn.plain import Plain, register_plain
from tensorlrf.nn.ranks._gate import RankGate
from tensorlrf.nn.regression._contraction import TensorContraction
from tensorlrf.nn.regression._regression import TensorRegression
from tensorlrf.nn.tables._bag import FactoredEmbeddingBag
from tensorlrf.nn.tables._resized import resize_token_embeddings
from tensorlrf.nn.tensors import register_tensor

__all__ = [
    "FactoredConv1d",
    "FactoredConv2d",
    "FactoredConv3d",
    "FactoredConvTranspose1d",
    "FactoredConvTranspose2d",
    "FactoredConvTranspose3d",
    "FactoredEmbedding",
    "FactoredEmbeddingBag",
    "FactoredExperts",
    "FactoredGRU",
    "FactoredGRUCell",
    "FactoredHFConv1D",
    "FactoredLSTM",
    "FactoredLSTMCell",
    "FactoredLayer",
    "FactoredLinear",
    "FactoredMultiheadAttention",
    "FactoredRNN",
    "FactoredRNNCell",
    "FactoredStack",
    "HeadReport",
    "Plain",
    "RankGate",
    "SVDSoftmaxHead",
    "TensorContraction",
    "TensorRegression",
    "Unpacked",
    "factored_type",
    "factorize",
    "nystrom_attention",
    "register_plain",
    "register_tensor",
    "resize_token_embeddings",
    "use_nystrom_attention",
]


def __getattr__(name: str) -> ModuleType:
    """`parallel`, imported when it is first used: it needs torch.distributed.tensor."""
    if name != "parallel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module(f"{__name__}.parallel")
