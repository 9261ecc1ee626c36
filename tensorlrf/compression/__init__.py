"""From a model to a smaller one: ranks under a budget, calibration, replacement, report."""

from tensorlrf.compression._compress import compress
from tensorlrf.compression._report import LayerReport, Report, Totals

__all__ = ["LayerReport", "Report", "Totals", "compress"]
