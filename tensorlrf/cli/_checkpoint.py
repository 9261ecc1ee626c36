"""A checkpoint whose model is not at hand, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tensorlrf.compression import write_checkpoint
from tensorlrf.compression.checkpoint.by_name import NamedLayers, check_name, layers_by_name
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.errors import FileError, FileFormatError
from tensorlrf.files.safetensors import opened
from tensorlrf.nn import FactoredLayer


@dataclass(frozen=True)
class Checkpoint:
    """tensors  name -> tensor of the file
    layers   those that they seem to be of
    """

    tensors: Mapping[str, Tensor]
    layers: NamedLayers

    def write(self, small: nn.Module, target: Path, overwrite: bool) -> None:
        """Write the tensors, with the factors of `small` in place of the weights they stand for."""
        layers = {n: m for n, m in small.named_modules() if isinstance(m, FactoredLayer)}
        factors = {joined(name, "weight"): layer.factors for name, layer in layers.items()}
        others = {name: t for name, t in self.tensors.items() if name not in factors}
        recipes = {name: layer.recipe for name, layer in layers.items()}
        write_checkpoint(target, others, factors, plan=recipes, overwrite=overwrite)


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises FileError where there is no file, FileFormatError where it is none to compress."""
    tensors = _read(path)
    return Checkpoint(tensors, layers_by_name(tensors))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(f"{path} is not there; give a .safetensors file or a folder")
    if path.suffix != ".safetensors":
        raise FileFormatError(
            f"{path} is no .safetensors file; others may hold code and are not opened: write one "
            "with safetensors.torch.save_file(model.state_dict(), ...)"
        )
    with opened(path) as file:
        if KEY in file.metadata:
            raise FileFormatError(f"{path} is compressed already; give the dense checkpoint")
        for name in file.tensors:
            check_name(path, name)
        tensors = {name: file.tensor(name) for name in file.tensors}
    if not tensors:
        raise FileFormatError(f"{path} holds no tensors")
    return tensors
