"""Decompositions: functions from a tensor to factors.

`cp(...)` gives the factors; `fit_cp(...)` takes the same arguments and gives a `Fit`, which also
holds the errors on the way and the reason for stopping. Likewise `svd` and `tucker`.
`bias_correction(...)` gives what a bias can make good of them.
"""

from tensorlrf.decomposition._bias import bias_correction
from tensorlrf.decomposition._cp import cp, fit_cp
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._svd import fit_svd, svd
from tensorlrf.decomposition._tucker import fit_tucker, tucker

__all__ = ["Fit", "bias_correction", "cp", "fit_cp", "fit_svd", "fit_tucker", "svd", "tucker"]
