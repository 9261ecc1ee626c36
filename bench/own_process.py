"""A part of a benchmark in a process of its own, which has nothing in memory but what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def measured(script: str, what: str, *given: object, **environment: str) -> dict[str, Any]:
    """What `script --measure what given...` prints last, which is JSON; errors go to the screen."""
    command = [sys.executable, script, "--measure", what, *map(str, given)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
