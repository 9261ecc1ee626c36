"""Public tensors whose relative errors are published, as tensorly brings them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def public(name: str) -> Tensor:
    """Of the data set "covid19_serology", "kinetic" or "indian_pines", in float64."""
    with warnings.catch_warnings():  # tensorly's own imports warn
        warnings.simplefilter("ignore")
        from tensorly import datasets

        data = getattr(datasets, f"load_{name}")()
    return torch.as_tensor(data.tensor, dtype=torch.float64)
