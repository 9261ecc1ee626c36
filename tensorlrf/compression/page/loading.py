"""How a model that was written is loaded, as a section."""

from __future__ import annotations

import os

from tensorlrf.compression.page.document import Section
from tensorlrf.compression.page.parts import code, note
from tensorlrf.files.arguments import PathLike, as_path

SUFFIX = ".safetensors"


def loading_section(saved: PathLike | None) -> Section:
    """For the file or the folder `saved`, of which the name alone is told; without it for whoever
    has the model in memory. Raises ArgumentError for what is no path."""
    if saved is None:
        lines = [
            'tensorlrf.save(small, "small.safetensors")',
            "",
            "model = ...  # the architecture, made as it was made before",
            'small = tensorlrf.load("small.safetensors", model)',
        ]
        told = "The model is saved in one file, and loaded into the architecture that it came from."
        return _section(told, lines)
    path = as_path(saved, "saved")
    name = os.path.basename(os.path.abspath(path))
    if path.suffix == SUFFIX:
        lines = [
            "model = ...  # the architecture, made as it was made before",
            f"small = tensorlrf.load({name!r}, model)",
        ]
        told = "The file holds tensors and how they are factored; nothing in it is code."
        return _section(told, lines)
    told = "The folder holds the configuration, the tensors and the tokenizer; nothing is code."
    return _section(told, [f"small = tensorlrf.load({name!r})"])


def _section(told: str, lines: list[str]) -> Section:
    return Section(
        "loading", "How to load it", (note(told), code("\n".join(["import tensorlrf", "", *lines])))
    )
