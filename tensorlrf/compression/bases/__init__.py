"""Bases that layers share: which may have one in common, and where that is better."""
