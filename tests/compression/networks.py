"""Small networks of the structures that people have, and what tests ask of a compressed one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression import Report
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.nn import FactoredLayer

UNIFORM: dict[str, Any] = {"allocation": "uniform", "metric": "outputs"}
"""Of `compress`: what does not look at the outputs of the whole model."""


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
    """All that a model is: values, flags, gradients, versions, attributes, hooks and modules."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors = {k: (t, t.detach().clone()) for k, t in self._tensors().items()}
        self.rest = self._rest()

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, m in self.model.named_modules()
            for part in (m._parameters, m._buffers, vars(m))
            for key, value in part.items()
            if isinstance(value, Tensor)
        }

    def _rest(self) -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        plain = (int, float, bool, list, str)
        return [
            (
                (name, id(m), type(m), set(vars(m))),
                [list(getattr(m, h)) for h in hooks],
                {k: copy.copy(v) for k, v in vars(m).items() if isinstance(v, plain)},
            )
            for name, m in self.model.named_modules(remove_duplicate=False)
        ] + [
            (name, id(p), p.data_ptr(), p.requires_grad, p.grad, p._version)
            for name, p in self.model.named_parameters()
        ]

    def check(self) -> None:
        """The model is bit for bit what it was."""
        now = self._tensors()
        assert list(now) == list(self.tensors)
        for name, (tensor, value) in self.tensors.items():
            assert now[name] is tensor, name
            assert tensor.is_meta or torch.equal(tensor, value), name
        assert self._rest() == self.rest


def check_report(model: nn.Module, small: nn.Module, report: Report) -> None:
    """Every owner of parameters is listed once, and the report says what the model has."""
    owners = {
        name or ROOT
        for name, module in unpacked_model(model).named_modules()
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
