"""The command line: `tensorlrf compress | refine | frontier | sensitivity | bench | ...`.

The words and the defaults are those of the Python functions. Errors are one line on stderr and exit
code 2; Ctrl-C is 130, and leaves nothing behind.
"""

from tensorlrf.cli._app import app, main

__all__ = ["app", "main"]
