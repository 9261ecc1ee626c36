"""Models that run on part of their ranks: for a while, by a table of what that costs, by a gate."""
