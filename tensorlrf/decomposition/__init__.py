"""Decompositions: functions from a tensor to factors.

`cp(...)` gives the factors; `fit_cp(...)` takes the same arguments and gives a `Fit`, which also
holds the errors on the way and the reason for stopping. Likewise `svd` and `tucker`.
"""

from tensorlrf.decomposition._cp import cp, fit_cp
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._svd import fit_svd, svd
from tensorlrf.decomposition._tucker import fit_tucker, tucker

__all__ = ["Fit", "cp", "fit_cp", "fit_svd", "fit_tucker", "svd", "tucker"]
