"""A worker that misbehaves as its cases say; no GPU, no torch."""

import json
import os
import signal
import sys
import time


def tell(**line: object) -> None:
    os.write(1, (json.dumps(line) + "\n").encode())


def do(case: str, skip: list[str]) -> None:
    if case.startswith("row"):
        tell(row={"kind": "number", "value": case})
    elif case.startswith("hang"):
        tell(row={"kind": "number", "value": case})
        time.sleep(3600)
    elif case.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(2)
        os.fork()  # of the same group, and it holds the pipes
        time.sleep(3600)
    elif case.startswith("exit"):
        tell(row={"kind": "number", "value": case})
        os._exit(7)
    elif case.startswith("signal"):
        tell(row={"kind": "number", "value": case})
        os.kill(os.getpid(), signal.SIGSEGV)
    elif case.startswith("half"):
        tell(row={"kind": "number", "value": case})
        os.write(1, b'{"row": {"kind": "nu')
        os._exit(0)
    elif case.startswith("fail"):
        tell(failed="ValueError: no such kernel")
    elif case.startswith("noise"):
        os.write(1, b"a library says hello\n")
        os.write(2, b"and so on\n" * 20000)
        tell(row={"kind": "number", "value": case})
    elif case.startswith("parts"):
        for part in "abcdef":
            if part in skip:
                continue
            tell(begin=part)
            if part == "c":
                os.abort()
            if part == "e":
                time.sleep(3600)
            tell(row={"kind": "number", "value": part})


if "dies at once" in sys.argv:
    sys.exit(1)
if "never ready" in sys.argv:
    time.sleep(3600)
if "slow" in sys.argv:
    time.sleep(1.0)
tell(ready=True)
for line in sys.stdin:
    request = json.loads(line)
    do(request["case"], request["skip"])
    tell(done=request["case"])
