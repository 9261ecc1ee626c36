"""A command line under torchrun of which one rank is killed, the first time that it is started."""

from __future__ import annotations

import os
import sys

from tensorlrf.cli import main
from tests.compression.scale.ranks.calls import kill_in_second_layer

if __name__ == "__main__":
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        kill_in_second_layer(os.environ["RANK"] == "1")
    source, target = sys.argv[1:]
    sys.exit(main(["compress", source, "-o", target, "--keep-params", ".5", "--stream"]))
