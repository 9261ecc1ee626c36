"""Models whose tensors are whole in this process, which not all work is done without."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from tensorlrf.errors import UnsupportedError


def sharded_in(model: object) -> str | None:
    """The first parameter or buffer that ranks have shared out, a DTensor; None where none is, and
    for what is no module."""
    # Whoever has made one has imported this, and nobody else need.
    kind: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is None or not isinstance(model, nn.Module):
        return None
    for held in (model.named_parameters(), model.named_buffers()):
        for name, tensor in held:
            if isinstance(tensor, kind):
                return name
    return None


def check_whole(model: object, what: str, argument: str = "model") -> None:
    """Raise UnsupportedError for a model that ranks have shared out; `what` needs it whole."""
    name = sharded_in(model)
    if name is not None:
        raise UnsupportedError(
            f"{argument}: {name} is shared out over ranks (a DTensor), and {what} needs all of it: "
            "have every rank call torch.distributed.checkpoint.state_dict.get_model_state_dict("
            "model, options=StateDictOptions(full_state_dict=True)), and load that into a model "
            "that is not shared out"
        )
