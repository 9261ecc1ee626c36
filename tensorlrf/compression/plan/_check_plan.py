"""Whether a plan can be carried out on a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tensorlrf.compression._survey import Surveyed, check_values
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.checkpoint._architecture import describe, digest
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.errors import ArgumentError


def check_plan(
    model: nn.Module, plan: Plan, found: Sequence[Surveyed], *, values: bool = True
) -> None:
    """Raise ArgumentError where the plan is not for this model, in which the survey has `found`
    these modules, or cannot be carried out on it; `values` says whether it has any to look at."""
    there = {one.name: one for one in found}
    for layer in plan.layers:
        if layer.name not in there:
            raise ArgumentError(
                f"plan: the model has no layer {layer.name!r}; it is a plan for another model, or "
                "one of its names was changed"
            )
        if not layer.shape:
            continue
        module = there[layer.name]
        if module.reason:
            if layer.method is None and not layer.eligible:
                continue
            raise ArgumentError(f"plan: {layer.name} cannot be factored: {module.reason}")
        own = dense_layer_at(model, layer.name)
        if own.shape != layer.shape or own.groups != layer.groups:
            raise ArgumentError(
                f"plan: {layer.name} has a weight {layer.shape} in {layer.groups} groups there, "
                f"but {own.shape} in {own.groups} in the model; it is a plan for another model"
            )
        if set(layer.places) != set(module.places):
            raise ArgumentError(
                f"plan: {layer.name} is at {', '.join(layer.places)} there, but at "
                f"{', '.join(module.places)} in the model"
            )
        if layer.method is not None:
            if reason := own.why_not(layer.method):
                raise ArgumentError(f"plan: {layer.name} cannot have this format: {reason}")
            if not values:
                continue
            if own.weight.is_meta:
                raise ArgumentError(
                    f"model: the weight of {layer.name} is on the meta device and has no values; a "
                    "plan can be made there, but give apply the model with its weights"
                )
            check_values(layer.name, own.weight)
    listed = {layer.name for layer in plan.layers}
    for name in there:
        if name not in listed:
            raise ArgumentError(
                f"plan: {name} of the model is not in it; it is a plan for another model, or one "
                "of its layers was taken out: to leave a layer as it is, set its method to null"
            )
    if not plan.factored:
        raise ArgumentError("plan: no layer gets factors; edit it, or make one with a budget")
    if digest(describe(model)) != plan.architecture:
        raise ArgumentError(
            "plan: the architecture of the model is not the one that the plan was made for, though "
            "its layers have the same names; make a new plan with tensorlrf.plan(model, ...)"
        )
