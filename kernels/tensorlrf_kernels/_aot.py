"""Compiling a launch for a chip that need not be here, and reading the code that comes out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import Call


@dataclass(frozen=True)
class Compiled:
    """What one launch compiles to.

    registers      of a thread
    spilled        bytes of a thread that went to local memory, its stack included
    shared_memory  bytes of a block, static and dynamic
    tensor_ops     products on tensor cores in the machine code, by instruction: HMMA up to sm_89,
                   HGMMA (wgmma) on sm_90, UTCHMMA (tcgen05) on sm_100
    """

    registers: int
    spilled: int
    shared_memory: int
    tensor_ops: dict[str, int]

    def problems(self, chip: Chip) -> list[str]:
        """Why this launch should not be made on the chip; empty where nothing speaks against it."""
        found = []
        if self.spilled:
            found.append(f"{self.spilled} bytes of registers spilled")
        if self.shared_memory > chip.shared_memory:
            found.append(f"{self.shared_memory} bytes of shared memory, {chip.shared_memory} exist")
        return found


def compile_call(call: Call, chip: Chip) -> Compiled:
    """Compile the launch for `chip`, with the very attributes that the launch itself would have:
    which addresses, sizes and strides are multiples of 16 or equal to one.

    The tensors of the call may be anywhere, and are not read. Raises what the compiler does.
    """
    return read_code(*binary_of(call, chip))


def binary_of(call: Call, chip: Chip) -> tuple[bytes, int]:
    """The machine code of a launch, and the bytes of shared memory that it asks for."""
    import triton

    source, target, options = source_of(call, chip)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    return compiled.asm["cubin"], compiled.metadata.shared


def source_of(call: Call, chip: Chip) -> tuple[Any, Any, Any]:
    """What the compiler is given for a launch: source, target and options."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    function = call.function
    target = GPUTarget("cuda", chip.capability[0] * 10 + chip.capability[1], 32)
    backend = make_backend(target)
    binder = create_function_from_signature(function.signature, function.params, backend)
    given = {**call.arguments, **call.options}
    bound, specialization, options = binder(**given)
    options, signature, constants, attributes = function._pack_args(
        backend, given, bound, specialization, options
    )
    return ASTSource(function, signature, constants, attributes), target, options


def read_code(cubin: bytes, dynamic: int) -> Compiled:
    """What the toolkit says of machine code that asks for `dynamic` bytes of shared memory."""
    figures = usage_of(cubin)
    with _written(cubin) as path:
        code = _run("cuobjdump", "-sass", path)
    operations = re.findall(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|UTCOMMA)\b", code)
    return Compiled(
        registers=figures["REG"],
        spilled=figures["STACK"] + figures["LOCAL"],
        shared_memory=dynamic + figures.get("SHARED", 0),
        tensor_ops={name: operations.count(name) for name in sorted(set(operations))},
    )


def usage_of(cubin: bytes) -> dict[str, int]:
    """What machine code says that it takes: REG, STACK, LOCAL, SHARED and others."""
    with _written(cubin) as path:
        usage = _run("cuobjdump", "-res-usage", path)
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}


def disassembled(cubin: bytes) -> str:
    """Machine code in words, with the lines of the source that it comes from."""
    with _written(cubin) as path:
        return _run("nvdisasm", "-g", "-c", path)


@contextmanager
def _written(cubin: bytes) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        yield str(path)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout


@cache
def _tool(name: str) -> str:
    """The tool of that name that Triton's wheel carries."""
    import triton

    knobs: Any = triton.knobs.nvidia
    return str(getattr(knobs, name).path)
