"""Models of folders, dense or compressed, and inputs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.cli._arrays import some
from tensorlrf.cli._huggingface import quiet, read_model
from tensorlrf.compression import load
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.pretrained.standard import told_in
from tensorlrf.compression.metrics.windows import TOKENS
from tensorlrf.errors import ArgumentError, FileError, FileFormatError
from tensorlrf.files.safetensors import opened


def is_compressed(folder: Path) -> bool:
    """Whether tensorlrf or save_pretrained wrote factored layers into it."""
    return (folder / TENSORS).is_file() or told_in(folder) is not None


def check_runs(path: Path) -> None:
    """Raise for what is no folder, of which alone a model can be made and run."""
    if not path.exists():
        raise FileError(f"{path} is not there; give a folder with a model of transformers")
    if not path.is_dir():
        raise ArgumentError(
            f"{path} is a file, of which the architecture is not known; give a folder with a model "
            "of transformers, or call tensorlrf.bench and tensorlrf.compare with models"
        )


def read_any(folder: Path, dtype: str = "keep") -> nn.Module:
    """The model of a folder, dense or compressed; a dense one in its own dtype, or in float32."""
    if is_compressed(folder):
        with quiet():
            return load(folder)
    return read_model(folder, dtype)


def read_both(one: Path, other: Path) -> tuple[nn.Module, nn.Module]:
    """Two models, a dense one in float32 where the compressed one is, which `compress` makes of any
    dtype."""
    folders = one, other
    made: dict[int, nn.Module] = {}
    for k in sorted(range(2), key=lambda k: not is_compressed(folders[k])):
        known = [p.dtype for model in made.values() for p in model.parameters()]
        wide = bool(known) and all(dtype == torch.float32 for dtype in known)
        made[k] = read_any(folders[k], "float32" if wide else "keep")
    return made[0], made[1]


def read_inputs(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, which the model gets under their names."""
    if path.suffix != ".safetensors":
        raise FileFormatError(f"--data {path} must be a .safetensors, its tensors named as inputs")
    if not path.is_file():
        raise FileError(f"--data {path} is not a file")
    with opened(path) as file:
        found = {name: file.tensor(name) for name in sorted(file.tensors)}
    if not found:
        raise ArgumentError(f"--data {path} holds no tensor")
    if not all(name.isidentifier() for name in found):
        raise ArgumentError(f"--data {path}: {some(list(found), 5)} are no names of inputs")
    return found


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors among them there."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def drawn_inputs(model: Any, batch: int, tokens: int | None, seed: int) -> dict[str, Any]:
    """Inputs of the kind that the model takes first, tokens or pixels, drawn by the seed; with None
    for `tokens` as many as usual, or as it has positions for.

    Raises ArgumentError where that is another kind.
    """
    draws = torch.Generator("cpu").manual_seed(seed)
    first, config = getattr(model, "main_input_name", ""), model.config
    if first == "input_ids":
        limit = getattr(config, "max_position_embeddings", None)
        most = limit if isinstance(limit, int) and limit > 0 else None
        if most is not None and tokens is not None and most < tokens:
            raise ArgumentError(f"--tokens {tokens} is above the {limit} positions of the model")
        usual = TOKENS if most is None else min(TOKENS, most)
        shape = batch, usual if tokens is None else tokens
        ids = torch.randint(0, config.vocab_size, shape, generator=draws, device="cpu")
        more = {"decoder_input_ids": ids[:, :8]} if config.is_encoder_decoder else {}
        return {first: ids, **more}
    size, channels = (getattr(config, name, None) for name in ("image_size", "num_channels"))
    if first == "pixel_values" and isinstance(channels, int) and size is not None:
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        shape = batch, channels, *sides
        drawn = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
        return {first: drawn.to(model.dtype)}
    raise ArgumentError(
        f"--data is missing: inputs of a {type(model).__name__}, {first or 'of a kind not told'}, "
        "cannot be drawn; give a .safetensors with them"
    )
