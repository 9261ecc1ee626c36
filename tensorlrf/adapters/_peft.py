"""The folder in which peft keeps a LoRA adapter: adapter_config.json, adapter_model.safetensors."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import FileFormatError, MissingFileError, UnsupportedError
from tensorlrf.factors import LowRank
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.folder import filling
from tensorlrf.files.safetensors import opened, plain
from tensorlrf.files.safetensors import write as write_tensors
from tensorlrf.files.strict import JsonNode

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?")
_REMEDY = "load it with peft, merge it there (merge_and_unload), and extract what has changed"

_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "megatron_config": (None,),
}
"""Entries that would make it more than changes of low rank."""

Read = tuple[dict[str, LowRank], dict[str, Tensor], dict[str, float], str]


def read(path: PathLike) -> Read:
    """What an `Adapter` is made of. Raises as `Adapter.load` says."""
    folder = as_path(path)
    for file in (CONFIG, TENSORS):
        if not (folder / file).is_file():
            raise MissingFileError(
                f"path={str(folder)!r} has no {file}; give the folder that save_pretrained of a "
                "PeftModel wrote"
            )
    config = _config(folder / CONFIG)
    with opened(folder / TENSORS) as stored:
        tensors = {name: stored.tensor(name) for name in stored.tensors}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _PART.fullmatch(name.removeprefix(_PREFIX))
        if found is None:
            raise UnsupportedError(
                f"path={str(folder)!r} has {name!r}, which is no change of low rank; {_REMEDY}"
            )
        parts.setdefault(found[1], {})[found[2]] = tensor
    terms, magnitudes = {}, {}
    for name, own in parts.items():
        terms[name] = _term(folder, name, own, _scaling(config, name))
        if "lora_magnitude_vector" in own:
            magnitudes[name] = own["lora_magnitude_vector"].reshape(-1)
    if not terms:
        raise FileFormatError(f"path={str(folder)!r}: {TENSORS} has no tensors")
    return terms, magnitudes, {}, str(config.get("base_model_name_or_path") or "")


def _config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
    node = JsonNode.of_text(text, str(path))
    config: dict[str, Any] = node.mapping()
    for key, allowed in _MUST_BE.items():
        value = config.get(key, allowed[0])
        if value not in allowed:
            raise UnsupportedError(f"{path}: {key} is {value!r}; {_REMEDY}")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or isinstance(config[key], bool):
            node.wrong(f"a mapping with a number as {key!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            node[key].wrong("a mapping")
    return config


def _scaling(config: Mapping[str, Any], name: str) -> float:
    """s of a layer: alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""
    r = _of_layer(config.get("rank_pattern") or {}, name, config["r"])
    alpha = _of_layer(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return float(alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r)


def _of_layer(pattern: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """As peft looks it up: the first key that is the end of the name, as a regular expression."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return otherwise


def _term(folder: Path, name: str, own: Mapping[str, Tensor], scaling: float) -> LowRank:
    if not {"lora_A", "lora_B"} <= own.keys():
        raise FileFormatError(
            f"path={str(folder)!r}: {name!r} has {', '.join(sorted(own))} alone; get it anew"
        )
    A, B = own["lora_A"], own["lora_B"]
    r = A.shape[0] if A.ndim else 0
    if A.ndim != B.ndim or A.ndim < 2 or B.shape[1] != r or math.prod(B.shape[2:]) != 1:
        raise FileFormatError(
            f"path={str(folder)!r}: {name!r} has lora_A {tuple(A.shape)} and lora_B "
            f"{tuple(B.shape)}, which do not make a product; get it anew"
        )
    left = scaling * B.reshape(len(B), r).to(torch.promote_types(B.dtype, torch.float32))
    return LowRank(left.to(B.dtype), A.reshape(r, -1), (len(B), *A.shape[1:]))


def write(
    path: PathLike,
    terms: Mapping[str, LowRank],
    magnitudes: Mapping[str, Tensor],
    base: str,
    *,
    overwrite: bool,
) -> None:
    """The two files, both or none. Raises as `Adapter.save` says."""
    tensors: dict[str, Tensor] = {}
    for name, term in terms.items():
        at, ones = f"{_PREFIX}{name}", [1] * (len(term.shape) - 2)
        tensors[f"{at}.lora_A.weight"] = plain(term.right.reshape(term.rank, *term.shape[1:]))
        tensors[f"{at}.lora_B.weight"] = plain(term.left.reshape(*term.left.shape, *ones))
        if name in magnitudes:
            tensors[f"{at}.lora_magnitude_vector"] = plain(magnitudes[name])
    config = _written(terms, bool(magnitudes), base)
    with filling(path, names=[CONFIG, TENSORS], overwrite=overwrite) as folder:
        write_tensors(folder / TENSORS, tensors, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _written(terms: Mapping[str, LowRank], dora: bool, base: str) -> dict[str, Any]:
    """adapter_config.json. alpha is the rank of each layer: the scaling is one."""
    usual = Counter(term.rank for term in terms.values()).most_common(1)[0][0]
    # peft takes a key as a regular expression for the end of a name, and the first that fits:
    # longer names first, so that none stands for another that ends like it.
    unusual = sorted((n for n, t in terms.items() if t.rank != usual), key=len, reverse=True)
    longer = [n for n, t in terms.items() if t.rank == usual and _ends_alike(n, unusual)]
    named = sorted([*unusual, *longer], key=len, reverse=True)
    others = {re.escape(name): terms[name].rank for name in named}
    return {
        "peft_type": "LORA", "base_model_name_or_path": base or None, "task_type": None,
        "inference_mode": True, "r": usual, "lora_alpha": usual, "lora_dropout": 0.0,
        "target_modules": sorted(terms), "rank_pattern": others, "alpha_pattern": others,
        "bias": "none", "fan_in_fan_out": False, "use_dora": dora, "use_rslora": False,
        "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip


def _ends_alike(name: str, others: Sequence[str]) -> bool:
    return any(name.endswith(f".{other}") for other in others)
