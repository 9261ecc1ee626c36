"""Readers of tensors: factors, models, and arrays of others."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import tensorlrf
from tensorlrf import io
from tensorlrf.cli._arrays import read_tensor
from tensorlrf.compression import Moments
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.compression.moments._file import KEY as MOMENTS
from tensorlrf.decomposition import blr, cp, kron, monarch, svd, tr, tt_matrix, tucker
from tensorlrf.decomposition.large._stored import stored
from tensorlrf.factors import Batch, Factors
from tensorlrf.files.safetensors import opened
from tests.abuse.reader import Reader, Wrong, bytes_in, digest, of_factors, of_model
from tests.compression.checkpoint.saved import blank, compressed
from tests.draws import seeded32

FILE = "f.safetensors"


@cache
def factors() -> dict[str, Factors]:
    """One of most formats."""
    matrix, kernel = seeded32(12, 8), seeded32(6, 4, 3, 3, seed=1)
    return {
        "svd": svd(matrix, 2), "cp": cp(kernel, 2, random_state=0), "tucker": tucker(kernel, 2),
        "kron": kron(matrix, 2), "tt": tt_matrix(matrix, 2), "tr": tr(kernel, 2, random_state=0),
        "blr": blr(matrix, 0.5), "monarch": monarch(matrix, 1),
        "batch": Batch.stack([svd(matrix, 2), svd(matrix + 1, 2)]),
    }  # fmt: skip


def first_version(path: Path) -> None:
    """Factors as they were written before there were checksums."""
    tensors, entries = {}, []
    for k, (name, f) in enumerate(factors().items()):
        keys = {part: f"{k}.{part}" for part in f.tensors()}
        tensors.update({keys[part]: t.contiguous().clone() for part, t in f.tensors().items()})
        entries.append({"name": name, "format": f.format, "meta": f.meta(), "tensors": keys})
    save_file(tensors, path, metadata={io.KEY: json.dumps({"version": 1, "entries": entries})})


def loaded_factors(folder: Path) -> str:
    return of_factors(io.load_factors_dict(folder / FILE))


# ---- models ------------------------------------------------------------------------------------


def inspected(folder: Path) -> str:
    report = tensorlrf.inspect(folder / FILE)
    str(report)
    # The size is that of the file, in which a byte more may mean nothing.
    return dataclasses.replace(report, size=0, path="").to_json()


@cache
def architecture() -> nn.Sequential:
    """What the sharded checkpoint is of."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Linear(8, 8, device="cpu", dtype=torch.float32) for _ in range(4))
        )


def make_shards(folder: Path) -> None:
    """A folder as `compress_checkpoint` leaves it."""
    source = folder.parent / "source.safetensors"
    save_file(architecture().state_dict(), source)
    tensorlrf.compress_checkpoint(
        source, folder / "t", keep_params=0.5, shard_bytes=300, threads=1, progress=False
    )
    source.unlink()


GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "files" / "gpt2"


def make_transformer(folder: Path) -> None:
    shutil.copytree(GOLDEN, folder / "t")


# ---- of others ---------------------------------------------------------------------------------


def make_safetensors(folder: Path) -> None:
    tensors = {
        "a": seeded32(3, 4), "b": torch.arange(5, dtype=torch.int64, device="cpu"),
        "c": seeded32(2, 2).bfloat16(), "d": seeded32(0, 7), "e": seeded32(1).bool(),
        "f": seeded32(2).to(torch.float8_e4m3fn),
    }  # fmt: skip
    save_file(tensors, folder / FILE, metadata={"format": "pt", "more": "é"})


def read_safetensors(folder: Path) -> str:
    """Ours, and where ours takes it, what the library makes of it."""
    with opened(folder / FILE) as file:
        own = {name: file.tensor(name) for name in sorted(file.tensors)}
    try:
        other = load_file(folder / FILE)
    except SafetensorError as error:
        raise Wrong(f"the library refuses it: {error}") from error
    if {n: bytes_in(t) for n, t in own.items()} != {n: bytes_in(t) for n, t in other.items()}:
        raise Wrong("the library reads something else")
    return digest(part for name, t in own.items() for part in (name, bytes_in(t)))


def make_array(folder: Path) -> None:
    np.save(folder / "k.npy", np.arange(30.0, dtype=np.float32).reshape(6, 5).T)


def read_array(folder: Path) -> str:
    tensor = read_tensor(folder / "k.npy", None)
    with (folder / "k.npy").open("rb") as file:
        if tensor.numel() * tensor.element_size() > file.seek(0, 2):
            raise Wrong("more numbers than the file has")
    return digest(iter([bytes_in(tensor)]))


def read_stored(folder: Path) -> str:
    """What a decomposition out of core sees of it."""
    found = stored(folder / "k.npy")
    return digest(iter([bytes_in(found.piece(0, 0, found.shape[0]))]))


# ---- moments -----------------------------------------------------------------------------------


def make_moments(folder: Path) -> None:
    batches = [seeded32(40, 8, seed=k) for k in range(2)]
    tensorlrf.calibrate(architecture(), batches, skip=[]).save(folder / FILE)


def read_moments(folder: Path) -> str:
    """All of them, and what is fitted to them."""
    moments = Moments.load(folder / FILE)
    for row in moments.layers:
        moments.kept.read(row)
    small, _ = tensorlrf.compress(
        architecture(), moments=moments, keep_params=0.5, skip=[], progress=False
    )
    if not all(bool(torch.isfinite(p).all()) for p in small.parameters()):
        raise Wrong("a number that is none")
    return of_model(small)


READERS = (
    Reader(
        "factors",
        lambda folder: io.save_factors_dict(factors(), folder / FILE),
        loaded_factors,
        sealed=True,
        key=io.KEY,
    ),
    Reader("factors of version 1", lambda folder: first_version(folder / FILE), loaded_factors),
    Reader(
        "model",
        lambda folder: tensorlrf.save(compressed(), folder / FILE),
        lambda folder: of_model(tensorlrf.load(folder / FILE, blank())),
        sealed=True,
        key=KEY,
    ),
    Reader(
        "inspect",
        lambda folder: tensorlrf.save(compressed(), folder / FILE),
        inspected,
        sealed=True,
        key=KEY,
    ),
    Reader(
        "model in shards",
        make_shards,
        lambda folder: of_model(tensorlrf.load(folder / "t", architecture())),
        sealed=True,
        key=KEY,
    ),
    Reader("safetensors of others", make_safetensors, read_safetensors),
    Reader("array", make_array, read_array),
    Reader("array out of core", make_array, read_stored),
    Reader("moments", make_moments, read_moments, sealed=True, key=MOMENTS),
)

OF_TRANSFORMERS = (
    Reader(
        "folder of transformers",
        make_transformer,
        lambda folder: of_model(tensorlrf.load(folder / "t")),
        key=KEY,
    ),
)
"""Takes seconds to import what it needs."""
