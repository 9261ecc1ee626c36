"""Small networks of the structures that people have, and what tests ask of a compressed one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression import Report
from tensorlrf.compression._survey import ROOT
from tensorlrf.nn import FactoredLayer


def set_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights with falling spectra, which do not depend on the global generator; biases small,
    statistics of norms as after training."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=draws))
                continue
            m, n = parameter.shape[0], parameter[0].numel()
            k = min(m, n)
            fall = torch.linspace(1, 0.1, k)
            left, right = torch.randn(m, k, generator=draws), torch.randn(k, n, generator=draws)
            parameter.copy_((left * fall @ right).reshape(parameter.shape) / (k * n) ** 0.5)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1, generator=draws)
                norm.running_var.uniform_(0.5, 1.5, generator=draws)
    return model.eval()


class Snapshot:
    """What a model was: values, flags, hooks, attributes and the modules themselves."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = {k: v.clone() for k, v in _state(model).items()}
        self.rest = self._rest()

    def _rest(self) -> list[Any]:
        named = list(self.model.named_modules(remove_duplicate=False))
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return [
            (n, id(m), type(m), m.training, [list(getattr(m, h)) for h in hooks], set(vars(m)))
            for n, m in named
        ] + [(n, id(p), p.requires_grad, p._version) for n, p in self.model.named_parameters()]

    def check(self) -> None:
        """The model is bit for bit what it was."""
        now = _state(self.model)
        assert list(now) == list(self.state)
        for name, tensor in now.items():
            if not tensor.is_meta:
                assert torch.equal(tensor, self.state[name]), name
        assert self._rest() == self.rest


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def check_report(model: nn.Module, small: nn.Module, report: Report) -> None:
    """Every owner of parameters is listed once, and the report says what the model has."""
    owners = {
        name or ROOT
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    listed = [row.name for row in report.layers]
    assert len(listed) == len(set(listed))
    assert owners <= set(listed)
    assert {row.name for row in report.layers if row.factored} == factored_names(small)
    for row in report.layers:
        assert row.factored != bool(row.reason), row
    assert report.model.params_after == sum(p.numel() for p in small.parameters())


def factored_names(small: nn.Module) -> set[str]:
    return {n for n, m in small.named_modules() if isinstance(m, FactoredLayer)}


def relative(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).norm() / wanted.norm()).detach())
