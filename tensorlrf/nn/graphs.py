"""Modules as graphs of torch.fx, whose code is calls of torch alone."""

from __future__ import annotations

from torch import fx, nn


def traced(module: nn.Module) -> fx.GraphModule:
    """The graph of a module, on its parameters, in the mode that it is in."""
    graph = fx.symbolic_trace(module)
    for node in graph.graph.nodes:
        node.type = None  # an annotation, here a string, which a pickle would look up as a type
    graph.recompile()
    return graph.train(module.training)
