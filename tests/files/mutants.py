"""Files that a stranger has changed: bits, lengths, and what the headers say."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from tensorlrf.compression.checkpoint._architecture import digest
from tensorlrf.files.sealed import canonical, checksum_of, seal

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1 << 40, 1 << 62, (1 << 61) - 1, 1 << 70),
    *(3.0, 0.5, 1e308),
    *(
        "",
        ".",
        "..",
        "a.b",
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "\0",
        "x" * 5000,
        "." * 5000,
        "lowrank",
    ),
    *(
        [],
        {},
        [[]],
        [0],
        [1 << 62] * 64,
        [2.0, 3],
        list(range(70)),
        {"": 0},
        {"a": {"b": []}},
        DEEP,
    ),
)


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(the header of a safetensors file, the bytes of its tensors)."""
    length = int.from_bytes(data[:8], "little")
    head: dict[str, Any] = json.loads(data[8 : 8 + length])
    return head, data[8 + length :]


def file_of(head: Any, body: bytes) -> bytes:
    """Inverse of `parts_of`."""
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    raw = text.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + body


def resealed(head: dict[str, Any], key: str, values: dict[str, Any]) -> dict[str, Any]:
    """The header with other values of ours in it, and the checksums that belong to them."""
    values = {k: v for k, v in values.items() if k != "checksum"}
    if "plan_checksum" in values and isinstance(values.get("plan"), dict):
        values["plan_checksum"] = checksum_of(canonical(values["plan"]))
    if isinstance(values.get("architecture"), dict):
        values["fingerprint"] = digest(values["architecture"])
    return {**head, "__metadata__": {key: seal(values)}}


def changed(values: Any, draw: random.Random) -> Any:
    """The JSON value with one to three entries, anywhere in it, gone, doubled or another."""
    values = copy.deepcopy(values)
    for _ in range(draw.randint(1, 3)):
        at = draw.choice([one for one in _containers(values) if one] or [{"": 0}])
        key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
        what = draw.random()
        if what < 0.2:
            del at[key]
        elif what < 0.3 and isinstance(at, list):
            at.append(copy.deepcopy(at[key]))
        elif what < 0.4 and isinstance(at, dict):
            at[draw.choice([one for one in ODD if isinstance(one, str)])] = at.pop(key)
        elif what < 0.5:
            at[key] = copy.deepcopy(draw.choice(list(at.values()) if isinstance(at, dict) else at))
        elif what < 0.6 and type(at[key]) is int:
            at[key] += draw.choice([-1, 1, 1 << 31])
        else:
            at[key] = copy.deepcopy(draw.choice(ODD))
    return values


def _containers(values: Any) -> Iterator[Any]:
    stack = [values]
    while stack:
        one = stack.pop()
        if isinstance(one, dict | list):
            yield one
            stack += one.values() if isinstance(one, dict) else one


def mutants(data: bytes, key: str, seed: int, number: int) -> Iterator[bytes]:
    """Files made of one that is as it should be."""
    draw = random.Random(seed)
    head, body = parts_of(data)
    values = json.loads(head["__metadata__"][key])
    for _ in range(number):
        match draw.randrange(5):
            case 0:  # a bit
                at = draw.randrange(len(data))
                yield data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            case 1:  # the end
                yield data[: draw.randrange(len(data))]
            case 2:  # the format's own header
                yield file_of(changed(head, draw), body)
            case _:  # ours
                try:
                    yield file_of(resealed(head, key, changed(values, draw)), body)
                except (ValueError, RecursionError):  # what no writer could write
                    continue
