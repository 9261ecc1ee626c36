"""The program on small files: what it prints, without what depends on a machine or on a fit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tensorlrf._files._safetensors import plain
from tensorlrf.cli import main
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
)


def command_line() -> Iterator[str]:
    """Each command line, its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder, _in_folder(Path(folder)):
        np.save("t.npy", (whole(torch.empty(16, 12)) + 9 * torch.eye(16, 12)).numpy())
        _save_net(Path("net.safetensors"))
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


def _told(arguments: str, folder: str) -> Iterator[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments.split())
    yield f"$ tensorlrf {arguments}".rstrip()
    text = out.getvalue() if "--help" in arguments else _without_numbers(out.getvalue(), arguments)
    for line in (*text.splitlines(), *err.getvalue().splitlines()):
        yield f"    {line.replace(folder, 'FOLDER')}".rstrip()
    yield f"    exit {code}"


def _without_numbers(text: str, arguments: str) -> str:
    """Without numbers that a fit or a clock gave; of JSON the keys and the kinds of values."""
    if "--json" in arguments and text.startswith("{"):
        return json.dumps(_kinds(json.loads(text)), indent=1)
    text = re.sub(r"\b[0-9a-f]{12,}\b", "HASH", text)
    text = re.sub(r"\d[\d.,]*(e[-+]\d+)?", "#", text)
    return re.sub(r" *│ *", " │ ", re.sub(r"[ ─━]{2,}", "  ", text))


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
