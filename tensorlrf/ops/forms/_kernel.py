"""A kernel of ours as a stage: what it is to compute, how it is launched, and where it serves."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import Stage
from tensorlrf_kernels.chips import H200, Chip
from tensorlrf_kernels.launches import LaunchConfig, Workload


@dataclass(frozen=True, eq=False)
class Kernel(Stage):
    """An op of the kernel core: `op(x, *operands, bias, *options)`.

    The bias is left out where `adds_bias` is False.

    Parameters
    ----------
    operands : tuple
        Its tensors.
    options : tuple
        Its other arguments.
    """

    operands: tuple[Any, ...]
    options: tuple[Any, ...] = ()
    op: ClassVar[Callable[..., Tensor]]
    adds_bias = True

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        added = (bias,) if self.adds_bias else ()
        y: Tensor = leaf(type(self).op)(x, *self.operands, *added, *self.options)
        return y

    @property
    def is_meant(self) -> bool:
        """Whether there is a problem in some dtype, for few rows or many.

        A layer keeps its paths when its dtype changes.
        """
        return any(self.problem(rows, torch.bfloat16, False) for rows in (1, 8192))

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload] | None:
        """The name of the op, and what its kernel is to compute for so many rows.

        None where no kernel is meant for that.
        """
        raise NotImplementedError

    def launch(
        self, rows: int, dtype: torch.dtype, chip: Chip, tf32: bool = False
    ) -> LaunchConfig | None:
        """How the kernel would be launched; None where library calls run in its place."""
        found = self.problem(rows, dtype, tf32)
        if found is None:
            return None
        op, problem = found
        launches = importlib.import_module(f"tensorlrf_kernels.{op}.launch")
        config: LaunchConfig | None = launches.forward(problem, chip)
        return config

    def serves(self, rows: int, dtype: torch.dtype) -> bool:
        return self.launch(rows, dtype, H200) is not None
