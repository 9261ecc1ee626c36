"""Layers that run on factors: linear, conv1d, conv2d, conv3d, embedding, the paths they can take,
and what those cost."""

from tensorlrf.ops._contract import contract, inner
from tensorlrf.ops._conv import conv2d_paths, conv_paths, run_conv, run_conv2d
from tensorlrf.ops._cost import Positions, conv2d_cost, conv_cost, embedding_cost, linear_cost
from tensorlrf.ops._counter import Cost, Step
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._embedding import embedding_paths, run_embedding
from tensorlrf.ops._functional import conv1d, conv2d, conv3d, embedding, linear
from tensorlrf.ops._linear import linear_paths, run_linear
from tensorlrf.ops._paths import (
    PathTable,
    best_embedding_path,
    best_path,
    floor_cost,
    path_cost,
    paths_of,
)
from tensorlrf.ops._profile import DeviceProfile, device_key, profile_of
from tensorlrf.ops._timing import Timings, time_calls, time_paths
from tensorlrf.ops._transposed import conv_transpose1d, conv_transpose2d, conv_transpose3d
from tensorlrf.ops.forms._tt import train_order

__all__ = [
    "Cost",
    "DeviceProfile",
    "PathTable",
    "Positions",
    "Step",
    "Timings",
    "best_embedding_path",
    "best_path",
    "contract",
    "conv1d",
    "conv2d",
    "conv2d_cost",
    "conv2d_paths",
    "conv3d",
    "conv_cost",
    "conv_paths",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "dense_weight",
    "device_key",
    "embedding",
    "embedding_cost",
    "embedding_paths",
    "floor_cost",
    "inner",
    "linear",
    "linear_cost",
    "linear_paths",
    "path_cost",
    "paths_of",
    "profile_of",
    "run_conv",
    "run_conv2d",
    "run_embedding",
    "run_linear",
    "time_calls",
    "time_paths",
    "train_order",
]
