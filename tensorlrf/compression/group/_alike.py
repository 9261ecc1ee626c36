"""What the ranks of a group have in common before a model is compressed on all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.group._group import Alone
from tensorlrf.compression.group._scattered import Scattered
from tensorlrf.compression.journal._identity import told
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.errors import ArgumentError
from tensorlrf.files.sealed import checksum_of, made_by

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_alike(group: Alone, model: nn.Module, asked: Mapping[str, Any]) -> None:
    """Raise GroupError, on all ranks, where models, versions or what is asked for differ: numbers
    and words are compared, functions by their names, other values by their types."""
    if group.size == 1:
        return
    own = {
        "tensorlrf": made_by(),
        "torch": torch.__version__,
        "model": fingerprint(model),
        **{key: told(value) for key, value in asked.items()},
    }
    group.agree(own | {f"the values of {name}": n for name, n in _values(model)})


def check_plan_alike(group: Alone, plan: Plan) -> None:
    """Raise GroupError, on all ranks, where they have not come to the same plan."""
    if group.size > 1:
        group.agree({"plan": checksum_of(plan.to_json().encode())})


def check_shared(group: Alone, given: Mapping[str, Any]) -> None:
    """Raise ArgumentError for what is `given`, not None, and that ranks do not share out."""
    for name, value in given.items():
        if group.size > 1 and value is not None:
            raise ArgumentError(
                f"{name}={value!r} is not shared out over the ranks of a process group; leave it "
                "out, or make the call under tensorlrf.on_one_rank()"
            )


def _values(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Of each tensor a sum that goes by its bits, and not by the order of adding."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # What is scattered is one tensor of all ranks.
        one = isinstance(tensor, Scattered)
        if not nn.parameter.is_lazy(tensor) and not tensor.is_meta and not one:
            yield name, _sum(tensor.detach())


def _sum(tensor: Tensor) -> int:
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor)
    size = tensor.element_size()
    return int(tensor.contiguous().view(_INTEGERS[size]).sum(dtype=torch.int64))
