"""A worker from inside: it imports what its phase needs, then does the cases that it is asked for.

    python -m bench.harvest.serve PHASE

What a phase has in a function `prepare` is done before the first case is asked for. Lines come on
the standard input, {"case": ..., "seconds": ..., "skip": [...]}, and go to the standard output:
{"ready": ...} when all is imported, {"row": {...}} for every result, {"begin": ...} before a part,
{"failed": ...} with the reason, and {"done": ...} at the end of a case. Whatever else is printed
goes to the error stream. After an error that the GPU does not recover from the process ends itself.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

Tell = Callable[[dict[str, Any]], None]
Handle = Callable[[str, float, Sequence[str], Tell], None]
"""Case, seconds for it, parts to leave out, and where lines go."""

BROKEN = 3  # exit code: the GPU's context is of no use any more


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    (phase,) = sys.argv[1:] if arguments is None else arguments
    told = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not for the driver

    def tell(line: dict[str, Any]) -> None:
        os.write(told, (json.dumps(line) + "\n").encode())

    module = importlib.import_module(f"bench.harvest.{phase}")
    handle: Handle = module.handle
    try:
        getattr(module, "prepare", _nothing)()
    except Exception:  # what it was to prepare is done when it is needed, or fails there
        traceback.print_exc()
    tell({"ready": phase})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            handle(request["case"], request["seconds"], request["skip"], tell)
        except Exception as error:  # whatever it is, the other cases need the GPU's time
            words = (str(error).strip().splitlines() or [""])[0]
            tell({"failed": f"{type(error).__name__}: {words}"[:500]})
            traceback.print_exc()
        if not _sound():
            return BROKEN
        tell({"done": request["case"]})
    return 0


def _nothing() -> None:
    """What most phases have to prepare."""


def _sound() -> bool:
    """Whether the GPU, where it was used, goes on; gives back what memory is free."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
