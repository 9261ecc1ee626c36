"""The given model run in step with its working copy, to see what its layers get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from tensorlrf.compression.calibration._beside import Beside
from tensorlrf.compression.calibration._suspend import Suspendable
from tensorlrf.compression.calibration._trace import Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.decomposition.linalg.threads import limited
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica


class ReferencePass:
    """A pass of the given model that stops at each of the named layers and shows its input.

    calls    how often a layer was called in the first pass, in the order of the last calls
    sources  modules whose inputs are added to the outputs of layers
    """

    def __init__(
        self,
        original: nn.Module,
        names: list[str],
        batch: Batch,
        share: int,
        calls: Mapping[str, int],
        sources: Mapping[str, str],
    ) -> None:
        self._sources, self._beside = sources, Beside(original, (), {})
        self._original, self._names, self._batch, self._share = original, names, batch, share
        self._calls, self._place = calls, _places(names, calls)
        self._input: Tensor | None = None
        self._ahead = False
        self._reached: str | None = None
        self._pass = Suspendable(self._run)

    def _run(self, this: Suspendable) -> None:
        own = replica(self._original)
        self._beside = Beside(own, self._names, self._sources)
        arrived = partial(self._arrived, this)
        with limited(self._share), self._beside, Watch(own, self._names, arrived):
            call(own, self._batch)

    def _arrived(self, this: Suspendable, name: str, x: Tensor) -> None:
        self._input = x
        this.suspend(name)

    def input_of(self, name: str) -> Tensor | None:
        """The input of the next call, which is one of the layer `name`; None where the given model
        passes it by, as an expert that its router does not choose.

        Raises ArgumentError where a layer that is called several times is at a place where the
        given model calls another: which of the calls are the same cannot be told.
        """
        if not self._ahead:
            self._reached = self._pass.advance()
        while self._reached != name and self._comes_before(name):
            self._reached = self._pass.advance()
        self._ahead = self._reached != name
        if self._ahead:
            return None
        x, self._input = self._input, None
        return x

    def beside(self, name: str) -> Tensor | None:
        """What is added to the outputs of the layer of which the input was asked for; None where
        nothing is known to be."""
        return self._beside.take(name)

    def _comes_before(self, name: str) -> bool:
        """Whether what is reached has its call before that of `name`."""
        reached = self._reached
        if any(self._calls.get(one or "", 1) > 1 for one in (name, reached)):
            raise ArgumentError(
                f"target='original' needs a model that takes the same course before and after "
                f"compression, but where {name} is called now the given model calls "
                f"{reached or 'no further layer'}; use target='prefix', or 'independent'"
            )
        return reached is not None and self._place[reached] < self._place[name]

    def go_on(self) -> None:
        """To the next call already, for which `input_of` will ask. Wide inputs, such as those of
        the second layer of a feed-forward block, are then not held by both models at once."""
        if not self._ahead:
            self._reached, self._ahead = self._pass.advance(), True

    def close(self) -> None:
        self._pass.close()


@contextlib.contextmanager
def reference_pass(
    original: nn.Module | None,
    names: list[str],
    batch: Batch,
    share: int,
    calls: Mapping[str, int],
    sources: Mapping[str, str],
) -> Iterator[ReferencePass | None]:
    if original is None:
        yield None
        return
    with contextlib.closing(
        ReferencePass(original, names, batch, share, calls, sources)
    ) as reference:
        yield reference


def _places(names: list[str], calls: Mapping[str, int]) -> dict[str, int]:
    """Places in the order of the calls. A layer that the first pass did not call comes after the
    one that it follows in `names`."""
    known = set(names)
    order = [name for name in calls if name in known]
    for before, name in pairwise(["", *names]):
        if name not in calls:
            order.insert(order.index(before) + 1 if before else 0, name)
    return {name: k for k, name in enumerate(order)}
