"""The program on small files: what it prints, without what depends on a machine or on a fit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tensorlrf.cli import main
from tensorlrf.files.safetensors import plain
from tensorlrf.ops.explain import main as explain
from tests.golden.samples import whole

COMMANDS = ("compress", "inspect", "decompose")
METHODS = (
    *("svd", "tucker", "cp", "tt", "tr", "kron", "tt_matrix"),
    *("blr", "hierarchical", "hodlr", "monarch", "blast"),
)
BY_SHARE = ("blr", "hierarchical", "hodlr", "monarch", "blast")
REFUSED: tuple[str, ...] = (
    "",
    "--version",
    "unknown",
    "decompose",
    "decompose t.npy",
    "decompose none.npy -o out.safetensors",
    "decompose t.npy -o out.txt --rank 3",
    "decompose t.npy -o out.safetensors",
    "decompose t.npy -o out.safetensors --rank 3 --error .1",
    "decompose t.npy -o out.safetensors --rank many",
    "decompose t.npy -o out.safetensors --rank 0",
    "decompose t.npy -o out.safetensors --rank 99",
    "decompose t.npy -o out.safetensors --error 2",
    "decompose t.npy -o out.safetensors --method unknown --rank 3",
    "decompose t.npy -o out.safetensors --method svd --rank 3 --modes 0,1",
    "decompose t.npy -o out.safetensors --method tucker --rank 3 --modes 0,x",
    "decompose net.safetensors -o out.safetensors --rank 3",
    "decompose net.safetensors -o out.safetensors --rank 3 --name none",
    "decompose t.npy -o t.npy --rank 3",
    "inspect none.safetensors",
    "inspect net.safetensors",
    "inspect t.npy",
    "compress none.safetensors -o out.safetensors --keep-params .5",
    "compress net.safetensors -o out.safetensors",
    "compress net.safetensors -o out.safetensors --keep-params 2",
    "compress net.safetensors -o out.safetensors --keep-params .5 --error .1",
    "compress net.safetensors -o out.safetensors --keep-params .5 --method unknown",
    "compress net.safetensors -o net.safetensors --keep-params .5",
    "compress net.safetensors -o out.safetensors --keep-params .5 --text none.txt",
)
RUN: tuple[str, ...] = (
    "compress net.safetensors -o small.safetensors --keep-params .5",
    "compress net.safetensors -o small.safetensors --keep-params .5",
    "compress net.safetensors -o small.safetensors --keep-params .5 --force --json",
    "inspect small.safetensors",
    "inspect small.safetensors --verify --json",
    "compress net.safetensors --keep-params .5 --plan-only",
    "compress net.safetensors --error .3 --method auto --skip conv --plan-only",
    "compress net.safetensors --keep-params .5 --plan-only --json",
    *(
        f"compress net.safetensors -o {word}_net.safetensors --keep-params .9 --method {word}"
        for word in ("tucker", "cp", "auto", "kron", "tt", "tr", "blr", "monarch", "blast")
    ),
    "decompose k.npy -o k_svd.safetensors --error .5",
    "decompose k.npy -o k_tucker.safetensors --method tucker --rank 3 --modes 0,1",
    "decompose k.npy -o k_cp.safetensors --method cp --rank 3",
    "decompose k.npy -o k_tt.safetensors --method tt --rank 2",
    "decompose k.npy -o k_kron.safetensors --method kron --rank 2",
    "decompose k.npy -o k_tr.safetensors --method tr --rank 2",
    "decompose k.npy -o k_blr.safetensors --method blr --rank .5",
    "decompose net.safetensors -o conv.safetensors --name conv.weight --method tucker --rank 3",
    "compress gpt2 -o small --keep-params .7",
    "compress gpt2 -o small --keep-params .7 --text none.txt --force",
    "inspect small",
    "inspect small --verify --json",
)
EXPLAINED: tuple[str, ...] = (
    "--help",
    "64x64x3x3 --format cp --rank 32 --device A100 --dtype float16",
    "768x512 --rank 64 --device H200 --rows 1 4096 --frozen",
    "768 --rank 64",
    "768x512 --rank 0",
    "768x512 --rank 64 --format unknown",
    "768x512 --rank 64 --dtype unknown",
    "768x512 --rank 64 --device unknown",
)
"""Of `python -m tensorlrf.ops.explain`."""


def command_line() -> Iterator[str]:
    """Each command line, its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder, _in_folder(Path(folder)):
        np.save("t.npy", (whole(torch.empty(16, 12)) + 9 * torch.eye(16, 12)).numpy())
        np.save("k.npy", whole(torch.empty(8, 6, 3, 3)).numpy())
        _save_net(Path("net.safetensors"))
        _save_gpt2(Path("gpt2"))
        for arguments in ("--help", *(f"{command} --help" for command in COMMANDS)):
            yield from _told(arguments, folder)
        for arguments in (*REFUSED, *RUN):
            yield from _told(arguments, folder)
        for method in METHODS:
            rank = ".6" if method in BY_SHARE else "3"
            target = f"{method}.safetensors"
            yield from _told(f"decompose t.npy -o {target} --method {method} --rank {rank}", folder)
            yield from _told(f"inspect {target}", folder)
            yield from _told(f"inspect {target} --json", folder)
        for arguments in EXPLAINED:
            yield from _told(arguments, folder, "python -m tensorlrf.ops.explain", explain)


def _told(
    arguments: str,
    folder: str,
    program: str = "tensorlrf",
    run: Callable[[list[str]], int] = main,
) -> Iterator[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = run(arguments.split(" ") if arguments else [])
        except SystemExit as ended:  # argparse
            code = ended.code
    yield f"$ {program} {arguments}".rstrip()
    exact = "--help" in arguments or run is explain
    text = out.getvalue() if exact else _without_numbers(out.getvalue(), arguments)
    for line in (*text.splitlines(), *err.getvalue().splitlines()):
        yield f"    {line.replace(folder, 'FOLDER')}".rstrip()
    yield f"    exit {code}"


def _without_numbers(text: str, arguments: str) -> str:
    """Without numbers that a fit or a clock gave; of JSON the keys and the kinds of values."""
    if "--json" in arguments and text.startswith("{"):
        return json.dumps(_kinds(json.loads(text)), indent=1)
    text = re.sub(r"\b[0-9a-f]{12,}\b", "HASH", text)
    text = re.sub(r"\d[\d.,]*(e[-+]\d+)?", "#", text)
    return re.sub(r" *([│┃]) *", r" \1 ", re.sub(r"[ ─━]{2,}", "  ", text))


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_kinds(value[0])] if value else []
    return type(value).__name__


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """There, on a terminal of 100 columns."""
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    try:
        yield
    finally:
        os.chdir(before)
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _save_net(path: Path) -> None:
    from safetensors.torch import save_file

    layers = {
        "conv": nn.Conv2d(6, 12, 3),
        "norm": nn.BatchNorm2d(12),
        "hidden": nn.Linear(24, 16),
        "head": nn.Linear(16, 4),
    }
    tensors = nn.ModuleDict(layers).state_dict()
    for turn, (name, tensor) in enumerate(tensors.items()):
        tensors[name] = plain(whole(tensor, turn))
    save_file(tensors, path)


def _save_gpt2(path: Path) -> None:
    import transformers
    from safetensors.torch import save_file

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    config: Any = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(path)
    tensors = transformers.GPT2LMHeadModel(config).state_dict()
    del tensors["lm_head.weight"]  # tied
    for turn, (name, tensor) in enumerate(tensors.items()):
        tensors[name] = plain(whole(tensor, turn))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
