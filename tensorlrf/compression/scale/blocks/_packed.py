"""Whether modules that were taken apart before they had values do what the packed ones do."""

from __future__ import annotations

from torch import nn

from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn.packed.unpacked import Unpacked


def check_unpacked(model: nn.Module, at: str, seen: set[type[nn.Module]]) -> None:
    """Try those that have values by now, one of a type, on what its kind tries.

    at    the name of what is given
    seen  types of packed modules that were tried

    Raises UnsupportedError where one does not.
    """
    for name, module in model.named_modules():
        if not isinstance(module, Unpacked) or any(p.is_meta for p in module.parameters()):
            continue
        packed = type(module.pack(values=False))
        if packed in seen:
            continue
        seen.add(packed)
        why = type(module).differs(module.pack())
        if why:
            raise UnsupportedError(
                f"{joined(at, name)} is a {packed.__name__}: {why}; use tensorlrf.compress, which "
                "leaves it as it is"
            )
