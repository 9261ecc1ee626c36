"""Trees of bases, and sums of Tucker cores."""
