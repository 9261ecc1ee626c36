"""Machine code as instructions: what they are, where they branch to, and whence they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_CODE = re.compile(r"/\*([0-9a-f]+)\*/\s+(@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*(\.L_[\w.$]+):")
_TARGET = re.compile(r"`\((\.L_[\w.$]+)\)")

PIPES = ("tensor", "fma", "alu", "uniform", "mufu", "lsu", "control")
_TENSOR = ("HMMA", "HGMMA", "IMMA", "IGMMA", "QGMMA", "DMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA")
# IMAD is done by the units that multiply and add floats.
_FMA = ("FFMA", "FMUL", "FADD", "HFMA2", "HMUL2", "HADD2", "DFMA", "DMUL", "DADD", "IMAD", "IMMUL")
_MUFU = ("MUFU", "I2F", "F2I", "F2F", "I2I", "FRND", "POPC", "FLO", "BREV")
_LSU = ("LD", "ST", "ATOM", "RED", "SHFL", "UTMA", "UBLK", "MATCH", "SUATOM")
_CONTROL = (
    *("BRA", "BRX", "BAR", "BSSY", "BSYNC", "BREAK", "EXIT", "NOP", "CALL", "RET", "WARPSYNC"),
    *("DEPBAR", "LDGDEPBAR", "LDTDEPBAR", "WARPGROUP", "MEMBAR", "FENCE", "ERRBAR", "CGAERRBAR"),
    *("CCTL", "SYNCS", "YIELD", "NANOSLEEP", "ARRIVES", "UCGABAR", "ACQBULK", "ELECT", "BPT"),
    *("UTCBAR", "UCGABAR_ARV", "UCGABAR_WAIT", "USETMAXREG", "ENDCOLLECTIVE", "WARPGROUPSET"),
)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    opcode     with its modifiers, as LDGSTS.E.BYPASS.128
    guarded    whether a predicate decides if it is done
    target     index of the instruction that it names, -1 for none
    file, line of the source, the file with its folder; "" and 0 where the compiler names none
    """

    opcode: str
    guarded: bool
    target: int
    file: str
    line: int

    @property
    def root(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def pipe(self) -> str:
        """Which units do it; what no table names is done by the integer units."""
        root = self.root
        if root in _TENSOR:
            return "tensor"
        if root in _CONTROL:
            return "control"
        if root in _FMA:
            return "fma"
        if root in _MUFU:
            return "mufu"
        if root.startswith(_LSU):
            return "lsu"
        return "uniform" if root.startswith("U") or root in ("R2UR", "S2UR") else "alu"

    @property
    def fences_device(self) -> bool:
        """Whether all memory operations before it must be seen by the whole device."""
        return self.root == "MEMBAR" and ("GPU" in self.opcode or "SYS" in self.opcode)

    @property
    def copied(self) -> int:
        """Bytes that a warp copies to shared memory without waiting; 0 for other instructions."""
        if self.root != "LDGSTS":
            return 0
        width = re.search(r"\.(64|128)\b", self.opcode)
        return 32 * (int(width[1]) // 8 if width else 4)


def parse(text: str) -> list[Instruction]:
    """The instructions of `nvdisasm -g`, of its first function."""
    found: list[tuple[str, bool, str, str, int]] = []
    labels: dict[str, int] = {}
    file, line = "", 0
    for row in text.splitlines():
        if row.startswith("//---") and found:  # the next section
            break
        if where := _LINE.search(row):
            file, line = str(Path(*Path(where[1]).parts[-2:])), int(where[2])
        elif label := _LABEL.match(row):
            labels[label[1]] = len(found)
        elif code := _CODE.search(row):
            to = _TARGET.search(code[4])
            # A predicate of a branch is before its opcode, or among its operands.
            guarded = bool(code[2]) or (code[3].startswith("BRA") and "," in code[4])
            found.append((code[3], guarded, to[1] if to else "", file, line))
    return [
        Instruction(opcode, guarded, labels.get(to, -1), file, line)
        for opcode, guarded, to, file, line in found
    ]


def by_pipe(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How many each pipe is given."""
    counts = dict.fromkeys(PIPES, 0)
    for instruction in instructions:
        counts[instruction.pipe] += 1
    return counts
