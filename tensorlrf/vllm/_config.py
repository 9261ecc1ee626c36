"""The quantisation method "tensorlrf", as vLLM asks for one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.linear import (
    LinearBase,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import WeightsMapper

from tensorlrf.compression.checkpoint.pretrained.quantization import METHOD
from tensorlrf.errors import UnsupportedError
from tensorlrf.vllm._book import Book
from tensorlrf.vllm._folder import check_folder
from tensorlrf.vllm._linear import Dense, LowRankLinear
from tensorlrf.vllm._table import LowRankTable
from tensorlrf.vllm._told import Factored, parts_of, served, table_of

register_weight_loader_v2_supported_method(Dense)  # as of the class that it is made of


class ServedConfig(QuantizationConfig):
    """What config.json tells of layers on factors; vLLM sends it to each of its processes.

    Parameters
    ----------
    layers : dict of str to Factored
        By the names that they have in the files; later by those of vLLM's modules.

    Raises
    ------
    FileFormatError, UnsupportedError
        By `from_config` and `maybe_update_config`, for a folder that is not to be served.
    """

    def __init__(self, layers: dict[str, Factored]) -> None:
        super().__init__()
        self.layers = layers
        self.left_out: frozenset[str] = frozenset()
        self._fresh()

    def _fresh(self) -> None:
        """Nothing of a model that is loaded goes to another process, or to a copy."""
        self.book = Book()
        self.met: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("book", "met")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    # ---- what vLLM asks of every method ------------------------------------------------------

    def get_name(self) -> Any:
        """Its name."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """All that vLLM runs in."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any GPU: where our kernels do not compile, library products run in their place."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None beside config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ServedConfig:
        """Of the entry of config.json."""
        return cls(served(config, "config.json"))

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Look at a folder on this machine, before anything is read."""
        if os.path.isdir(model_name):
            self.left_out = check_folder(Path(model_name), self.layers)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Take the names that vLLM's modules have."""
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_checkpoint_weight_mapper(self) -> Any:
        """Has vLLM pass over what `tensorlrf.load` alone reads."""
        dropped = {re.compile(rf"^{re.escape(name)}$"): None for name in self.left_out}
        return WeightsMapper(orig_to_new_regex=dropped)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """The method of a layer; None for one that has its own."""
        if isinstance(layer, VocabParallelEmbedding):
            return self._of_table(layer, prefix)
        if isinstance(layer, LinearBase):
            parts = parts_of(prefix, self.layers, self.packed_modules_mapping)
            self.met |= {name for name, factors in parts if factors is not None}
            if all(factors is None for _, factors in parts):
                return Dense(self._check_met)
            return LowRankLinear(parts, self.book)
        inside = next((one for one in self.layers if prefix and one.startswith(f"{prefix}.")), None)
        if inside is not None:
            raise UnsupportedError(
                f"{inside!r} lies in a {type(layer).__name__} of vLLM, which has no place for "
                "factors; leave it dense"
            )
        return None

    def _of_table(self, layer: Any, prefix: str) -> LowRankTable | None:
        shape = (layer.org_vocab_size, layer.embedding_dim)
        found = table_of(prefix, shape, self.layers, head=isinstance(layer, ParallelLMHead))
        if found is None:
            return None
        self.met.add(found)
        return LowRankTable(self.layers[found], self.book)

    def _check_met(self) -> None:
        """Raise UnsupportedError where factors are for no layer that vLLM's model has."""
        lost = sorted(set(self.layers) - self.met)
        if lost and get_pp_group().world_size == 1:
            raise UnsupportedError(
                f"{lost[0]!r} is on factors, and vLLM's model has no layer of that name that could "
                "be; leave it dense"
            )
