"""Damage of all kinds: what disks and networks do, and what strangers write."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.abuse.reader import AWAY, FOLDER, LINK, PIPE, Files, Reader
from tests.files.mutants import changed, file_of, parts_of, resealed

Bytes = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Damaged:
    """kind   of damage
    files  what it left
    lies   whether it has written the checksums that belong to it
    """

    kind: str
    files: Files
    lies: bool = False


# ---- bytes -------------------------------------------------------------------------------------


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _bit(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _bits(data: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(2, 20)):
        data = _bit(data, draw)
    return data


def _zeros(data: bytes, draw: random.Random) -> bytes:
    """A block that was never written."""
    at, n = draw.randrange(len(data)), draw.choice([1, 16, 512, 4096])
    return data[:at] + bytes(min(n, len(data) - at)) + data[at + n :]


def _block(data: bytes, draw: random.Random) -> tuple[int, int]:
    at = draw.randrange(len(data))
    return at, min(len(data), at + draw.choice([1, 7, 64, 512]))


def _out(data: bytes, draw: random.Random) -> bytes:
    at, end = _block(data, draw)
    return data[:at] + data[end:]


def _twice(data: bytes, draw: random.Random) -> bytes:
    at, end = _block(data, draw)
    return data[:end] + data[at:]


def _swapped(data: bytes, draw: random.Random) -> bytes:
    (a, end), n = _block(data, draw), len(data)
    size = min(end - a, n - end)
    b = draw.randrange(end, n - size + 1) if size else end
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def _grown(data: bytes, draw: random.Random) -> bytes:
    return data + (draw.randbytes(draw.choice([1, 8, 100])) if draw.random() < 0.5 else data)


def _length(data: bytes, draw: random.Random) -> bytes:
    """The eight bytes that a file of safetensors begins with."""
    size = len(data)
    n = draw.choice([0, 1, 7, size, max(0, size - 8), 10**8 + 1, 1 << 31, 1 << 62, (1 << 64) - 1])
    return n.to_bytes(8, "little") + data[8:]


def _text(data: bytes, draw: random.Random) -> bytes:
    """Words that JSON does not have, or that no number or stack holds, in the place of a token."""
    odd = [
        b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"9" * 5000, b"1" + b"0" * 400,
        b"[" * 100_000, b'{"a":' * 20_000, b'"\\ud800"', b'"\\u0000"', b"\xff\xfe", b"\xef\xbb\xbf",
        b"'", b"//", b"", b"null", b"true", b'"../../x.safetensors"', b'"/etc/passwd"',
    ]  # fmt: skip
    marks = [k for k, c in enumerate(data) if c in b',:[]{}"'] or [0]
    at = draw.choice(marks)
    end = draw.choice([k for k in marks if k >= at][:4])
    return data[: at + 1] + draw.choice(odd) + data[end:]


BYTES: dict[str, Bytes] = {
    "cut": _cut, "bit": _bit, "bits": _bits, "zeros": _zeros, "taken out": _out, "twice": _twice,
    "swapped": _swapped, "grown": _grown, "length": _length, "token": _text,
}  # fmt: skip


# ---- what files say ----------------------------------------------------------------------------


def _head(data: bytes, reader: Reader, draw: random.Random) -> bytes | None:
    """The header of a file of safetensors says something else."""
    try:
        head, body = parts_of(data)
        return file_of(changed(head, draw), body)
    except (ValueError, RecursionError):
        return None


def _sealed(data: bytes, reader: Reader, draw: random.Random) -> bytes | None:
    """So does ours, with the checksums that belong to it."""
    try:
        head, body = parts_of(data)
        values = json.loads(head["__metadata__"][reader.key])
        if draw.random() < 0.2:
            values["version"] = draw.choice([0, 2, 3, 99, -1, "1", 1.0, True, None, 1 << 70])
        else:
            values = changed(values, draw)
        return file_of(resealed(head, str(reader.key), values), body)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _json(data: bytes, reader: Reader, draw: random.Random) -> bytes | None:
    try:
        values = changed(json.loads(data), draw)
        if isinstance(values, dict) and "new" in values and "old" in values:
            names = json.dumps([values["old"], values["new"]]).encode()
            values["checksum"] = hashlib.blake2b(names, digest_size=16).hexdigest()
        return json.dumps(values).encode()
    except (ValueError, RecursionError):
        return None


def _double_key(data: bytes, reader: Reader, draw: random.Random) -> bytes | None:
    """A key stands twice, with another value the second time."""
    try:
        values = json.loads(data)
    except ValueError:
        return None
    if not isinstance(values, dict) or not values:
        return None
    key = draw.choice(list(values))
    more = json.dumps({key: changed({"": values[key]}, draw).get("", 0)})
    return data.rstrip()[:-1] + b", " + more[1:].encode()


def _lines(data: bytes, reader: Reader, draw: random.Random) -> bytes | None:
    """A journal's lines say something else, chained by checksums that fit."""
    try:
        entries = [json.loads(line[33:]) for line in data.splitlines()]
        first = 0 if draw.random() < 0.1 else 1
        match draw.randrange(4) if len(entries) > 2 else 3:
            case 0:
                entries.insert(draw.randrange(1, len(entries)), copy.deepcopy(entries[-1]))
            case 1:
                del entries[draw.randrange(1, len(entries))]
            case _:
                at = draw.randrange(first, len(entries)) if len(entries) > first else 0
                entries[at] = changed(entries[at], draw)
        return chained(json.dumps(one, sort_keys=True, separators=(",", ":")) for one in entries)
    except (ValueError, RecursionError):
        return None


def chained(texts: Iterable[str]) -> bytes:
    """A journal of these lines."""
    out, last = b"", ""
    for text in texts:
        raw = text.encode("utf-8", "surrogateescape")
        last = hashlib.blake2b(last.encode() + raw, digest_size=16).hexdigest()
        out += last.encode() + b" " + raw + b"\n"
    return out


def with_checksums(data: bytes, name: str, reader: Reader) -> bytes:
    """What a file says, with the checksums that belong to it where it has some; as it is where it
    is no such file."""
    if is_journal(name):
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        return chained(line[33:] for line in lines[:-1]) + lines[-1].encode("utf-8", "replace")
    if not name.endswith(".safetensors") or reader.key is None:
        return data
    try:
        head, body = parts_of(data)
        values = json.loads(head["__metadata__"][reader.key])
        return file_of(resealed(head, reader.key, values), body)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return data


def is_journal(name: str) -> bool:
    """That of a run, or of one of its ranks."""
    return name.rpartition("/")[2].startswith("journal")


def _array(data: bytes, reader: Reader, draw: random.Random) -> bytes | None:
    """The line of a .npy says something else."""
    if not data.startswith(b"\x93NUMPY"):
        return None
    dtype = draw.choice(
        ["<f4", ">f4", "<f8", "|O", "<f2", "<f16", "<i4", "<c8", "V4", "", "<f4,<f4"]
    )
    shape = draw.choice(
        ["(5, 6)", "(30,)", "()", "(-1,)", f"({1 << 40},)", f"({1 << 62}, 4)", "(5, 6, 0)",
         "(5.0, 6)", "(True, 30)", "'x'", "(5, 6", "(1,) * 10**9", "[5, 6]", f"(0, {1 << 62})"]
    )  # fmt: skip
    order = draw.choice(["False", "True", "1", "None"])
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    size = len(text) if draw.random() < 0.8 else draw.randrange(65536)
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text + data[128:]


SAID: dict[str, Callable[[bytes, Reader, random.Random], bytes | None]] = {
    "header": _head, "sealed header": _sealed, "JSON": _json, "key twice": _double_key,
    "journal": _lines, "array": _array,
}  # fmt: skip
WITH_CHECKSUMS = {"sealed header", "journal", "JSON"}


def damaged(files: Files, reader: Reader, draw: random.Random) -> Damaged:
    """The files with damage of some kind."""
    names = [name for name in files if reader.is_foreign(name)]
    while True:
        name = draw.choice(names)
        data = files[name]
        assert isinstance(data, bytes)
        what = draw.random()
        if what < 0.08:
            return _of_files(files, names, draw)
        if what < 0.5 and data:
            kind = draw.choice(list(BYTES))
            found: bytes | None = BYTES[kind](data, draw)
        else:
            kind = draw.choice(list(SAID))
            fits = {
                "header": name.endswith(".safetensors"),
                "sealed header": name.endswith(".safetensors") and reader.key is not None,
                "journal": is_journal(name),
                "array": name.endswith(".npy"),
            }
            found = SAID[kind](data, reader, draw) if fits.get(kind, True) else None
        if found is not None and found != data:
            return Damaged(kind, {**files, name: found}, kind in WITH_CHECKSUMS)


def _of_files(files: Files, names: list[str], draw: random.Random) -> Damaged:
    name = draw.choice(names)
    kind = draw.choice(["lost", "empty", "exchanged", LINK, AWAY, FOLDER, PIPE])
    rest: dict[str, Any] = {**files}
    match kind:
        case "lost":
            del rest[name]
        case "empty":
            rest[name] = b""
        case "exchanged":
            other = draw.choice(names)
            rest[name], rest[other] = rest[other], rest[name]
        case _:
            rest[name] = kind
    return Damaged(kind, rest)
