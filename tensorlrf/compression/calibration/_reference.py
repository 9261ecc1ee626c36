"""The given model run in step with its working copy, to see what its layers get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from tensorlrf.compression.calibration._suspend import Suspendable
from tensorlrf.compression.calibration._trace import Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.decomposition.linalg.threads import limited
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica


class ReferencePass:
    """A pass of the given model that stops at each of the named layers and shows its input."""

    def __init__(self, original: nn.Module, names: list[str], batch: Batch, share: int) -> None:
        self._original, self._names, self._batch, self._share = original, names, batch, share
        self._input: Tensor | None = None
        self._went_on = False
        self._reached: str | None = None
        self._pass = Suspendable(self._run)

    def _run(self, this: Suspendable) -> None:
        own = replica(self._original)
        with limited(self._share), Watch(own, self._names, partial(self._arrived, this)):
            call(own, self._batch)

    def _arrived(self, this: Suspendable, name: str, x: Tensor) -> None:
        self._input = x
        this.suspend(name)

    def input_of(self, name: str) -> Tensor:
        """The input of the next call, which must be one of the layer `name`."""
        reached = self._reached if self._went_on else self._pass.advance()
        self._went_on = False
        x, self._input = self._input, None
        if reached != name or x is None:
            raise ArgumentError(
                f"target='original' needs a model that takes the same course before and after "
                f"compression, but where {name} is called now the given model calls "
                f"{reached or 'no further layer'}; use target='prefix'"
            )
        return x

    def go_on(self) -> None:
        """To the next call already, for which `input_of` will ask. Wide inputs, such as those of
        the second layer of a feed-forward block, are then not held by both models at once."""
        self._reached, self._went_on = self._pass.advance(), True

    def close(self) -> None:
        self._pass.close()


@contextlib.contextmanager
def reference_pass(
    original: nn.Module | None, names: list[str], batch: Batch, share: int
) -> Iterator[ReferencePass | None]:
    if original is None:
        yield None
        return
    with contextlib.closing(ReferencePass(original, names, batch, share)) as reference:
        yield reference
