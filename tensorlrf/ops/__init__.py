"""Layers that run on factors: linear, conv2d, the paths they can take, and what those cost."""

from tensorlrf.ops._contract import contract, inner
from tensorlrf.ops._conv2d import conv2d, conv2d_paths, run_conv2d
from tensorlrf.ops._cost import Cost, Positions, Step, conv2d_cost, linear_cost
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._linear import linear, linear_paths, run_linear
from tensorlrf.ops._paths import PathTable, best_path, floor_cost, path_cost, paths_of
from tensorlrf.ops._profile import DeviceProfile, profile_of
from tensorlrf.ops._timing import Timings, time_calls, time_paths

__all__ = [
    "Cost",
    "DeviceProfile",
    "PathTable",
    "Positions",
    "Step",
    "Timings",
    "best_path",
    "contract",
    "conv2d",
    "conv2d_cost",
    "conv2d_paths",
    "dense_weight",
    "floor_cost",
    "inner",
    "linear",
    "linear_cost",
    "linear_paths",
    "path_cost",
    "paths_of",
    "profile_of",
    "run_conv2d",
    "run_linear",
    "time_calls",
    "time_paths",
]
