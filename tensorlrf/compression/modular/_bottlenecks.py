"""What may be a bottleneck: channels between two layers, with convolutions of each channel alone,
normalisations and squeeze-excites on the way (Sandler et al. 2018; Tan & Le 2019).

The order of calls and the sizes of tensors suggest it. Behind a layer with n outputs come modules
that have a number or a filter for each of n channels, pairs of layers from n to fewer and back to
n, and a pointwise layer with n inputs. Whether it is one, the module around it tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from torch import nn

from tensorlrf.compression._survey import bonds_of
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.modular._structures import Channels
from tensorlrf.nn.obstacles import hooks_of
from tensorlrf.nn.resized.layers import of_each, tensors_in


@dataclass
class Bottlenecks:
    """Of a model.

    names    layers that may be made smaller
    calls    modules with tensors of their own, in the order of one pass
    left     modules that are to stay as they are
    reasons  layers that cannot be, as far as that is seen here -> why
    """

    model: nn.Module
    names: Set[str]
    calls: Sequence[str]
    left: Set[str] = frozenset()
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        times = Counter(self.calls)
        self._layers = {
            name: layer
            for name in self.names
            if times[name] == 1
            and not (layer := dense_layer_at(self.model, name)).plain.is_transposed
        }
        bound, modules = bonds_of(self.model), dict(self.model.named_modules())
        others = times.keys() - self.names - self.left
        self._others = {
            name: modules[name]
            for name in others
            if times[name] == 1 and modules[name] not in bound and not hooks_of(modules[name])
        }

    def guesses(self) -> list[list[Channels]]:
        """For each layer that may be the last one what it may be the last one of, the smallest
        first; those of the most channels first."""
        found = []
        for t, name in enumerate(self.calls):
            layer = self._layers.get(name)
            if layer is not None and layer.is_pointwise:
                found.append((layer.shape[1], list(self._ending(name, layer.shape[1], t))))
        found.sort(key=lambda one: -one[0])
        return [group for _, group in found if group]

    def _ending(self, down: str, n: int, t: int) -> Iterator[Channels]:
        """Those that end with a layer of n inputs, the t-th call."""
        depthwise: list[str] = []
        gates: list[tuple[str, str]] = []
        norms: list[str] = []
        gate = ""  # what may give factors of channels, in front of which something reads them
        for name in reversed(self.calls[:t]):
            layer = self._layers.get(name)
            if layer is None:
                if down.startswith(f"{name}."):
                    continue  # called around the last layer
                if name not in self._others or not self._passes(name, n, norms, inside=bool(gate)):
                    return
            elif gate and self._opens(layer, gate, n):
                gates.insert(0, (name, gate))
                gate = ""
            elif gate or layer.shape[0] != n:
                return
            elif layer.groups > 1:
                if not self._alone(name, layer, down):
                    return
                depthwise.insert(0, name)
            else:
                made = Channels(
                    (name,), down, False, tuple(depthwise), tuple(gates), tuple(norms)
                )  # fmt: skip
                if any(self._layers[one].taps is not None for one in made.layers):
                    yield made
                if not layer.is_pointwise:
                    return
                gate = name

    def _opens(self, layer: DenseLayer, gate: str, n: int) -> bool:
        """Whether a layer reads n channels and hands fewer on, as the `gate` takes them. Those that
        make more of them are blocks that add to what they get."""
        m = self._layers[gate].shape[1]
        return layer.is_pointwise and layer.shape[:2] == (m, n) and m < n

    def _passes(self, name: str, n: int, norms: list[str], *, inside: bool) -> bool:
        """Whether a module that is no such layer may stand between; it is noted where it has
        numbers of each channel."""
        module = self._others[name]
        if of_each(module, n):
            norms.insert(0, name)
            return not inside
        # One number is alike for all channels; what is inside of a gate has other channels.
        return inside or all(t.numel() == 1 for t in tensors_in(module).values())

    def _alone(self, name: str, layer: DenseLayer, down: str) -> bool:
        """Whether a convolution has one filter for each channel."""
        inputs = layer.groups * layer.shape[1]
        if inputs == layer.groups == layer.shape[0]:
            return True
        if inputs == layer.groups:
            each = layer.shape[0] // inputs
            told = f"gives {each} outputs for each channel, and one of them cannot go alone"
            self.reasons.setdefault(name, f"a depthwise convolution that {told}")
            self.reasons.setdefault(down, f"reads a depthwise convolution ({name}) that {told}")
        return False
