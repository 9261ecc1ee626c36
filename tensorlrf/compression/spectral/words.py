"""What measures of spectra are called, in pictures and on the command line."""

from __future__ import annotations

MEASURES = ("effective_rank", "stable_rank", "nuclear_norm", "entropy")
"""The first is shown where none is asked for."""
