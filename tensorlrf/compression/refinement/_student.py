"""The copy of a compressed model that is trained: its factors, norms and biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tensorlrf.compression.refinement._lora import saves, with_change
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import copy_of, replica

State = dict[str, Tensor]
"""Values of what is trained, by name."""

LEAST_SCALE = 1e-2
"""Of a tensor: biases begin at 0."""


class Student:
    """A copy of `given` in which nothing needs a gradient but what is trained.

    Steps are made in float32 at the least: of a parameter in half precision a master is kept
    (Micikevicius et al. 2018), which it is rounded from.

    lora   rank of the changes that are trained in place of a factor itself; None for none
    draws  where these begin
    """

    def __init__(self, given: nn.Module, lora: int | None, draws: torch.Generator) -> None:
        self.given = given
        self.model = copy_of(given)
        for module in self.model.modules():
            module.training = False
            if isinstance(module, FactoredLayer):
                module.thaw()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.names = list(trained(self.model))
        if not self.names:
            raise ArgumentError(
                "small has nothing to train: no factored layer, no norm and no bias; give a model "
                "that tensorlrf.compress returned"
            )
        own: dict[str, nn.Parameter] = {}
        places = Counter(id(p) for m in self.model.modules() for p in m.parameters(recurse=False))
        self.scales: dict[str, float] = {}  # what a step of each is to be measured by
        for name in self.names:
            layer, attribute = _owner(self.model, name)
            parameter = getattr(layer, attribute)
            scale = _root_mean_square(parameter)
            tied = places[id(parameter)] > 1  # a change would be that of one place alone
            if lora is None or tied or not saves(parameter, lora):
                own[name], self.scales[name] = parameter, scale
                continue
            change = with_change(layer, attribute, lora, draws)
            own |= {f"{name}.up": change.up, f"{name}.down": change.down}
            down = _root_mean_square(change.down)
            self.scales |= {f"{name}.up": scale, f"{name}.down": down}
        self._own = own
        self._places = {id(p): place for place, p in self.model.named_parameters()}
        self.masters: dict[str, nn.Parameter] = {name: _master(p) for name, p in own.items()}
        for parameter in own.values():
            parameter.requires_grad_(False)

    @property
    def size(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.masters.values())

    def twin(self, chosen: Callable[[str], bool]) -> nn.Module:
        """A replica to run forward and back, in which the chosen masters need gradients."""
        twin = replica(self.model)
        places = dict(twin.named_parameters())
        for name, parameter in self._own.items():
            places[self._places[id(parameter)]].requires_grad_(chosen(name))
        return twin

    def take(self, twin: nn.Module, scale: float) -> None:
        """Add the gradients of a twin, divided by `scale`, to those of the masters."""
        places = dict(twin.named_parameters())
        for name, master in self.masters.items():
            grad = places[self._places[id(self._own[name])]].grad
            if grad is not None:
                part = grad.to(master.dtype) / scale
                master.grad = part if master.grad is None else master.grad + part

    def write(self) -> None:
        """Let the model have what the masters hold."""
        with torch.no_grad():
            for name, parameter in self._own.items():
                if parameter is not self.masters[name]:
                    parameter.copy_(self.masters[name])

    def state(self) -> State:
        """A copy of the masters."""
        return {name: p.detach().clone() for name, p in self.masters.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Back to a `state`."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state[name])
                master.grad = None
        self.write()

    def finished(self) -> nn.Module:
        """A copy of the given model with the values of the student, changes merged; all flags are
        as they were."""
        made = copy_of(self.given)
        with torch.no_grad():
            for name in self.names:
                layer, attribute = _owner(self.model, name)
                place, own = _owner(made, name)
                getattr(place, own).copy_(getattr(layer, attribute))
        frozen = any(isinstance(m, FactoredLayer) and m.is_frozen for m in made.modules())
        return copy_of(made) if frozen else made  # a copy of a frozen layer makes its weight anew


def trained(model: nn.Module) -> Iterator[str]:
    """Names of the parameters of factored layers, and of those with one axis: norms' and biases'.

    One in several places has its first name alone.
    """
    seen: set[int] = set()
    for place, module in model.named_modules():
        for name, p in module.named_parameters(prefix=place, recurse=False):
            plain = type(p) is nn.Parameter and p.is_floating_point() and p.numel() > 0
            if plain and id(p) not in seen and (isinstance(module, FactoredLayer) or p.ndim == 1):
                seen.add(id(p))
                yield name


def take_over(model: nn.Module, small: nn.Module) -> None:
    """Give a model, in place, the values of what was trained in `small`."""
    frozen = [m for m in model.modules() if isinstance(m, FactoredLayer) and m.is_frozen]
    for layer in frozen:
        layer.thaw()
    for name in trained(small):
        own, value = model.get_parameter(name), small.get_parameter(name)
        if own is not value:
            with torch.inference_mode(own.is_inference()), torch.no_grad():
                own.copy_(value)
    for layer in frozen:
        layer.freeze()


def within(parameter: str, module: str) -> bool:
    """Whether a module holds a parameter, by their names."""
    return not module or parameter.startswith(f"{module}.")


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    place, _, attribute = name.rpartition(".")
    return model.get_submodule(place), attribute


def _root_mean_square(tensor: Tensor) -> float:
    return max(LEAST_SCALE, float(tensor.detach().double().square().mean().sqrt()))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if dtype == parameter.dtype:
        return parameter
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
