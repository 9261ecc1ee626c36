"""Factored layers under torch.distributed: styles for `parallelize_module`.

Imported when it is first used: `import tensorlrf` does not import torch.distributed.tensor.
"""

from tensorlrf.nn.parallel._plan import styles
from tensorlrf.nn.parallel._styles import FactoredColwise, FactoredRowwise

__all__ = ["FactoredColwise", "FactoredRowwise", "styles"]
