"""What a batch normalisation does behind the normalisation: a subclass may run modules that it
holds, as timm's BatchNormAct2d an activation. That is seen by running it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.nn.behaviour.arguments import more_arguments
from tensorlrf.nn.copies import copy_of

_SIZES: dict[type[nn.Module], list[tuple[int, ...]]] = {
    nn.BatchNorm1d: [(), (7,)],
    nn.BatchNorm2d: [(5, 4), (1, 1)],
    nn.BatchNorm3d: [(3, 4, 2)],
}
"""Of inputs, behind batch and channels."""

_NORMS = (*_SIZES, nn.SyncBatchNorm)
_HELD = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def behind(norm: nn.Module) -> nn.Module:
    """What takes the place of a normalisation that is folded: the modules that it holds, one after
    the other and by their names, and of one that holds none an nn.Identity."""
    held = dict(norm.named_children())
    rest: nn.Module = nn.Identity()
    if held:
        rest = nn.Sequential()
        for name, module in held.items():
            rest.add_module(name, module)
    rest.training = norm.training
    return rest


def why_no_more(norm: Any) -> str:
    """Why a normalisation in eval mode does not give what torch's and `behind(norm)` give; empty
    where it does."""
    if type(norm) in _NORMS:
        return ""
    base = next((one for one in _SIZES if isinstance(norm, one)), None)
    held = {*norm._parameters, *norm._buffers} - _HELD
    plain = base is not None and not held and not more_arguments(norm, base)
    same = plain and base is not None and _agree(norm, _SIZES[base])
    return "" if same else f"a {type(norm).__name__}, which may do more than torch's"


@torch.no_grad()
def _agree(norm: Any, sizes: list[tuple[int, ...]]) -> bool:
    """Whether both give the same bits, with other statistics than its own."""
    with torch.random.fork_rng(devices=[]):
        try:
            twin = _twin(norm)
            for x in _inputs(twin, sizes):
                got = twin(x.clone())
                normalised = F.batch_norm(
                    x, twin.running_mean, twin.running_var, twin.weight, twin.bias, eps=twin.eps
                )
                if not torch.equal(got, behind(twin)(normalised)):
                    return False
        except Exception:  # whatever a forward of somebody else's raises: it takes other inputs
            return False
    return True


def _twin(norm: Any) -> Any:
    """A copy in eval mode, with statistics and weights of which none can be left out unseen."""
    twin: Any = copy_of(norm).eval()
    draws = torch.Generator().manual_seed(0)
    for t in (*twin._parameters.values(), *twin._buffers.values()):
        if t is not None and t.is_floating_point():
            # Variances are positive, and of the rest it does no harm.
            t.copy_(torch.rand(t.shape, generator=draws, dtype=torch.float64, device="cpu") + 0.5)
    return twin


def _inputs(norm: Any, sizes: list[tuple[int, ...]]) -> Iterator[Tensor]:
    draws = torch.Generator().manual_seed(1)
    like: Tensor = norm.running_mean
    for size in sizes:
        for scale in (1.0, 100.0):
            shape = (3, norm.num_features, *size)
            x = torch.randn(shape, generator=draws, dtype=torch.float64, device="cpu")
            yield (scale * x).to(like)
