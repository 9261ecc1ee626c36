"""What blocks put out for each batch: in memory as far as that may go, else in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tensorlrf.errors import FileError, UnsupportedError
from tensorlrf.files.replace import remove
from tensorlrf.files.safetensors import opened, plain, write

PLAIN = (type(None), bool, int, float, str)
"""What may be among the outputs of a block beside tensors."""

Key = tuple[str, int, int]
"""Which model, number of a block, number of a batch."""


@dataclass(frozen=True)
class _Held:
    """An output in parts: its leaves, of which tensors may lie in a file and be on meta here, and
    how they make it."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    file: Path | None
    n_bytes: int


class States:
    """Outputs of blocks, of which no more than `room` bytes are in memory, on the CPU.

    folder  for those that have no room; it goes with `close`
    device  where they are used
    spilled how many bytes have been written to it
    """

    def __init__(self, folder: Path, room: float, device: torch.device | str = "cpu") -> None:
        self.folder, self.room, self.device = folder, room, device
        self.spilled = 0
        self._held: dict[Key, _Held] = {}
        self._size = 0
        self.close()

    def __deepcopy__(self, _: object) -> States:
        return self  # of all copies of a model

    def put(self, key: Key, output: Any) -> None:
        """Keep an output. Raises UnsupportedError for what is more than tensors and numbers."""
        self.drop(key)
        leaves, spec = pytree.tree_flatten(output)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *PLAIN)):
                raise UnsupportedError(f"it puts out a {type(leaf).__name__}")
        if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
            raise UnsupportedError(f"it puts out no floating-point tensor, but {output!r:.60}")
        size = sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
        # Of their own: a tensor may be part of a larger one, or be written to.
        own = [t.detach().to("cpu", copy=True) if isinstance(t, Tensor) else t for t in leaves]
        file = None
        if self._size + size > self.room:
            file = self._written(key, own)
            own = [t.to("meta") if isinstance(t, Tensor) else t for t in own]
            self.spilled += size
        else:
            self._size += size
        self._held[key] = _Held(tuple(own), spec, file, size)

    def get(self, key: Key) -> Any:
        """A copy of it."""
        held = self._held[key]
        leaves = list(held.leaves)
        if held.file is not None:
            with opened(held.file) as file:
                leaves = [
                    file.tensor(str(k)) if isinstance(leaf, Tensor) else leaf
                    for k, leaf in enumerate(leaves)
                ]
        copy = held.file is None
        leaves = [t.to(self.device, copy=copy) if isinstance(t, Tensor) else t for t in leaves]
        return pytree.tree_unflatten(leaves, held.spec)

    def shape_of(self, key: Key) -> tuple[list[Any], pytree.TreeSpec]:
        """(leaves, with a tensor on meta for each tensor; how they make the output)."""
        held = self._held[key]
        leaves = [leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in held.leaves]
        return leaves, held.spec

    def drop(self, key: Key) -> None:
        """Forget it, if it is there."""
        held = self._held.pop(key, None)
        if held is None:
            return
        if held.file is None:
            self._size -= held.n_bytes
        else:
            held.file.unlink(missing_ok=True)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def keys(self) -> Iterator[Key]:
        return iter(tuple(self._held))

    def close(self) -> None:
        """Forget all of them, and what an earlier run has left."""
        self._held.clear()
        self._size = 0
        remove(self.folder)  # of a link that a stranger has made, not what it leads to

    def _written(self, key: Key, leaves: list[Any]) -> Path:
        path = self.folder / ("-".join(map(str, key)) + ".safetensors")
        tensors = {str(k): plain(t) for k, t in enumerate(leaves) if isinstance(t, Tensor)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(path, tensors, {})
        except OSError as error:
            raise FileError(
                f"{path} cannot be written: {error}; what was done is kept, the same call goes on"
            ) from error
        return path
