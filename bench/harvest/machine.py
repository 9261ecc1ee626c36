"""Which machine this is, as a line of JSON; where it has no GPU, why nothing can be done."""

import json

from bench import need_gpu
from bench.report import machine

assert need_gpu  # it ends the process
print(json.dumps(machine("cuda")))
