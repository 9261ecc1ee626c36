"""A layer on factors that may keep the dense weight which they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.ops import dense_weight


class Freezable(nn.Module, ABC):
    """A layer on factors that may keep the dense weight which they stand for.

    By default nothing is kept, since no version counter tells of writes through `.data` or numpy:
    whoever runs on the dense weight rebuilds it. A frozen layer keeps it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: _Frozen | None = None
        self._captured: list[Tensor] = []  # by CUDA graphs, which read them after a thaw too

    # ---- what a layer supplies --------------------------------------------------------------

    @property
    @abstractmethod
    def factors(self) -> Factors:
        """The factors object made of the parameters as they are now."""

    @abstractmethod
    def _sources(self) -> list[Tensor]:
        """The tensors of the factors."""

    def _rebuilt(self) -> Tensor:
        """The dense weight, in the layout of the layer that stands on it."""
        return dense_weight(self.factors)

    @abstractmethod
    def _rechoose(self) -> None:
        """Choose the path anew, since the layer has been frozen or thawed."""

    # ---- frozen and thawed ------------------------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """Whether the layer keeps its dense weight beside the factors."""
        return self._frozen is not None

    def freeze(self, *, memory_format: torch.memory_format = torch.contiguous_format) -> Self:
        """Keep the dense weight, so that the path "dense" no longer rebuilds it: for inference.

        The weight takes its bytes in memory; it is in no state dict, file or pickle, and a copy of
        the layer makes its own. The path table becomes the one for a layer that keeps its weight,
        unless it was set by hand. A forward with grad rebuilds the weight for that call.

        The layer is thawed by `thaw()`, train(), load_state_dict(), a .to() that changes something,
        and by the first forward after a change that torch counts, such as an optimizer's step,
        `p.mul_(2)` or `p.data = t`. **A write through `p.data`, as `p.data.mul_(2)`, or through
        numpy is not seen while the layer is frozen.** A graph that was compiled, exported or
        captured meanwhile sees no write in place.

        Parameters
        ----------
        memory_format : torch.memory_format
            Of the weight that is kept, such as torch.channels_last.

        Returns
        -------
        FactoredLayer
            The layer itself.

        Raises
        ------
        UnsupportedError
            Where the factors are no plain parameters: parametrised, pruned, sharded, or made in
            inference mode.
        """
        frozen = self._made_frozen(memory_format)
        if frozen is None:
            raise UnsupportedError(
                "a layer is frozen on parameters whose changes torch counts, and the factors here "
                "are parametrised, pruned, sharded or inference tensors; leave it as it is, or "
                "remove what computes them first"
            )
        self._frozen = frozen
        self._rechoose()
        return self

    def thaw(self) -> Self:
        """Let go of the dense weight that `freeze` or `tune` has kept.

        The path table becomes that of a layer which rebuilds its weight, unless it was set by hand.
        """
        if self._frozen is not None:
            self._frozen = None
            self._rechoose()
        return self

    def _dense_weight(self) -> Tensor:
        """The weight for the path "dense": rebuilt, or the one that is kept."""
        frozen = self._frozen
        if frozen is None:
            return self._rebuilt()
        sources = self._sources()
        if torch.is_grad_enabled() and any(p.requires_grad for p in sources):
            return self._rebuilt()
        if torch.compiler.is_exporting():  # which puts tensors of its own in place of parameters
            return frozen.weight
        if not _are_own(sources):
            return self._rebuilt()
        if torch.compiler.is_compiling():  # a graph cannot ask whether a parameter has changed
            return frozen.weight
        if not frozen.is_of(sources):
            self.thaw()
            return self._rebuilt()
        if frozen.weight.is_cuda and torch.cuda.is_current_stream_capturing():
            self._captured.append(frozen.weight)
        return frozen.weight

    def _can_freeze(self) -> bool:
        sources = self._sources()
        return _are_own(sources) and not any(p.is_inference() for p in sources)

    def _made_frozen(self, memory_format: torch.memory_format) -> _Frozen | None:
        """The weight to keep; None where the layer cannot be frozen."""
        if not self._can_freeze():
            return None
        sources = self._sources()
        with torch.inference_mode(False), torch.no_grad(), without_autocast():
            weight = self._rebuilt().contiguous(memory_format=memory_format)
        return _Frozen.of(weight, sources) if type(weight) is Tensor else None

    # ---- as a module ------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`; for training the layer is thawed."""
        if mode:
            self.thaw()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._frozen is not None and not self._frozen.is_of(self._sources()):
            self.thaw()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.thaw()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is frozen as the layer is, on a weight that it rebuilds: a pickle holds none.
        last = self._frozen is not None and is_channels_last(self._frozen.weight)
        frozen = None if self._frozen is None else last
        return {**vars(self), "_frozen": frozen, "_captured": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        last = state["_frozen"]
        super().__setstate__({**state, "_frozen": None})  # type: ignore[no-untyped-call]
        if last is not None:
            order = len(self.factors.shape)
            self._frozen = self._made_frozen(
                CHANNELS_LAST[order] if last else torch.contiguous_format
            )


class _Frozen(NamedTuple):
    """A weight, and what tells that the parameters it was made of have changed since.

    A change that torch does not count is not told: `p.data.mul_(2)`, or one through numpy.
    """

    weight: Tensor
    sources: tuple[Tensor, ...]  # the parameters themselves, for their identity
    versions: tuple[int, ...]  # torch counts every in-place change
    storages: tuple[Tensor, ...]  # held, so that `p.data = other` cannot land on an old address
    addresses: tuple[int, ...]

    @classmethod
    def of(cls, weight: Tensor, sources: Sequence[Tensor]) -> Self:
        """`weight`, just made of `sources`."""
        return cls(
            weight,
            tuple(sources),
            tuple(p._version for p in sources),
            tuple(p.detach() for p in sources),
            tuple(p.data_ptr() for p in sources),
        )

    def is_of(self, sources: Sequence[Tensor]) -> bool:
        """Whether these are the parameters that it was made of, unchanged as far as is told."""
        return all(
            p is known and p._version == version and p.data_ptr() == address
            for p, known, version, address in zip(
                sources, self.sources, self.versions, self.addresses, strict=True
            )
        )


def _are_own(sources: Sequence[Tensor]) -> bool:
    """Whether these are plain parameters: no stand-ins for one call (of functional_call, a fake
    mode or a shard), and none that are computed."""
    return all(type(p) is nn.Parameter for p in sources)
