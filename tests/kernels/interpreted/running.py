"""Launching kernels in Triton's interpreter.

Programs run one after the other there, so a cooperative launch is a grid of one program; the grid
barrier between many is left to the GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.launches import Call, LaunchConfig, launch

DTYPES = (torch.float16, torch.float32)  # the interpreter multiplies the raw bits of bfloat16
CHIP = replace(H200, multiprocessors=3)  # so that small shapes have several programs

_WRITTEN = ("y", "partials", "dt", "dx", "dz", "left_parts", "bias_parts")
_READ = ("x", "dy", "dh", "right", "left", "bias", "residual")


def alone(config: LaunchConfig) -> LaunchConfig:
    """The cooperative launch with one program, which need not wait for another."""
    return replace(config, programs=1)


def apart(config: LaunchConfig) -> LaunchConfig:
    """The two launches that stand in for the cooperative one."""
    return replace(config, cooperative=False)


def run(calls: Sequence[Call]) -> None:
    """Launch with NaN in everything that is yet to be written; counters are left zero."""
    for call in calls:
        read = [call.args[name].data_ptr() for name in _READ if name in call.args]
        for name in (*_WRITTEN, *(["t"] if call.config.kernel == "decode" else [])):
            # What is not written stands for nothing, and may be an operand's address.
            tensor = call.args.get(name)
            if tensor is not None and tensor.data_ptr() not in read:
                tensor.fill_(math.nan)
    # The interpreter computes with numpy, which warns where IEEE arithmetic has an answer.
    with np.errstate(invalid="ignore", over="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        launch(calls)
    for call in calls:
        if "counters" in call.args:
            assert not call.args["counters"].any()
