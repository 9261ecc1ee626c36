"""Folders of diffusers: other names of files, a configuration of another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from tensorlrf.compression.checkpoint.pretrained.marks import DIFFUSERS, library_of
from tensorlrf.compression.checkpoint.pretrained.quantization import QUANTIZATION, Quantization
from tensorlrf.compression.checkpoint.source import CONFIG, DIFFUSERS_WEIGHTS, PLAIN_WEIGHTS


def weights_of(model: nn.Module) -> str:
    """How the file of the tensors is called."""
    return (DIFFUSERS_WEIGHTS if library_of(model) == DIFFUSERS else PLAIN_WEIGHTS)[0]


def write_config(model: Any, told: Quantization, folder: Path) -> None:
    """config.json as save_pretrained of diffusers writes it, with what is told of the layers."""
    values = json.loads(model.to_json_string())
    values.pop(QUANTIZATION, None)
    if told.layers:
        values[QUANTIZATION] = told.to_json()
    text = json.dumps(values, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
