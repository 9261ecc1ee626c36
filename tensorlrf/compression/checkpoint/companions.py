"""The small files of a model's folder, which go along with its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tensorlrf.compression.checkpoint.folder import FILES
from tensorlrf.compression.checkpoint.source import CONFIG, GENERATION

KEPT = (
    *("README*", "LICENSE*", "NOTICE*", "USE_POLICY*", "*.md"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "*.tiktoken", "tokenizer.model"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm", "target.spm"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("preprocessor_config.json", "processor_config.json", "*_preprocessor_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
)
"""Files of a folder that go along: what tokenizers and processors read, and what people do."""

KEPT_IN_PARTS = ("config.json", "model.safetensors", *KEPT)
"""The same in the folders of the other modules of a sentence encoder, whose weights are small."""

WEIGHTS = (
    *("*.safetensors", "*.bin", "*.h5", "*.onnx", "*.gguf", "*.msgpack", "*.pt", "*.pth", "*.ckpt"),
    *("*.ot", "*.tflite", "*.onnx_data", "*.index.json"),
)
"""Names of dense weights, which the factors replace."""


def copy_companions(source: Path, target: Path) -> list[Path]:
    """Copy the known small files of a folder into another one, where they are not there yet; those
    of the source that nothing is known of."""
    kept, left = _others(source)
    for inside in kept:
        copy = target / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copyfile(source / inside, copy)
    return left


def companions_of(source: Path) -> list[Path]:
    """What of the folder goes along: configurations and known small files, by their names in it."""
    told = [Path(name) for name in (CONFIG, GENERATION) if (source / name).is_file()]
    return [*told, *_others(source)[0]]


def _others(source: Path) -> tuple[list[Path], list[Path]]:
    """The files that go along, and those that nothing is known of; neither weights nor hidden."""
    parts = _sentence_parts(source)
    kept, left = [], []
    for file in sorted(source.rglob("*")):
        inside = file.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not file.is_file() or hidden or str(inside) in FILES:
            continue
        of_part = inside.parts[0] in parts
        name = inside.relative_to(inside.parts[0]) if of_part else inside
        if matches(name.as_posix(), KEPT_IN_PARTS if of_part else KEPT):
            kept.append(inside)
        elif of_part or not matches(file.name, WEIGHTS):
            left.append(inside)
    return kept, left


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether the name fits one of the globs."""
    return any(fnmatchcase(name, glob) for glob in globs)


def _sentence_parts(source: Path) -> set[str]:
    """Subfolders of the other modules of a sentence encoder."""
    if not (source / "modules.json").is_file():  # a pipe would be waited for
        return set()
    try:
        entries = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        return {entry["path"] for entry in entries if isinstance(entry["path"], str)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
