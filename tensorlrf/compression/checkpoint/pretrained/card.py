"""The README.md of a folder with a compressed model: what it is, how to load it."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from torch import nn

from tensorlrf.compression._words import bytes_words, error_words, rank_words
from tensorlrf.compression.checkpoint._layers import blank_factors, numbers_in
from tensorlrf.compression.checkpoint.header import LayerEntry
from tensorlrf.compression.checkpoint.named_tensors import LASTING, joined, named_tensors
from tensorlrf.compression.checkpoint.pretrained.marks import MODULES, TRANSFORMERS, library_of
from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization

CARD = "README.md"

_OURS = "<!-- written by tensorlrf with the model; a text of your own in its place stays -->"


def write_card(folder: Path, model: nn.Module) -> None:
    """Write the card of a model, unless there is one that somebody else wrote."""
    if is_own(folder):
        told, name = Quantization.of_model(model), type(model).__name__
        text = card(told, _sizes(model), name, library_of(model) or TRANSFORMERS)
        (folder / CARD).write_text(text, encoding="utf-8")


def is_own(folder: Path) -> bool:
    """Whether the card of the folder is one of ours, or there is none."""
    path = folder / CARD
    try:
        return not os.path.lexists(path) or _OURS in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def card(
    told: Quantization, sizes: tuple[int, int], architecture: str, library: str = TRANSFORMERS
) -> str:
    """The text.

    sizes    numbers and bytes of the model's parameters and persistent buffers
    library  that has the architecture
    """
    numbers, n_bytes = sizes
    dense = _dense(numbers, told)
    loader = _loader(architecture) if library == TRANSFORMERS else architecture
    module = MODULES[library]
    extra = module.rpartition(".")[2]
    by_vllm = ["`vllm serve FOLDER` serves it where tensorlrf is installed too.", ""]
    is_served = loader == "AutoModelForCausalLM" and all(
        one.format == "lowrank" for one in told.layers
    )
    lines = [
        "---",
        f"library_name: {library}",
        "tags:",
        "- tensorlrf",
        "- low-rank",
        "---",
        "",
        _OURS,
        "",
        f"# {architecture}, compressed",
        "",
        f"Weights of this model are factors of low rank, made by tensorlrf {told.made_by}.",
        "",
        "| | dense | here |",
        "| --- | ---: | ---: |",
        f"| numbers | {dense:,} | {numbers:,} ({_share(numbers, dense)}) |",
        f"| size | {bytes_words(n_bytes * dense / max(1, numbers))} | {bytes_words(n_bytes)} |",
        f"| layers on factors | 0 | {len(told.layers):,} |",
        "",
        "```python",
        f"import {module}  # pip install 'tensorlrf[{extra}]'; without it {library} refuses",
        f"from {library} import {loader}",
        "",
        f'model = {loader}.from_pretrained("this folder")',
        "```",
        "",
        *(by_vllm if is_served else []),
        "`tensorlrf.load(folder)` gives the same model. Errors are relative, root mean square; "
        "those of outputs are of one layer, on inputs held out where there were any.",
        "",
        "| layers | format | rank | numbers kept | error of weights | error of outputs |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *_rows(told),
        "",
    ]
    return "\n".join(lines)


def _rows(told: Quantization) -> list[str]:
    """A row for the layers of one name, whatever blocks they are in."""
    groups: dict[tuple[str, str], list[LayerEntry]] = {}
    for one in told.layers:
        name = ".".join("*" if part.isdecimal() else part for part in one.places[0].split("."))
        groups.setdefault((name, one.format), []).append(one)
    return [
        f"| `{name or '(model)'}` ({len(own)}) | {kind} | {_ranks(own)} | "
        f"{_share(sum(map(numbers_in, own)), sum(math.prod(one.shape) for one in own))} | "
        f"{_errors(own, told, 'weight_error')} | {_errors(own, told, 'output_error')} |"
        for (name, kind), own in groups.items()
    ]


def _ranks(own: list[LayerEntry]) -> str:
    ranks = [blank_factors(one, "model").rank for one in own]
    if all(isinstance(rank, int) for rank in ranks):
        low, high = min(ranks), max(ranks)
        return str(low) if low == high else f"{low} to {high}"
    return rank_words(Counter(ranks).most_common(1)[0][0])


def _errors(own: list[LayerEntry], told: Quantization, key: str) -> str:
    """Relative ones, from the best to the worst, where the recipes tell."""
    recipes: list[Any] = [told.plan.get(one.places[0]) for one in own]
    errors = [recipe.get(key) for recipe in recipes if isinstance(recipe, dict)]
    known = [error for error in errors if isinstance(error, float)]
    if not known:
        return "-"
    low, high = (error_words(one) for one in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _dense(numbers: int, told: Quantization) -> int:
    """How many numbers the model had before; what layers have in common counts once."""
    factors: dict[str, int] = {}
    weights: dict[frozenset[str], int] = {}
    for one in told.layers:
        names = {joined(one.places[0], part.replace(".", "_")): part for part in one.parts}
        own = {
            told.tied.get(name, name): math.prod(one.parts[part]) for name, part in names.items()
        }
        factors |= own
        weights[frozenset(own)] = math.prod(one.shape)
    left_out = sum(one.left_out for one in told.resized)
    return numbers - sum(factors.values()) + sum(weights.values()) + left_out


def _sizes(model: nn.Module) -> tuple[int, int]:
    held = {id(one.tensor): one.tensor for one in named_tensors(model) if one.role in LASTING}
    return (
        sum(t.numel() for t in held.values()),
        sum(t.numel() * t.element_size() for t in held.values()),
    )


def _loader(architecture: str) -> str:
    """The Auto class that makes such a model."""
    if "For" not in architecture and not architecture.endswith("HeadModel"):
        return "AutoModel"
    known = {
        "ForCausalLM": "AutoModelForCausalLM",
        "LMHeadModel": "AutoModelForCausalLM",
        "ForSequenceClassification": "AutoModelForSequenceClassification",
        "ForTokenClassification": "AutoModelForTokenClassification",
        "ForQuestionAnswering": "AutoModelForQuestionAnswering",
        "ForMaskedLM": "AutoModelForMaskedLM",
        "ForImageClassification": "AutoModelForImageClassification",
    }
    return next((auto for end, auto in known.items() if architecture.endswith(end)), architecture)
