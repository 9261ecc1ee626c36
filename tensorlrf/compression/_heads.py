"""Heads: the last layers, which turn features into classes, words or sentence vectors.

They hold few of the FLOPs, and an error in them is an error in the answer: they stay by default.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

HEADS = (
    "head",
    "heads",
    "classifier",
    "classifier_head",
    "cls",
    "fc",
    "_fc",
    "last_linear",
    "lm_head",
    "embed_out",
    "logits",
    "logit_scale",
    "output",
    "output_layer",
    "qa_outputs",
    "score",
    "pre_classifier",
    "pooler",
)
"""Names that the field gives to heads, as a child of the model or of one of its children."""

DEPTH = 2
REASON = "a head, which stays by default; skip=[] factors it too"


def heads_of(model: nn.Module) -> set[nn.Module]:
    """The layers that are heads: by the model's own word (transformers, timm), else by name.

    Of a module with such a name the last layer counts, so that the wide layers of a VGG's
    classifier are no heads; of a pooler all.
    """
    found = set(_declared(model))
    for name, module in model.named_modules():
        parts = name.split(".")
        if not name or len(parts) > DEPTH or parts[-1] not in HEADS:
            continue
        layers = [m for m in module.modules() if _has_weight(m)]
        found.update(layers if parts[-1] == "pooler" else layers[-1:])
    return found


def _declared(model: nn.Module) -> Iterator[nn.Module]:
    for method in ("get_output_embeddings", "get_classifier"):
        ask = getattr(model, method, None)
        if not callable(ask):
            continue
        try:
            answer = ask()
        except Exception:  # a model of another kind, with a method of that name
            continue
        if isinstance(answer, nn.Module) and _has_weight(answer):
            yield answer


def _has_weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim > 1
